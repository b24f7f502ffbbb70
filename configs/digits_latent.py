"""A score model in the latent space of the digits' VAE, which starts from the result of `configs/digits_vae.py`.

    python main.py --config=configs/digits_vae.py:levels --mode=train
    python main.py --config=configs/digits_latent.py:levels_3 --mode=train
    python main.py --config=configs/digits_latent.py:levels_3 --mode=eval

The variants levels_1, levels_2 and levels_3 are trained end to end by the published algorithms. In algorithm 1
everything learns from the bound; in 2 and 3 the prior's loss is unweighted, with times of its own (2) or shared ones
(3). In levels_frozen only the prior is trained. binary_1, binary_2, binary_3 and binary_frozen are the same for binary
digits.
"""

from configs import digits_vae

VARIANTS = {f"{data}_{how}": (data, how) for data in digits_vae.VARIANTS for how in ("1", "2", "3", "frozen")}


def get_config(variant: str = "levels_3"):
    """The experiment for one kind of data and one way to train."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    data, how = VARIANTS[variant]
    config = digits_vae.get_config(data)
    config.init_from = f"runs/digits_vae-{data}"
    config.t_min = 0.01
    config.score.update({"prediction": "noise", "mixed": True})
    config.model.update({"name": "mlp", "width": 256, "depth": 4, "dropout": 0.0, "dtype": "float32"})
    if how == "frozen":
        config.latent.update({"name": "frozen"})
    else:
        config.latent.update({"name": "joint", "algorithm": int(how), "learning_rate": 5e-4})
        config.latent.update({"coefficient_min": 0.7, "ramp": 200})
    unweighted = how in ("2", "3")
    config.weight.name = "noise" if unweighted else "likelihood"
    config.sample_times.name = "normal_unweighted" if unweighted else "normal_likelihood"
    config.training.update({"optimizer": "adamw", "learning_rate": 1e-3, "learning_rate_end": 0.0, "eps": 1e-8})
    config.training.update({"steps": 2000, "clip": 1.0, "weight_decay": 0.0})
    config.sampler.update({"name": "adaptive", "rtol": 1e-3, "atol": 1e-3, "denoise": True})
    config.sampling.t_min = 1e-3
    config.eval.t_min = 1e-4
    return config
