"""ODEs solved on the host by SciPy, with a call to the device for every stage: the design of score_sde."""

import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp


class HostField:
    """A field on the device as SciPy's solver calls it on the host: it counts its calls.

    Args:
      run: compiled (t, x) -> arrays whose first axes are that of x.
      shape: of x.
    """

    def __init__(self, run: Callable, shape: tuple[int, ...]):
        self.run, self.shape, self.calls = run, shape, 0

    def __call__(self, t: float, state: np.ndarray) -> np.ndarray:
        self.calls += 1
        x = jnp.asarray(state[: np.prod(self.shape)].reshape(self.shape), jnp.float32)
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in self.run(jnp.float32(t), x)])

    def solve(self, span: tuple[float, float], start: np.ndarray, tolerance: float = 1e-5) -> tuple[np.ndarray, float]:
        """The last state, and seconds of one joint RK45 solve of the whole batch, after a call that compiles."""
        self(span[0], start)
        self.calls, began = 0, time.perf_counter()
        options = {"method": "RK45", "rtol": tolerance, "atol": tolerance}
        last = solve_ivp(self, span, start.astype(np.float64), **options).y[:, -1]
        return last, time.perf_counter() - began
