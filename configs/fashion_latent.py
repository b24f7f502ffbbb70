"""A score model in the latent space of Fashion-MNIST's VAE, which starts from the result of `configs/fashion_vae.py`.

    python main.py --config=configs/fashion_vae.py --mode=train
    python main.py --config=configs/fashion_latent.py:joint --mode=train       # 13 minutes on one CPU core
    python main.py --config=configs/fashion_latent.py:joint --mode=eval

In the variant frozen only the prior is trained, in five minutes; in joint everything, by the published algorithm 3. The
variant bridge is frozen with T = 0.3 and a mixture of Gaussians in the place of N(0, I): a latent model with a short
diffusion, whose samples are the best of docs/results.md. It takes three minutes, and five for the mixture. Each
variant followed by `-full` starts from `fashion_vae.py:full`, and was not run.
"""

from configs import fashion_vae, fashion_vp

VARIANTS = ("frozen", "joint", "bridge")


def get_config(variant: str = "joint"):
    """The experiment for one way to train."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    config = fashion_vae.get_config(size)
    config.init_from = "runs/fashion_vae" + ("-full" if size == "full" else "")
    config.t_min = 0.01
    config.score.update({"prediction": "noise", "mixed": True})
    config.model.update({"channels": 32, "multipliers": (1,), "blocks": 2, "attention": (), "dropout": 0.0})
    if name == "joint":
        config.latent.update({"name": "joint", "algorithm": 3, "learning_rate": 5e-4})
        config.latent.update({"coefficient_min": 0.7, "ramp": 200})
    else:
        config.latent.update({"name": "frozen"})
    config.weight.name, config.sample_times.name = "noise", "normal_unweighted"
    if name == "bridge":
        config.process.horizon = 0.3
        config.init_parts = "vae"  # which has no score yet
        config.sample_times.name = "importance"
        config.weight.name = "likelihood"
        config.terminal.update({"name": "mixture", "components": 10, "covariance": "low_rank", "rank": 32})
    config.training.update({"optimizer": "adamw", "learning_rate": 1e-3, "learning_rate_end": 0.0, "eps": 1e-8})
    config.training.update({"clip": 1.0, "weight_decay": 0.0})
    if size == "full":
        config.model.update({"channels": 128, "dropout": 0.1, "dtype": "bfloat16"})
        config.training.learning_rate = 3e-4
    config.sampler.update({"name": "dpm_solver_pp_2m", "denoise": True})
    config.sampling.update({"steps": 40, "t_min": 1e-3})
    config.eval.t_min = 1e-4
    return config
