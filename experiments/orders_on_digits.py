"""The digits fine-tuned by orders 1, 2 and 3 of score matching, at equal steps and at equal compute.

    python -m experiments.orders_on_digits          25 to 30 minutes on 2 CPU cores

One model of `configs/vp_digits.py` is trained, and fine-tuned from there in five ways with each of two seeds, by the
settings of `configs/digits_orders.py`: by order 1, 2 or 3 for the same number of steps, and by order 1 alone for as
many steps as cost what order 2 or 3 did, in XLA's own count of operations. Bits/dim of the ODE (uniform dequantization)
and the bound of the SDE on the test digits; Frechet distance, precision, recall and class confidence of samples;
seconds and temporary memory of a step. Standard errors are over the fine-tuning seeds: what another first model would
change is not in them.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import digits_orders, vp_digits
from experiments import common
from scoreflow import configure, train
from scoreflow.evaluate import Evaluation
from scoreflow.experiment import Experiment
from scoreflow.runs import caches, report
from scoreflow.types import Params

# how training goes on: the order, and the order whose cost it gets to spend
RECIPES = {"1": (1, 1), "2": (2, 1), "3": (3, 1), "1, cost of 2": (1, 2), "1, cost of 3": (1, 3)}
STEPS, SEEDS = 300, (0, 1)


def config_of(order: int, seed: int, steps: int, *, fast: bool) -> ConfigDict:
    """The config of a fine-tuning run; of the first model where order is 0."""
    config = digits_orders.get_config(str(order)) if order else vp_digits.get_config()
    config.seed, config.init_from = seed, ""
    if order:
        config.training.update({"steps": steps, "warmup": min(50, steps // 4)})
    if order > 1:
        config.loss.ramp = min(100, steps // 2)
    config.eval.update({"solver": "adaptive", "draws": 2, "bound_times": 50, "num_samples": 1000, "baseline": False})
    if fast:
        config.model.update(common.SMALL_MLP)
        config.training.update({"batch_size": 16})
        config.eval.update({"draws": 1, "num_test": 24, "batch_size": 24, "check": 24, "bound_times": 4})
        config.eval.update({"num_samples": 100, "rtol": 1e-2, "atol": 1e-2})
        if not order:
            config.training.update({"steps": steps, "warmup": steps // 4})
    return config


def make(order: int, seed: int, steps: int, *, fast: bool) -> tuple[Experiment, train.TrainOptions, Evaluation]:
    """The experiment, how it is trained, and how it is measured."""
    config = config_of(order, seed, steps, fast=fast)
    experiment = configure.experiment(config, "orders_on_digits")
    return experiment, configure.train_options(config, experiment), configure.evaluation(config, caches.folder())


def cost(order: int, fast: bool) -> common.StepCost:
    """Of one step of an order."""
    experiment, options, _ = make(order, 0, 200, fast=fast)
    return common.step_cost(experiment, options, repeats=2 if fast else 20)


def measure(params: Params, experiment: Experiment, evaluation: Evaluation, out: Path) -> dict[str, float]:
    """What `--mode=eval` would say; plain numbers."""
    metrics = common.measure(experiment, evaluation, params, out)
    likelihood, of_model = metrics["likelihood"], metrics["samples"]["model"]
    values = {name: likelihood[name].value for name in ("bits_per_dim", "bound")}
    names = ("frechet", "precision", "recall", "confidence")
    return values | {"nfe": likelihood["likelihood_nfe"]} | {name: of_model[name].value for name in names}


def run(
    recipe: str, seed: int, steps: int, costs: dict[int, list], base: Params, fast: bool, out: Path
) -> dict[str, float]:
    """Fine-tunes and measures."""
    order, spend = RECIPES[recipe]
    count = round(steps * costs[spend][0] / costs[1][0])
    experiment, options, evaluation = make(order, seed, count, fast=fast)
    params = train.fit_experiment(experiment, options, jax.tree.map(jnp.copy, base))
    folder = out / recipe.replace(", ", "_").replace(" ", "_")
    return {"steps": count} | measure(params, experiment, evaluation, folder)


def first_model(out: Path, steps: int, fast: bool) -> Params:
    """The first model's averaged parameters, from its file if it is there."""
    experiment, options, _ = make(0, 0, steps, fast=fast)
    fit = functools.partial(train.fit_experiment, experiment, options)
    return common.memo_params(out / f"first_{'fast' if fast else 'full'}.npz", experiment, fit)


def rows_of(results: dict[str, list[dict]], costs: dict[int, list]) -> list[tuple[str, ...]]:
    """The table: means over seeds with their standard errors."""
    names = ("bits_per_dim", "bound", "nfe", "frechet", "precision", "recall", "confidence")
    rows = [("goes on by order", "steps", "s / step", "MiB / step", *(name.replace("_", " ") for name in names))]
    for recipe, runs in results.items():
        cells = [recipe, str(runs[0].get("steps", "")), "", ""]
        if recipe in RECIPES:
            _, memory, seconds = costs[RECIPES[recipe][0]]
            cells[2:] = [f"{seconds:.3f}", f"{memory / 2**20:.0f}"]
        cells += [common.with_error([run[name] for run in runs], 4) for name in names]
        rows.append(tuple(cells))
    return rows


def main() -> None:
    args = common.arguments(__doc__, "orders_on_digits")
    recipes, steps, seeds = tuple(RECIPES), STEPS, SEEDS
    if args.fast:
        recipes, steps, seeds = ("2",), 8, (0,)
    records, size = args.out / "runs.json", f"{'fast' if args.fast else 'full'}, {steps} steps"
    orders = sorted({1}.union(*(RECIPES[recipe] for recipe in recipes)))
    costs = {k: common.memo(records, f"cost {k}, {size}", lambda k=k: list(cost(k, args.fast))) for k in orders}
    base = first_model(args.out, steps, args.fast)

    def first():
        experiment, _, evaluation = make(0, 0, steps, fast=args.fast)
        return measure(base, experiment, evaluation, args.out / "before")

    results = {"(before)": [common.memo(records, f"before, {size}", first)], **{recipe: [] for recipe in recipes}}
    cases = [(recipe, seed) for seed in seeds for recipe in recipes]
    for recipe, seed in report.progress(cases, total=len(cases), unit="run"):
        compute = functools.partial(run, recipe, seed, steps, costs, base, args.fast, args.out)
        results[recipe].append(common.memo(records, f"{recipe}, seed {seed}, {size}", compute))
    bits = {
        recipe: [[run["steps"], run["bits_per_dim"]] for run in runs]
        for recipe, runs in results.items()
        if runs[0].get("steps")
    }
    operations = {recipe: costs[RECIPES[recipe][0]][0] / costs[1][0] for recipe in bits}
    draw(args.out / "bits_per_dim.png", bits, operations, results["(before)"][0]["bits_per_dim"])
    paid = ", ".join(f"{costs[k][0] / costs[1][0]:.2f} of order {k}" for k in orders if k > 1)
    head = (
        f"{len(seeds)} seeds of fine-tuning one model, mean +- standard error over them. Operations of a step: {paid}"
    )
    common.finish(args.out, [head, "", report.table(rows_of(results, costs))])


def draw(path: Path, bits: dict[str, list], operations: dict[str, float], before: float) -> None:
    """Bits/dim against what was spent, in steps of order 1."""
    with common.panels(path, 1, 1, (6, 4)) as axes_of:
        axes = axes_of[0, 0]
        axes.axhline(before, color="black", linewidth=1, linestyle=":", label="before")
        for marker, (recipe, runs) in zip("os^Dv", bits.items()):
            steps, values = np.array(runs).T
            axes.plot(steps * operations[recipe], values, marker, fillstyle="none", label=recipe)
        axes.set(xlabel="fine-tuning, in operations of a step of order 1", ylabel="bits/dim of the ODE, test digits")
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
