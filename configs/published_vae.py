"""The hierarchical VAEs of the article on score models in latent space (arXiv 2106.05931), stage one. They need GPUs.

    python main.py --config=configs/published_vae.py:mnist --mode=train
    python main.py --config=configs/published_vae.py:mnist --mode=eval

The variants are mnist and omniglot (binary, drawn afresh at every access); cifar10_balanced, cifar10_fid and
cifar10_nll; celeba_quantitative and celeba_qualitative (CelebA-HQ in 256 x 256 and 5 bits, read from a folder of images
given by --config.data.path). Hyperparameters are as published, with steps computed from epochs. Two things are not as
published: normalization is over groups of channels instead of batches, and the encoders of cifar10_nll and both celeba
variants have no volume-preserving flows. None of the variants has been trained to completion, so we report no results.
"""

from configs import default

# scales, groups at each, latents, channels, multipliers, cells for a group, cells for an outer resolution, inverted
_NETWORKS = {
    "mnist": (1, 2, 20, 64, (1, 2, 2), 1, 3, True),
    "omniglot": (1, 3, 20, 64, (1, 2), 3, 2, True),
    "cifar10_balanced": (1, 20, 9, 128, (1, 2), 2, 2, False),
    "cifar10_fid": (1, 20, 9, 128, (1, 2), 2, 2, False),
    "cifar10_nll": (1, 4, 45, 256, (1, 2), 3, 3, False),
    "celeba_quantitative": (3, 8, 20, 64, (1, 1, 2, 4), 2, 2, True),
    "celeba_qualitative": (2, 10, 20, 64, (1, 1, 2), 2, 2, True),
}
# steps, batch size, steps per epoch, fraction of steps in which the KL coefficient grows, its end, spectral weight
_TRAINING = {
    "mnist": (60_000, 200, 300, 1.0, 0.7, 1e-2),
    "omniglot": (38_000, 128, 190, 1.0, 1.0, 1e-2),
    "cifar10_balanced": (117_000, 256, 195, 0.5, 1.0, 1e-2),
    "cifar10_fid": (78_000, 256, 195, 1.0, 0.7, 1e-2),
    "cifar10_nll": (78_000, 256, 195, 1.0, 0.7, 1e-2),
    "celeba_quantitative": (84_000, 64, 420, 1.0, 1.0, 3e-2),
    "celeba_qualitative": (84_000, 64, 420, 1.0, 1.0, 3e-2),
}
VARIANTS = tuple(_NETWORKS)


def get_config(variant: str = "cifar10_balanced"):
    """The experiment for one data set."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config, data = default.get_config(), variant.split("_")[0]
    binary, celeba = data in ("mnist", "omniglot"), data == "celeba"
    config.data.update(
        {
            "name": {"celeba": "folder", "omniglot": "omniglot_28"}.get(data, data),
            "flip": not binary,
            "binarized": binary,
        }
    )
    config.data.update({"path": "celeba_hq" if celeba else "", "bits": 5 if celeba else 0})
    config.data.image_size = 256 if celeba else 0
    scales, groups, latents, channels, multipliers, cells, outer, inverted = _NETWORKS[variant]
    config.vae.update({"name": "hierarchical", "scales": scales, "per_scale": groups, "latents": latents})
    config.vae.update({"channels": channels, "multipliers": multipliers, "cells": cells, "outer_cells": outer})
    config.vae.update({"inverted": inverted, "pad": 2 if binary else 0, "dtype": "bfloat16"})
    config.decoder.update({"name": "bernoulli"} if binary else {"name": "logistic_mixture", "components": 10})
    steps, batch_size, epoch, share, top, weight = _TRAINING[variant]
    config.latent.update({"name": "alone", "coefficient_min": 1e-4, "coefficient_max": top, "balance": True})
    config.latent.update({"hold": steps // 10_000, "ramp": int(share * steps), "spectral_weight": weight})
    config.training.update({"steps": steps, "batch_size": batch_size, "optimizer": "adamax", "warmup": 5 * epoch})
    config.training.update({"learning_rate": 1e-2, "learning_rate_end": 1e-4, "eps": 1e-3, "weight_decay": 3e-4})
    config.training.update({"clip": 0.0, "log_every": 100, "validate_every": 2000, "checkpoint_every": 2000})
    # the process leaves N(0, I) as it is, so one step is exact
    config.sampler.update({"name": "euler_ode", "denoise": False})
    config.sampling.steps = 1
    config.eval.update({"dequantization": "", "draws": 1, "baseline": False, "num_samples": 50_000})
    config.eval.features = "inception"
    return config
