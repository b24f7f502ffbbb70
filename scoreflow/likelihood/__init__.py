"""Log-densities of a score model: by the probability-flow ODE, in a fixed number of evaluations (`multistep`, with
`nodes` and `gaussian`) or adaptively (`ode`), a bound for the SDE (`bound`) at every horizon (`horizon`), the terms of
the ODE's divergence (`diagnostics`), and latent codes and gradients (`codes`)."""

from scoreflow.likelihood.bound import Bound, bound, bound_noise, one_time_bound
from scoreflow.likelihood.codes import decode, encode, interpolate, log_prob_and_grad
from scoreflow.likelihood.ode import LogProb, log_prob

__all__ = [
    "Bound",
    "LogProb",
    "bound",
    "bound_noise",
    "decode",
    "encode",
    "interpolate",
    "log_prob",
    "log_prob_and_grad",
    "one_time_bound",
]
