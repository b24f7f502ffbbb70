"""Measurements of a trained model, one file each; see `context` for what they are given and give back."""
