"""The digits with a constrained, an unconstrained and a quasi-conservative score.

    python -m experiments.conservative_on_digits          50 minutes on 2 CPU cores

By the settings of `configs/digits_conservative.py`: one model of `configs/vp_digits.py` is trained and fine-tuned with
each of two seeds, as it was (U) and with the penalty at two weights (QC, with its lambda); C, the gradient of an
energy, is trained once from scratch for as many steps as the others took in all. On test digits and samples of each:

    bits/dim, NFE      of the ODE with uniform dequantization, and evaluations that its solver took
    weighted, nasym    sigma^2 |J - J^T|^2 / 2 and the share of |J|^2 that is antisymmetric, means over t; curves too
    frechet ...        of 1,000 samples
    NFE by tolerance   of the adaptive sampler, from the same starts

Standard errors are over fine-tuning seeds: what another first model would change is not in them.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_conservative, vp_digits
from experiments import common
from scoreflow import configure, train
from scoreflow.evaluate import Evaluation
from scoreflow.evaluators.symmetry import symmetry_metrics
from scoreflow.experiment import Experiment
from scoreflow.runs import caches, report
from scoreflow.types import Params

# variant of the config, and lambda
RECIPES = {"U": ("u", 0.0), "QC 0.001": ("qc", 0.001), "QC 10": ("qc", 10.0), "C": ("c", 0.0)}
SEEDS = (0, 1)
NAMES = ("bits_per_dim", "nfe", "weighted", "nasym", "frechet", "precision", "recall", "confidence")


def make(recipe: str | None, seed: int, *, fast: bool) -> tuple[Experiment, train.TrainOptions, Evaluation]:
    """The experiment, how it is trained, and how it is measured; of the first model where no recipe is named."""
    if recipe is None:
        config = vp_digits.get_config()
    else:
        variant, coefficient = RECIPES[recipe]
        config = digits_conservative.get_config(variant)
        if variant == "qc":
            config.penalty.coefficient = coefficient
    config.seed, config.init_from = seed, ""
    config.eval.update({"solver": "adaptive", "draws": 1, "check": 24, "num_samples": 1000, "baseline": False})
    config.eval.update({"symmetry": 40, "symmetry_probes": 4, "tolerances": 20})
    if fast:
        config.model.update(common.SMALL_MLP)
        config.training.update({"steps": 8, "warmup": 2, "batch_size": 16})
        config.eval.update({"draws": 1, "num_test": 24, "batch_size": 24, "check": 24, "num_samples": 100})
        config.eval.update({"rtol": 1e-2, "atol": 1e-2, "symmetry": 24, "symmetry_times": 3, "tolerances": 4})
        config.eval.update({"rtols": (1e-2, 1e-3), "atols": (1e-3,)})
    experiment = configure.experiment(config, "conservative_on_digits")
    return experiment, configure.train_options(config, experiment), configure.evaluation(config, caches.folder())


def run(recipe: str, seed: int, base: Params, fast: bool, out: Path) -> dict:
    """Trains and measures; plain numbers."""
    experiment, options, evaluation = make(recipe, seed, fast=fast)
    start = None if RECIPES[recipe][0] == "c" else jax.tree.map(jnp.copy, base)
    path = out / f"{recipe.replace(' ', '_')}_{seed}_{'fast' if fast else 'full'}.npz"
    fit = functools.partial(train.fit_experiment, experiment, options, start)
    params = common.memo_params(path, experiment, fit)
    folder, measured = out / recipe.replace(" ", "_"), ("likelihood", "tolerances", "samples")
    metrics = common.measure(experiment, evaluation, params, folder, measured)
    settings = experiment.config["eval"]
    counts = (settings[name] for name in ("symmetry", "symmetry_times", "symmetry_probes"))
    symmetry, curves = symmetry_metrics(evaluation.context(experiment, params), *counts)
    likelihood, of_model = metrics["likelihood"], metrics["samples"]["model"]
    values = {name: of_model[name].value for name in ("frechet", "precision", "recall", "confidence")}
    values |= {"nfe": likelihood["likelihood_nfe"], "bits_per_dim": likelihood["bits_per_dim"].value}
    values |= {name: mean.value for name, mean in symmetry.items()}
    over_time = {name: [float(v) for v in curves.values[name]] for name in ("weighted", "nasym")}
    tolerances = [[row["rtol"], row["atol"], row["nfe"].value, row["apart"]] for row in metrics["tolerances"]]
    return values | {"t": [float(t) for t in curves.t], "over_time": over_time, "tolerances": tolerances}


def rows_of(results: dict[str, list[dict]], costs: dict[str, list]) -> list[tuple[str, ...]]:
    """The first table: means over seeds with their standard errors."""
    rows = [("score", "s / step", "MiB / step", *(name.replace("_", " ") for name in NAMES))]
    for recipe, runs in results.items():
        _, memory, seconds = costs[RECIPES[recipe][0]]
        cells = [common.with_error([run[name] for run in runs], 4) for name in NAMES]
        rows.append((recipe, f"{seconds:.3f}", f"{memory / 2**20:.0f}", *cells))
    return rows


def tolerance_rows(results: dict[str, list[dict]]) -> list[tuple[str, ...]]:
    """The second: evaluations for each pair of tolerances, a column per score."""
    rows = [("rtol", "atol", *results)]
    pairs = [tuple(row[:2]) for row in next(iter(results.values()))[0]["tolerances"]]
    for i, (rtol, atol) in enumerate(pairs):
        cells = [common.with_error([run["tolerances"][i][2] for run in runs], 4) for runs in results.values()]
        rows.append((f"{rtol:.0e}", f"{atol:.0e}", *cells))
    return rows


def main() -> None:
    args = common.arguments(__doc__, "conservative_on_digits")
    recipes, seeds = (("U", "QC 10"), (0,)) if args.fast else (tuple(RECIPES), SEEDS)
    records, size = args.out / "runs.json", "fast" if args.fast else "full"
    costs = {}
    for variant in sorted({RECIPES[recipe][0] for recipe in recipes}):
        recipe = next(name for name in recipes if RECIPES[name][0] == variant)

        def cost(recipe=recipe):
            experiment, options, _ = make(recipe, 0, fast=args.fast)
            return list(common.step_cost(experiment, options, repeats=2 if args.fast else 20))

        costs[variant] = common.memo(records, f"cost of {variant}, {size}", cost)
    experiment, options, _ = make(None, 0, fast=args.fast)
    fit = functools.partial(train.fit_experiment, experiment, options)
    base = common.memo_params(args.out / f"first_{size}.npz", experiment, fit)
    results = {recipe: [] for recipe in recipes}
    cases = [(recipe, seed) for seed in seeds for recipe in recipes if seed == seeds[0] or recipe != "C"]
    for recipe, seed in report.progress(cases, total=len(cases), unit="run"):
        compute = functools.partial(run, recipe, seed, base, args.fast, args.out)
        results[recipe].append(common.memo(records, f"{recipe}, seed {seed}, {size}", compute))
    panels = {
        name: {recipe: np.mean([run["over_time"][name] for run in runs], axis=0) for recipe, runs in results.items()}
        for name in ("weighted", "nasym")
    }
    report.plot_times(args.out / "asymmetry.png", np.array(results[recipes[0]][0]["t"]), panels)
    head = f"{len(seeds)} seeds of fine-tuning one model (C: one run), mean ± standard error over them"
    lines = [head, "", report.table(rows_of(results, costs))]
    lines += ["", "evaluations of the score by the adaptive sampler", report.table(tolerance_rows(results))]
    common.finish(args.out, lines)


if __name__ == "__main__":
    main()
