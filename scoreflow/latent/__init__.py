"""Latent spaces: data encoded by a VAE, the likelihoods of its decoder, and the divergence of its encoder."""
