"""Score-based generative models as plain functions: a forward SDE, a score function and a terminal law."""
