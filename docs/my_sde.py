"""A process of one's own for the command line: --config.process.name=docs/my_sde.py:cubic, see extending.md."""

from scoreflow.processes import rates, sdes


def rate(parameters, t):
    low, high = parameters
    return low + high * t**3


def cubic(beta_min: float = 0.1, beta_max: float = 40.0, horizon: float = 1.0) -> sdes.VP:
    """VP whose rate grows with the third power of time.

    Args:
      beta_min: the rate at t = 0.
      beta_max: what it gains until t = 1.
      horizon: the time T at which the path ends.
    """
    return sdes.VP(rates.NumericalRate(rate, (beta_min, beta_max)), horizon=horizon)
