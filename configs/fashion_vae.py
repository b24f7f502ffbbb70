"""A small convolutional VAE of Fashion-MNIST under the prior N(0, I): stage one of a score model in latent space.

    python main.py --config=configs/fashion_vae.py --mode=train         # 15 minutes on one CPU core
    python main.py --config=configs/fashion_vae.py --mode=eval

The latents have 7x7 pixels of 4 channels. The decoder is a mixture of discretized logistics of the 256 gray levels.
Stage two is `configs/fashion_latent.py`, without which samples are blobs: their Frechet distance is 83. The variant
small is the default; full is wider and trains for 25 times as many steps of 128 images. Nothing was trained with it.
"""

from configs import digits_vae, fashion_vp

VARIANTS = ("small", "full")


def get_config(variant: str = "small"):
    """The experiment at a size."""
    config, base = digits_vae.get_config("levels"), fashion_vp.get_config(variant)
    config.data.update(base.data)
    config.vae.update({"channels": 24, "multipliers": (1, 2, 2), "latents": 4})
    config.training.update({"steps": base.training.steps, "batch_size": base.training.batch_size})
    if variant == "full":
        config.vae.update({"channels": 64, "blocks": 2})
        config.training.learning_rate = 2e-3
    for name in ("features", "num_test", "num_samples", "draws"):
        config.eval[name] = base.eval[name]
    config.eval.baseline = False
    return config
