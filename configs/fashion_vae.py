"""A small convolutional VAE of Fashion-MNIST under the prior N(0, I): stage one of a score model in latent space.

    python main.py --config=configs/fashion_vae.py --mode=train      # 10 minutes on 2 CPU cores
    python main.py --config=configs/fashion_vae.py --mode=eval

The latents have 7x7 pixels of 4 channels. The decoder is a mixture of discretized logistics of the 256 gray levels.
Stage two is `configs/fashion_latent.py`.
"""

from configs import digits_vae, fashion_vp


def get_config():
    """The experiment."""
    config = digits_vae.get_config("levels")
    base = fashion_vp.get_config()
    config.data.update(base.data)
    config.vae.update({"channels": 24, "multipliers": (1, 2, 2), "latents": 4})
    config.training.update({"steps": 2000, "batch_size": 32})
    config.eval.update({"features": base.eval.features, "num_test": base.eval.num_test, "baseline": False})
    return config
