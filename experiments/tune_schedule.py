"""Tunes a noise schedule by gradient descent on an exact distance.

    python -m experiments.tune_schedule           a minute on 2 CPU cores

Every number of a schedule has a gradient, and the distribution that a sampler makes of Gaussian data is exact: so the
2-Wasserstein distance after K steps can be minimized over the schedule itself. Here the Gaussian has the mean and
covariance of the digits, the schedule is VP with beta^(1/rho) along a line, started at the linear schedule, and K is
10, 20 or 50 steps of the exponential integrator on a uniform grid. What is gained is exact for the Gaussian; that the
digits gain as much is not claimed.
"""

import jax
import jax.numpy as jnp
import optax

from configs import vp_digits
from experiments import common
from scoreflow import configure, planner
from scoreflow.processes import sdes, transitions
from scoreflow.runs import report
from scoreflow.samplers import grids
from scoreflow.theory import exact

T_MIN = 1e-3


def distance(log_schedule: jax.Array, steps: int, data: exact.Gaussian) -> jax.Array:
    """W2 to the data after `steps` steps of the schedule exp(log_schedule) = (beta_min, beta_max, rho)."""
    process = sdes.vp_power(*jnp.exp(log_schedule))
    start = exact.Gaussian(jnp.zeros_like(data.mean), jnp.ones_like(data.variance))
    grid = grids.uniform(process, steps, t_min=T_MIN)
    return exact.w2(exact.gaussian_law(process, grid, transitions.exponential_sde, data, start=start), data)


def tune(steps: int, start: jax.Array, data: exact.Gaussian, iterations: int) -> tuple[jax.Array, list[float]]:
    """Adam on the logarithms of the three numbers; the best schedule met, and the distance at each iteration."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, iterations))
    value_and_grad = jax.jit(jax.value_and_grad(lambda log_schedule: distance(log_schedule, steps, data)))
    log_schedule, state, history, best = start, optimizer.init(start), [], (jnp.inf, start)
    for _ in range(iterations):
        value, slope = value_and_grad(log_schedule)
        history.append(float(value))
        best = min(best, (float(value), log_schedule), key=lambda pair: pair[0])
        updates, state = optimizer.update(slope, state)
        log_schedule = optax.apply_updates(log_schedule, updates)
    return best[1], history


def main() -> None:
    args = common.arguments(__doc__, "tune_schedule")
    iterations, counts = (20, (10,)) if args.fast else (400, (10, 20, 50))
    rows = [("steps", "linear", "tuned", "gain", "beta_min", "beta_max", "rho")]
    with jax.enable_x64(True):
        experiment = configure.experiment(vp_digits.get_config(), "configs/vp_digits.py")
        data = jax.tree.map(jnp.asarray, planner.fit_gaussian(experiment, None, 10_000))
        spread = float(jnp.sqrt(data.variance.sum()))
        linear, plotted = jnp.log(jnp.array([0.1, 20.0, 1.0])), [5, 10, 20, 50, 100, 200]
        schedules = {"linear": linear}
        for k in counts:
            tuned, history = tune(k, linear, data, iterations)
            schedules[f"tuned for {k}"] = tuned
            after, numbers = float(distance(tuned, k, data)), (f"{float(v):.3g}" for v in jnp.exp(tuned))
            rows.append((str(k), f"{history[0]:.4f}", f"{after:.4f}", f"{history[0] / after:.2f}x", *numbers))
        curves = {name: [float(distance(log, k, data)) for k in plotted] for name, log in schedules.items()}
    ylabel = "2-Wasserstein distance, in the units of x"
    report.plot_steps(args.out / "distance.png", plotted, {"exact W2 of the Gaussian": curves}, ylabel=ylabel)
    head = f"Exact W2 to the Gaussian of the digits (spread {spread:.3f}), exponential integrator, uniform grid"
    common.finish(args.out, [head, "", report.table(rows)])


if __name__ == "__main__":
    main()
