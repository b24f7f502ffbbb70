"""Log-densities of a score model: by the probability-flow ODE (`ode`), a bound for the SDE (`bound`), the bound at
every horizon (`horizon`) and the terms of the ODE's divergence (`diagnostics`)."""

from scoreflow.likelihood.bound import Bound, bound, bound_noise, one_time_bound
from scoreflow.likelihood.ode import LogProb, log_prob

__all__ = ["Bound", "LogProb", "bound", "bound_noise", "log_prob", "one_time_bound"]
