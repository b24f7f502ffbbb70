"""Orders 1, 2 and 3 of score matching on densities that are known, at equal steps and at equal compute.

    python -m experiments.orders_on_toys          about half an hour on 2 CPU cores

A small network learns a mixture on the line and a checkerboard in the plane under VE and VP. It is trained by the first
order, and goes on from there in five ways: by order 1, 2 or 3 for as many steps again, and by order 1 alone for as many
steps as cost what order 2 or 3 did, in XLA's own count of operations. Everything else is the same, and so are the three
seeds. Judged by the KL divergence from the data to the ODE model at t_min (quadrature on the line, fresh points in the
plane) and by what is behind it: J_SM, which first-order matching minimizes; J_Diff, which it leaves out and which is
KL - KL(T) - J_SM; and the errors of the score and of its Jacobian,

    err1 = int E sigma^2 |s - s1|^2 dt,  err2 = int E sigma^4 |J - s2|_F^2 dt.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import vp_checkerboard
from experiments import common
from scoreflow import configure, divergence, likelihood, train
from scoreflow.data import toy
from scoreflow.experiment import Experiment
from scoreflow.objectives import times
from scoreflow.runs import parallel, report
from scoreflow.types import Params

DATA = {"mixture_1d": 0.62, "checkerboard": 2.3}  # root mean squares
PROCESSES = {
    "VE": {"name": "ve_geometric", "sigma_min": 0.01, "sigma_max": 50.0, "horizon": 1.0},
    "VP": {"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0},
}
# how training goes on: the order, and the order whose cost it gets to spend
RECIPES = {"1": (1, 1), "2": (2, 1), "3": (3, 1), "1, cost of 2": (1, 2), "1, cost of 3": (1, 3)}
# the coefficients of the published toy experiments
LOSS = {"name": "high_order", "method": "exact", "coefficient2": 0.5, "coefficient2_trace": 0.0, "coefficient3": 0.1}
STEPS, SEEDS, POINTS, CHUNK = 3000, (0, 1, 2), 20_000, 50
LINE = np.linspace(-1.6, 1.8, 1201, dtype=np.float32)
PLANE = np.stack(np.meshgrid(*2 * [np.linspace(-4.4, 4.4, 60, dtype=np.float32)]), axis=-1).reshape(-1, 2)


def config_of(data: str, process: str, order: int, seed: int, steps: int, *, first: bool) -> ConfigDict:
    """The config of a run's first or second half."""
    config = vp_checkerboard.get_config()
    config.seed, config.data.name = seed, data
    config.process.update(PROCESSES[process])
    config.score.update({"prediction": "noise", "sigma_data": DATA[data]})
    config.model.update({"name": "mlp", "width": 64, "depth": 3, "dropout": 0.0, "dtype": "float32"})
    config.weight.name, config.sample_times.name = "noise", "stratified"
    config.training.update({"steps": steps, "batch_size": 256, "steps_per_dispatch": CHUNK, "learning_rate": 1e-3})
    config.training.update({"warmup": 50 if first else 0, "schedule": "constant" if first else "cosine", "skip": 10})
    if order > 1:
        config.loss.update({**LOSS, "order": order, "power2": 2, "power3": 1})
    return config


def make(
    data: str, process: str, order: int, seed: int, steps: int, *, first: bool = False
) -> tuple[Experiment, train.TrainOptions]:
    """The experiment, and how it is trained."""
    config = config_of(data, process, order, seed, steps, first=first)
    experiment = configure.experiment(config, "orders_on_toys")
    return experiment, configure.train_options(config, experiment)


@functools.cache
def cost(data: str, order: int) -> float:
    """Operations of the gradient of one batch, in XLA's count, in units of order 1; the same for both processes."""

    def count(order):
        experiment, options = make(data, "VP", order, 0, CHUNK)
        params = experiment.init(jax.random.key(0))
        batch = {"x": jnp.asarray(experiment.data.train.x[: options.batch_size])}
        loss = lambda params: experiment.objective(params, jax.random.key(0), batch, train=True)[0]
        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    return 1.0 if order == 1 else count(order) / count(1)


class Judge(NamedTuple):
    """Compiled once for a data set and a process.

    Attributes:
      experiment: any of its experiments.
      log_density: (params, x [N, d]) -> log p_{t_min} [N] of the ODE model, nats.
      errors: params -> j_sm, err1, err2.
      kl_end: KL of the noised data at T from the terminal distribution, nats.
    """

    experiment: Experiment
    log_density: Callable
    errors: Callable
    kl_end: float


@functools.cache
def judge(data: str, process: str, points: int) -> Judge:
    """The judge of all networks that learn `data` under `process`: the same points, times and noise for all."""
    experiment, _ = make(data, process, 1, 0, CHUNK)
    model, t_min = experiment.model, experiment.model.t_min
    forward, terminal = model.process, model.terminal(None)
    x0 = jnp.asarray(experiment.data.test.x[:points])
    log_q = experiment.data.log_density

    def log_density(params, x):
        options = {"t_min": t_min, "divergence": divergence.exact, "rtol": 1e-5, "atol": 1e-5}
        return likelihood.log_prob(forward, model.score(params), terminal, jax.random.key(0), x, **options).logp

    def errors(params):
        score, integrals = model.score(params), []
        for i, sample_times in enumerate((times.importance, times.stratified)):
            t, inv_density = sample_times(forward, jax.random.key(i), len(x0), t_min=t_min)
            xt, _, sigma = forward.perturb(jax.random.key(2 + i), x0, t)

            def errors_at(x, t, alpha, sigma):
                """sigma (s - s1) and sigma^2 (J - s2) at one point."""
                error = lambda x: sigma * (score(x[None], t[None])[0] - jax.grad(log_q)(x, alpha, sigma))
                return error(x), sigma * jax.jacfwd(error)(x)

            first, second = jax.vmap(errors_at)(xt, t, forward.alpha(t), sigma)
            first, second = jnp.sum(first**2, axis=1), jnp.sum(second**2, axis=(1, 2))
            weight = 0.5 * forward.diffusion_sq(t) / sigma**2
            integrals.append([jnp.mean(inv_density * value) for value in (weight * first, first, second)])
        (j_sm, _, _), (_, err1, err2) = integrals
        return {"j_sm": j_sm, "err1": err1, "err2": err2}

    x_end = forward.perturb(jax.random.key(9), x0, jnp.full(len(x0), forward.horizon)).xt
    log_q_end = jax.vmap(lambda x: log_q(x, forward.alpha(forward.horizon), forward.sigma(forward.horizon)))(x_end)
    kl_end = float(jnp.mean(log_q_end - terminal.log_prob(x_end)))
    return Judge(experiment, parallel.jit(log_density), parallel.jit(errors), kl_end)


def score_run(params: Params, data: str, process: str, points: int, *, picture: bool) -> dict:
    """KL and what is behind it, of one network; plain numbers."""
    experiment, log_density, errors, kl_end = judge(data, process, points)
    forward, t_min = experiment.model.process, experiment.model.t_min
    noised = jax.vmap(lambda x: experiment.data.log_density(x, forward.alpha(t_min), forward.sigma(t_min)))
    if data == "mixture_1d":
        log_p, log_q = (
            np.asarray(f(LINE[:, None]), np.float64) for f in (functools.partial(log_density, params), noised)
        )
        kl = float(np.trapezoid(np.exp(log_q) * (log_q - log_p), LINE))
    else:
        x0 = jnp.asarray(experiment.data.test.x[-points // 10 :])
        x = forward.perturb(jax.random.key(8), x0, jnp.full(len(x0), t_min)).xt
        kl = float(np.mean(np.asarray(noised(x), np.float64) - np.asarray(log_density(params, x), np.float64)))
        log_p = np.asarray(log_density(params, PLANE)) if picture else None
    values = {"kl": kl, **{name: float(value) for name, value in errors(params).items()}}
    values["j_diff"] = kl - kl_end - values["j_sm"]
    return values | ({"picture": np.exp(log_p).round(5).tolist()} if picture else {})


def measure(data: str, process: str, seed: int, recipes: tuple[str, ...], steps: int, points: int) -> dict:
    """The first half of a seed's training, then each way to go on; recipe -> numbers."""
    halfway = train.fit_experiment(*make(data, process, 1, seed, steps, first=True))
    results = {"half": score_run(halfway, data, process, points, picture=False)}
    for recipe in recipes:
        order, spend = RECIPES[recipe]
        count = round(steps * (cost(data, spend) if spend > 1 else 1) / CHUNK) * CHUNK
        began = time.monotonic()
        experiment, options = make(data, process, order, seed, count)
        params = train.fit_experiment(experiment, options, jax.tree.map(jnp.copy, halfway))
        seconds = time.monotonic() - began
        values = score_run(params, data, process, points, picture=seed == 0)
        results[recipe] = {"steps": count, "seconds": seconds} | values
    return results


def rows_of(results: dict[tuple[str, str], list[dict]]) -> list[tuple[str, ...]]:
    """The table: means over seeds with their standard errors."""
    names = {"kl": "KL, nats", "j_sm": "J_SM", "j_diff": "J_Diff", "err1": "err1", "err2": "err2"}
    rows = [("data", "process", "goes on by order", "steps", "seconds", *names.values())]
    for (data, process), runs in results.items():
        for recipe in runs[0]:
            values = [run[recipe] for run in runs]
            cells = [data, process, "(before)" if recipe == "half" else recipe, str(values[0].get("steps", ""))]
            cells.append(f"{np.mean([value['seconds'] for value in values]):.0f}" if recipe != "half" else "")
            cells += [common.with_error([value[name] for value in values], 2) for name in names]
            rows.append(tuple(cells))
    return rows


def draw(path: Path, results: dict[tuple[str, str], list[dict]]) -> None:
    """Densities of the first seed: a row for each data set and process, a panel for the truth and each recipe."""
    line = np.exp(toy.gaussian_mixture(*toy.MIXTURES["mixture_1d"]).log_prob(LINE[:, None]))
    plane, side = np.exp(toy.checkerboard().log_prob(PLANE)), round(len(PLANE) ** 0.5)
    with common.panels(path, len(results), 1 + len(RECIPES), (12, 2.1 * len(results))) as axes_of:
        for row, ((data, process), runs) in zip(axes_of, results.items()):
            pictures = {recipe: run["picture"] for recipe, run in runs[0].items() if "picture" in run}
            for axes in row[1 + len(pictures) :]:
                axes.remove()
            for axes, (recipe, values) in zip(row, {"true": None, **pictures}.items()):
                axes.set_title("true" if values is None else f"{process}, {recipe}", fontsize=9)
                axes.set(xticks=[], yticks=[])
                if data == "mixture_1d":
                    axes.fill_between(LINE, line, color="0.8")
                    axes.set_ylim(0, 4)
                    if values is not None:
                        axes.plot(LINE, values, color="black", linewidth=0.8)
                else:
                    density = np.reshape(plane if values is None else values, (side, side))
                    axes.imshow(density, origin="lower", vmin=0, vmax=0.06, cmap="viridis")


def main() -> None:
    args = common.arguments(__doc__, "orders_on_toys")
    data, processes, recipes, steps, seeds, points = DATA, PROCESSES, tuple(RECIPES), STEPS, SEEDS, POINTS
    if args.fast:
        data, processes, recipes, steps, seeds, points = ("mixture_1d",), ("VE",), ("1", "3"), 300, (0,), 1000
    results: dict[tuple[str, str], list[dict]] = {(d, p): [] for d in data for p in processes}
    cases = [(*pair, seed) for pair in results for seed in seeds]
    for case in report.progress(cases, total=len(cases), unit="run"):
        key = f"{case}, {recipes}, {steps} steps, {points} points"
        compute = functools.partial(measure, *case, recipes, steps, points)
        results[case[:2]].append(common.memo(args.out / "runs.json", key, compute))
    draw(args.out / "densities.png", results)
    paid = ", ".join(f"{cost(d, order):.2f} of order {order} on {d}" for d in data for order in (2, 3))
    head = f"{steps} steps of order 1, then as said; {len(seeds)} seeds, mean ± standard error. Cost of a step: {paid}"
    common.finish(args.out, [head, "", report.table(rows_of(results))])


if __name__ == "__main__":
    main()
