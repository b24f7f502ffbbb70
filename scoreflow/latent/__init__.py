"""Latent spaces: data seen through a VAE, and what its decoder says of data."""
