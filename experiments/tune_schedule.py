"""Tunes a noise schedule by gradient descent on an exact distance.

    python -m experiments.tune_schedule           a minute on 2 CPU cores

Every number of a schedule has a gradient, and the law that a sampler makes of Gaussian data is exact: so the
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
from scoreflow import configure
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


def tune(steps: int, log: jax.Array, data: exact.Gaussian, iterations: int) -> tuple[jax.Array, list[float]]:
    """Adam on the logarithms of the three numbers; the best schedule met, and the distance at each iteration."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, iterations))
    value_and_grad = jax.jit(jax.value_and_grad(lambda log: distance(log, steps, data)))
    state, history, best = optimizer.init(log), [], (jnp.inf, log)
    for _ in range(iterations):
        value, slope = value_and_grad(log)
        history.append(float(value))
        best = min(best, (float(value), log), key=lambda pair: pair[0])
        updates, state = optimizer.update(slope, state)
        log = optax.apply_updates(log, updates)
    return best[1], history


def main() -> None:
    args = common.arguments(__doc__, "tune_schedule")
    iterations, counts = (20, (10,)) if args.fast else (400, (10, 20, 50))
    with jax.enable_x64(True):
        experiment = configure.experiment(vp_digits.get_config(), "configs/vp_digits.py")
        data = jax.tree.map(jnp.asarray, plan.fit_gaussian(experiment, None, 10_000))
        spread = float(jnp.sqrt(data.variance.sum()))
        linear, ladder = jnp.log(jnp.array([0.1, 20.0, 1.0])), [5, 10, 20, 50, 100, 200]
        rows, schedules = [("steps", "linear", "tuned", "gain", "beta_min", "beta_max", "rho")], {"linear": linear}
        for k in counts:
            log, history = tune(k, linear, data, iterations)
            schedules[f"tuned for {k}"] = log
            after, numbers = float(distance(log, k, data)), (f"{float(v):.3g}" for v in jnp.exp(log))
            rows.append((str(k), f"{history[0]:.4f}", f"{after:.4f}", f"{history[0] / after:.2f}x", *numbers))
        curves = {name: [float(distance(log, k, data)) for k in ladder] for name, log in schedules.items()}
        report.plot_steps(args.out / "distance.png", ladder, {"exact W2 of the Gaussian": curves})
        common.finish(
            args.out,
            [
                f"Exact W2 to the Gaussian of the digits (spread {spread:.3f}), exponential integrator, uniform grid",
                "",
                report.table(rows),
            ],
        )


if __name__ == "__main__":
    main()
