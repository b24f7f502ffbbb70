"""Score models as priors of the VAEs of `configs/published_vae.py`, stage two of arXiv 2106.05931. They need many GPUs.

    python main.py --config=configs/published_vae.py:mnist --mode=train
    python main.py --config=configs/published_latent.py:mnist --mode=train
    python main.py --config=configs/published_latent.py:mnist --mode=eval

The variants are mnist, omniglot, cifar10_balanced, cifar10_fid, cifar10_nll, celeba_quantitative, celeba_qualitative
and celeba_last. The last is the third stage of celeba_qualitative, another prior on the VAE as it is then.
Hyperparameters are as published, with steps computed from epochs. In addition to the differences listed in
`published_vae`, these are not as published:

- the U-Net is that of this library, which halves a resolution by means where the article uses filters;
- the VAE of celeba_qualitative does not see the averaged prior;
- weight decay is decoupled;
- the prior of celeba_last has no spectral penalty.

Published results: 78.47 nats (MNIST), 87.79 (OMNIGLOT), 2.87 bits/dim (cifar10_nll), FID 2.10 (cifar10_fid), 7.22
(CelebA-HQ). None of the variants has been trained to completion here, so we report no results of our own.
"""

from configs import published_vae

_BOUND = {"algorithm": 1, "weight": "likelihood", "times": "normal_likelihood"}
_UNWEIGHTED = {"algorithm": 3, "weight": "noise", "times": "normal_unweighted"}
_REWEIGHTED = {"algorithm": 2, "weight": "diffusion", "times": "variance_uniform"}
_CIFAR10 = {"channels": 512, "multipliers": (1, 1, 1), "rate": 1e-4, "logit": -3.0, "drop": False}
_CIFAR10 |= {"steps": 366_000, "batch_size": 256, "warmup": 975, "spectral": 1e-2, "spectral_score": 1e-2}
_CELEBA = {"channels": 256, "rate": 1e-4, "logit": -6.0, "drop": True}
_CELEBA |= {"steps": 422_000, "batch_size": 64, "warmup": 8440, "spectral": 1e-1, "spectral_score": 1e-2}
_BINARY = {"channels": 256, "rate": 3e-4, "logit": -6.0, "drop": True, "batch_size": 128, "spectral": 1e-2}
# rate: learning rate of the prior; grows: whether the coefficient of the KL divergence begins at 0.7; logit: initial
# logit of the mixed score; drop: whether inactive channels are left out
VARIANTS = {
    "mnist": _BOUND
    | _BINARY
    | {"multipliers": (1, 1), "steps": 375_000, "warmup": 9380, "spectral_score": 0.0, "grows": True},
    "omniglot": _BOUND
    | _BINARY
    | {"multipliers": (1, 1, 1), "steps": 285_000, "warmup": 3800, "spectral_score": 1e-3, "grows": True},
    "cifar10_balanced": _UNWEIGHTED | _CIFAR10 | {"grows": False},
    "cifar10_fid": _UNWEIGHTED | _CIFAR10 | {"grows": True},
    "cifar10_nll": _BOUND | _CIFAR10 | {"times": "uniform", "grows": True},
    "celeba_quantitative": _REWEIGHTED | _CELEBA | {"multipliers": (1, 2, 2, 2), "grows": False},
    "celeba_qualitative": _REWEIGHTED | _CELEBA | {"multipliers": (1, 1, 2, 2, 2), "grows": True, "rate_vae": 8e-5},
    "celeba_last": _REWEIGHTED
    | _CELEBA
    | {
        "multipliers": (1, 1, 2, 2, 2),
        "grows": False,
        "algorithm": 0,
        "channels": 320,
        "rate": 6e-5,
        "batch_size": 96,
        "warmup": 5620,
    },
}
_GEOMETRIC = ("cifar10_nll", "celeba_qualitative")


def get_config(variant: str = "cifar10_balanced"):
    """The experiment for one data set."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    chosen = VARIANTS[variant]
    config = published_vae.get_config("celeba_qualitative" if variant == "celeba_last" else variant)
    stage = "published_latent-celeba_qualitative" if variant == "celeba_last" else f"published_vae-{variant}"
    config.init_from = f"runs/{stage}"
    config.init_parts = "vae" if variant == "celeba_last" else "all"
    if variant in _GEOMETRIC:
        config.process.update({"name": "vp_geometric", "variance_min": 3e-5, "variance_max": 0.999})
        config.process.horizon = 1.0
    config.t_min = 0.0 if variant in _GEOMETRIC else 0.01  # the geometric process has noise at t = 0
    config.score.update({"prediction": "noise", "mixed": True, "mixed_logit": chosen["logit"]})
    config.model.update({"channels": chosen["channels"], "multipliers": chosen["multipliers"], "blocks": 8})
    config.model.update({"attention": (16,), "dropout": 0.2, "dtype": "bfloat16"})
    if chosen["algorithm"]:
        config.latent.update({"name": "joint", "algorithm": chosen["algorithm"], "eps": 1e-3})
        config.latent.update({"learning_rate": chosen.get("rate_vae", 1e-4), "learning_rate_end": 1e-5})
        config.latent.update({"weight_decay": 3e-4, "spectral_weight": chosen["spectral"]})
        config.latent.update({"spectral_score": chosen["spectral_score"], "drop_inactive": chosen["drop"]})
        growth = {"coefficient_min": 0.7, "ramp": chosen["steps"] // 10} if chosen["grows"] else {}
        config.latent.update(growth)
    else:
        config.latent.update({"name": "frozen", "drop_inactive": chosen["drop"]})
    config.weight.name, config.sample_times.name = chosen["weight"], chosen["times"]
    config.training.update({name: chosen[name] for name in ("steps", "batch_size", "warmup")})
    config.training.update({"optimizer": "adamw", "schedule": "constant", "learning_rate": chosen["rate"]})
    config.training.update({"learning_rate_end": 0.0, "eps": 1e-4, "weight_decay": 3e-4, "ema_decay": 0.9999})
    config.training.update({"best": ("validation",), "checkpoint_every": 5000, "validate_every": 5000})
    tolerance = 1e-2 if variant == "celeba_quantitative" else 1e-5
    config.sampler.update({"name": "adaptive", "rtol": tolerance, "atol": tolerance, "denoise": False})
    # the decoder is given the end of the path, so the path goes on where training stopped, until there is no noise
    config.eval.t_min = 1e-6 if variant.startswith("cifar10") else 1e-5
    config.sampling.t_min = config.eval.t_min
    clock = "log_snr" if variant in _GEOMETRIC else "time"
    config.sampler.clock = config.eval.clock = clock
    config.eval.update({"solver": "adaptive", "rtol": 1e-5, "atol": 1e-5})  # as published
    return config
