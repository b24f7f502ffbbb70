"""Data whose density under noise is known in closed form."""

from scoreflow.data import toy
from scoreflow.theory.exact import LogDensity, Mixture, checkerboard_log_density, mixture_log_density

LOG_DENSITIES: dict[str, LogDensity] = {
    **{name: mixture_log_density(Mixture(*mixture)) for name, mixture in toy.MIXTURES.items()},
    "checkerboard": checkerboard_log_density,
}
"""Name of the data set -> (x [d], alpha, sigma) -> log-density (nats) of alpha data + sigma noise."""
