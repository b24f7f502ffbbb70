"""A small convolutional VAE of the 8x8 digits under the prior N(0, I): stage one of a score model in latent space.

    python main.py --config=configs/digits_vae.py:levels --mode=train      # a minute on 2 CPU cores
    python main.py --config=configs/digits_vae.py:levels --mode=eval

The variant levels models the 17 gray levels with a mixture of discretized logistics. The variant binary has a Bernoulli
decoder, and every access draws 0 or 1 with the gray level as the probability. Stage two is `configs/digits_latent.py`.
"""

from configs import default

VARIANTS = {
    "levels": {"name": "logistic_mixture", "components": 5},
    "binary": {"name": "bernoulli"},
}


def get_config(variant: str = "levels"):
    """The experiment for one kind of data."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = default.get_config()
    config.data.binarized = variant == "binary"
    config.vae.update({"name": "conv", "channels": 16, "multipliers": (1, 2), "blocks": 1, "latents": 2})
    config.vae.dtype = "float32"
    config.decoder.update(VARIANTS[variant])
    config.latent.update({"name": "alone", "coefficient_min": 0.01, "ramp": 500, "balance": True})
    config.training.update({"steps": 2000, "batch_size": 64, "optimizer": "adamax", "learning_rate": 5e-3})
    config.training.update({"eps": 1e-3, "weight_decay": 3e-4, "clip": 0.0, "learning_rate_end": 1e-4})
    # the process leaves N(0, I) as it is, so one step is exact
    config.sampler.update({"name": "euler_ode", "denoise": False})
    config.sampling.steps = 1
    config.eval.update({"features": "digits", "baseline": not config.data.binarized, "draws": 5})
    return config
