"""Orders 1, 2 and 3 of score matching on densities that are known, at equal steps and at equal compute.

    python -m experiments.orders_on_toys          20 to 30 minutes on 2 CPU cores

A small network learns a mixture on the line and a checkerboard in the plane under VE and VP. Rows of one process:
order 1 throughout; the second or third order let in after half of the steps; and order 1 alone with as many forward
passes as they took. Judged by the KL divergence from the data to the ODE model: by quadrature at t_min on the line, by
fresh test points in the plane. For the mixture, whose score is known, the integrals behind it as well: J_SM, which
first-order matching minimises, and J_Diff, which it leaves out.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import vp_checkerboard
from experiments import common
from scoreflow import build, diagnostics, divergence, likelihood, parallel, report
from scoreflow.data import toy
from scoreflow.experiment import Experiment
from scoreflow.theory import exact

DATA = {"mixture_1d": 0.62, "checkerboard": 2.3}  # root mean squares
PROCESSES = {
    "VE": {"name": "ve_geometric", "sigma_min": 0.01, "sigma_max": 50.0, "horizon": 1.0},
    "VP": {"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0},
}
# order, and how many times as many steps as the first row; the published toy's coefficients, and its one cost in
# operations: 3 forward passes for order 1, 6 and 12 for orders 2 and 3, which count in the second half alone
RECIPES = {"1": (1, 1.0), "1 then 2": (2, 1.0), "1 then 3": (3, 1.0), "1, as 2": (1, 1.5), "1, as 3": (1, 2.5)}
LOSS = {"name": "high_order", "method": "exact", "coefficient2": 0.5, "coefficient2_trace": 0.0, "coefficient3": 0.1}
STEPS, SEEDS, POINTS = 4000, (0, 1, 2), 1000
MIXTURE = exact.Mixture(
    np.array([0.3, 0.3, 0.4]), np.array([[-2.0], [-6.0], [4.0]]) / 7, np.array([0.1, 0.1, 1.0])[:, None, None] / 49
)
LINE = np.linspace(-1.6, 1.8, 1201)
PLANE = np.stack(np.meshgrid(*2 * [np.linspace(-4.4, 4.4, 60)]), axis=-1).reshape(-1, 2)


def configure(data: str, process: str, order: int, seed: int, steps: int) -> ConfigDict:
    """The config of one run."""
    config = vp_checkerboard.get_config()
    config.seed, config.data.name, config.process = seed, data, ConfigDict(PROCESSES[process])
    config.score = ConfigDict({"kind": "noise", "data_rms": DATA[data]})
    config.model = ConfigDict({"name": "mlp", "width": 64, "depth": 3, "dropout": 0.0, "dtype": "float32"})
    config.weight, config.times = ConfigDict({"name": "noise"}), ConfigDict({"name": "stratified"})
    config.training.update({"steps": steps, "steps_per_dispatch": 20, "warmup": 100, "learning_rate": 2e-3})
    config.training.update({"log_every": 0, "validate_every": 0, "checkpoint_every": 0})
    if order > 1:
        config.loss = ConfigDict({**LOSS, "order": order, "power2": 2, "power3": 1})
    return config


def train(data: str, process: str, recipe: str, seed: int, steps: int) -> tuple[dict, float]:
    """One run: the averaged parameters and the seconds it took, compilation included."""
    order, share = RECIPES[recipe]
    steps = int(round(share * steps / 40)) * 40
    first = build.build(configure(data, process, 1, seed, steps), "orders_on_toys")
    plan = build.train_plan(configure(data, process, 1, seed, steps))
    later = None
    if order > 1:
        later = (steps // 2, build.build(configure(data, process, order, seed, steps), "orders_on_toys").objective)
    began = time.monotonic()
    params = common.fit(first, plan, later=later)
    return params, time.monotonic() - began


class Judge(NamedTuple):
    """Compiled once for a data set and a process: functions of the parameters alone."""

    experiment: Experiment
    log_density: Callable
    parts: Callable


@functools.cache
def judge(data: str, process: str) -> Judge:
    """The judge of all networks that learn `data` under `process`."""
    experiment = build.build(configure(data, process, 1, 0, STEPS), "orders_on_toys")
    options = {"t_min": experiment.t_min, "rtol": 1e-5, "atol": 1e-5}
    forward, law = experiment.process, experiment.terminal

    def log_density(params, x):
        key, score = jax.random.key(0), experiment.score(params)
        return likelihood.log_prob(forward, score, law, key, x, divergence=divergence.exact, **options).logp

    def parts(params, key, x0):
        true = exact.mixture_score(forward, MIXTURE)
        return diagnostics.parts(
            forward, experiment.score(params), law, key, x0, true_score=true, exact=True, **options
        )

    return Judge(experiment, parallel.jit(log_density), parallel.jit(parts))


def measure(data: str, process: str, recipe: str, seed: int, steps: int, points: int) -> dict:
    """Trains and judges one run; plain numbers."""
    params, seconds = train(data, process, recipe, seed, steps)
    experiment, log_density, parts = judge(data, process)
    found, test = {"seconds": seconds}, experiment.source.test.x[:points]
    if data == "mixture_1d":
        law = exact.mixture_marginal(experiment.process, MIXTURE, experiment.t_min)
        log_q = toy.gaussian_mixture(*law).log_prob(LINE[:, None])
        log_p = np.asarray(log_density(params, jnp.asarray(LINE[:, None], jnp.float32)), np.float64)
        found["kl"] = float(np.trapezoid(np.exp(log_q) * (log_q - log_p), LINE))
        values = parts(params, jax.random.key(seed), jnp.asarray(test))
        found |= {name: float(np.nanmean(getattr(values, name))) for name in ("j_sm", "j_diff")}
    else:
        points = np.concatenate([test, PLANE]).astype(np.float32)
        log_p = np.asarray(log_density(params, jnp.asarray(points)), np.float64)
        found["kl"] = float(np.mean(experiment.source.log_prob(test) - log_p[: len(test)]))
        log_p = log_p[len(test) :]
    return found | ({"picture": np.exp(log_p).tolist()} if seed == 0 else {})


def rows_of(found: dict[tuple, list[dict]]) -> list[tuple[str, ...]]:
    """The table: means over seeds with their standard errors."""
    rows = [("data", "process", "order", "KL, nats", "J_SM", "J_Diff", "seconds")]
    for (data, process, recipe), runs in found.items():
        words = [data, process, recipe]
        for name in ("kl", "j_sm", "j_diff", "seconds"):
            values = np.array([run[name] for run in runs if name in run])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            words.append(f"{values.mean():.3g} +- {error:.2g}" if len(values) else "")
        rows.append(tuple(words))
    return rows


def draw(path, found: dict[tuple, list[dict]]) -> None:
    """Densities of the first seed: on the line for both processes, in the plane for both and every order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    grid = figure.subplots(3, 6, gridspec_kw={"height_ratios": [1.3, 1, 1]})
    spec = grid[0, 0].get_gridspec()
    for axes in grid[0]:
        axes.remove()
    true = np.exp(toy.mixture_1d().log_prob(LINE[:, None]))
    for i, process in enumerate(PROCESSES):
        axes = figure.add_subplot(spec[0, 3 * i : 3 * i + 3])
        axes.plot(LINE, true, color="black", linewidth=2.5, alpha=0.3, label="true")
        for recipe in RECIPES:
            if (key := ("mixture_1d", process, recipe)) in found:
                axes.plot(LINE, found[key][0]["picture"], linewidth=1, label=recipe)
        axes.set(title=f"mixture_1d, {process}", ylim=(0, 2.6))
        axes.legend(fontsize=7, frameon=False)
        side = round(len(PLANE) ** 0.5)
        panels = {"true": np.exp(toy.checkerboard().log_prob(PLANE))}
        panels |= {r: found[key][0]["picture"] for r in RECIPES if (key := ("checkerboard", process, r)) in found}
        for axes, (recipe, values) in zip(grid[1 + i], panels.items()):
            axes.imshow(np.reshape(values, (side, side)), origin="lower", vmin=0, vmax=0.05, cmap="viridis")
            axes.set(title=f"{process}, {recipe}", xticks=[], yticks=[])
        for axes in grid[1 + i, len(panels) :]:
            axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = common.arguments(__doc__, "orders_on_toys")
    data, recipes, steps, seeds, points = tuple(DATA), tuple(RECIPES), STEPS, SEEDS, POINTS
    if args.fast:
        data, recipes, steps, seeds, points = ("mixture_1d",), ("1", "1 then 3"), 200, (0, 1), 200
    cases = [(d, p, r, s) for d in data for p in PROCESSES for s in seeds for r in recipes]
    found = {(d, p, r): [] for d in data for p in PROCESSES for r in recipes}
    for case in report.progress(cases, total=len(cases), unit="run"):
        key = f"{case}, {steps} steps, {points} points"
        compute = functools.partial(measure, *case, steps, points)
        found[case[:3]].append(common.memo(args.out / "runs.json", key, compute))
    draw(args.out / "densities.png", found)
    head = f"ODE models after {steps} steps (1.5 and 2.5 times as many in the last two rows), {len(seeds)} seeds"
    common.finish(args.out, [head, "", report.table(rows_of(found))])


if __name__ == "__main__":
    main()
