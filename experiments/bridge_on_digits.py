"""Digits at shorter diffusion times, with and without a bridge.

    python -m experiments.bridge_on_digits          about 30 minutes on 2 CPU cores

One model of `configs/vp_digits.py`, trained to T = 1, is used as it is at T = 0.1, 0.2, 0.4, 0.6 and 1 with the
terminal distributions of `configs/digits_bridge.py`, and with a generator without a density (2,000 draws of the
mixture, stored as images and noised to T).

    bits/dim    of the ODE, uniform dequantization, 360 test digits; bound: of the SDE, by the profile over T
    NFE         of the likelihood's solver; of the sampler 40 T steps, and where it says so 40
    frechet     of 1,000 samples, with precision and recall
    fit, s      seconds of fitting or training the terminal distribution

Standard errors are over test digits, of one training run.
"""

import functools
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_bridge, vp_digits
from experiments import common
from scoreflow import configure, likelihood, train
from scoreflow.evaluate import Evaluation
from scoreflow.experiment import INIT, Experiment
from scoreflow.metrics import mean_estimate
from scoreflow.models import MAIN, TERMINAL
from scoreflow.runs import caches, report
from scoreflow.terminal import families, mixture, prior
from scoreflow.types import Params

HORIZONS = (0.1, 0.2, 0.4, 0.6, 1.0)
TERMINALS = tuple(digits_bridge.VARIANTS)
METRICS, DENSITIES = ("frechet", "precision", "recall"), ("bits", "bound")


class Bridged(NamedTuple):
    """A score model that begins with a terminal distribution at some T.

    Attributes:
      experiment: the model and its data.
      evaluation: how it is measured.
      params: of the score, and of the terminal distribution where it has any.
      seconds: of fitting or training the terminal distribution.
    """

    experiment: Experiment
    evaluation: Evaluation
    params: Params
    seconds: float = 0.0


def make(
    name: str, t: float, *, fast: bool, trained: bool = True, scale_steps: bool = True
) -> tuple[Experiment, train.TrainOptions, Evaluation]:
    """The experiment with a terminal distribution at T = t, how it is trained, and how it is measured.

    Args:
      name: of the terminal distribution.
      t: the horizon.
      fast: whether everything is small.
      trained: whether the score is there already; otherwise training is that of the score.
      scale_steps: whether a shorter horizon takes its share of the sampler's steps.
    """
    config = digits_bridge.get_config(name)
    config.process.horizon = t
    config.init_from = "in memory" if trained else ""
    if not trained:
        config.training.update(vp_digits.get_config().training)
    config.sampling.scale_steps = scale_steps
    config.eval.update({"draws": 1, "num_samples": 1000, "baseline": False, "bound_times": 100, "horizons": (t,)})
    config.eval.solver = "adaptive"
    if fast:
        config.model.update(common.SMALL_MLP)
        config.training.update({"steps": min(config.training.steps, 8), "warmup": 0, "batch_size": 16})
        config.eval.update({"num_test": 24, "batch_size": 24, "num_samples": 100, "bound_times": 4})
        config.eval.update({"rtol": 1e-2, "atol": 1e-2})
        if name == "glow":
            config.terminal.update({"steps": 1, "width": 4})
    experiment = configure.experiment(config, "bridge_on_digits")
    return experiment, configure.train_options(config, experiment), configure.evaluation(config, caches.folder())


def with_terminal(name: str, t: float, score: Params, fast: bool) -> Bridged:
    """Fits a terminal distribution at T = t, and trains it where it is learned by gradient."""
    experiment, options, evaluation = make(name, t, fast=fast)
    if not experiment.model.fits:
        return Bridged(experiment, evaluation, score)
    began = time.monotonic()
    fitted = experiment.model.fits[TERMINAL](None, jax.random.fold_in(experiment.key(INIT), 1))
    params = {MAIN: score, TERMINAL: jax.block_until_ready(fitted)}
    if options.steps:
        params = train.fit_experiment(experiment, options, jax.tree.map(jnp.copy, params))
    return Bridged(experiment, evaluation, params, time.monotonic() - began)


def densities(models: dict[str, Bridged]) -> dict[str, dict]:
    """Bits/dim of the ODE with every terminal distribution, from one solve: they differ in log p of x(T) alone."""
    experiment, evaluation, params, _ = models["prior"]
    context, process = evaluation.context(experiment, params), experiment.model.process
    options = {name: getattr(evaluation.options, name) for name in ("rtol", "atol", "max_steps")}
    examples = context.examples()

    def solve(params, keys, x, cond):
        score = experiment.model.score(params["prior"])
        solution = likelihood.log_prob(process, score, prior(process), keys, x, t_min=context.start, **options)
        terminals = {name: model.experiment.model.terminal(params[name]) for name, model in models.items()}
        ends = {name: terminal.log_prob(solution.last) for name, terminal in terminals.items()}
        return solution.integral, solution.nfe, ends

    run, all_params = context.in_batches(solve), {name: model.params for name, model in models.items()}
    integral, nfe, ends = run("densities", all_params, examples.keys, examples.x, examples.cond)
    bits = {name: mean_estimate(context.in_unit(integral + end, examples.log_q)) for name, end in ends.items()}
    return {name: {"bits": b.value, "bits_error": b.stderr, "nfe": float(nfe.mean())} for name, b in bits.items()}


def bound(model: Bridged) -> dict[str, float]:
    """The SDE's bound with the model's own terminal distribution."""
    (row,) = common.measure(model.experiment, model.evaluation, model.params, only=("horizons",))["horizons"]
    estimate = row.get("fitted", row["prior"])
    return {"bound": estimate.value, "bound_error": estimate.stderr}


def samples(model: Bridged, out: Path) -> dict[str, float]:
    """Metrics of samples."""
    metrics = common.measure(model.experiment, model.evaluation, model.params, out, only=("samples",))
    of_model = metrics["samples"]["model"]
    quality = {name: of_model[name].value for name in METRICS}
    return quality | {"sample_nfe": of_model["sample_nfe"], "fit_seconds": model.seconds}


def pushforward(model: Bridged) -> Bridged:
    """The same score, begun with noised images that the fitted mixture of clean data generates."""
    model, space = model._replace(seconds=0.0), model.experiment.space
    clean = model.experiment.model.terminal(model.params, 0.0).sample(jax.random.key(7), (2000, *space.shape))
    images = space.decode(model.params, jax.random.key(9), clean)
    pool = space.encode(model.params, jax.random.key(8), images)
    own = model.experiment.model._replace(family=families.pushforward(lambda path: pool))
    return model._replace(experiment=model.experiment._replace(model=own))


def reused(t: float, score: Params, names: tuple[str, ...], fast: bool, out: Path) -> dict[str, dict]:
    """The model of T = 1 at T = t with every terminal distribution."""
    models = {name: with_terminal(name, t, score, fast) for name in names}
    measures = densities(models)
    for name, model in models.items():
        measures[name] |= bound(model) | samples(model, out / f"{name}_{t:g}")
    if "dirichlet" in models:
        experiment, _, params, _ = models["dirichlet"]
        measures["dirichlet"]["active"] = mixture.active(experiment.model.terminal(params))
    if "mixture" in models:
        fitted = models["mixture"]
        measures["pushforward"] = samples(pushforward(fitted), out / f"pushforward_{t:g}")
        all_steps, _, _ = make("mixture", t, fast=fast, scale_steps=False)
        longer = fitted._replace(experiment=all_steps, seconds=0.0)
        measures["mixture, 40 steps"] = samples(longer, out / f"mixture_40_{t:g}")
    return measures


def rows_of(results: dict[float, dict]) -> list[tuple[str, ...]]:
    """One row for each T and terminal distribution."""
    rows = [("T", "terminal", "bits/dim", "bound", "NFE", *METRICS, "sample NFE", "fit, s")]
    for t, measures in results.items():
        for name, values in measures.items():
            cells = [f"{values[k]:.3f} ± {values[k + '_error']:.3f}" if k in values else "-" for k in DENSITIES]
            cells.append(f"{values['nfe']:.0f}" if "nfe" in values else "-")
            cells += [f"{values['frechet']:.2f}", *(f"{values[k]:.3f}" for k in METRICS[1:])]
            rows.append((f"{t:g}", name, *cells, f"{values['sample_nfe']:.0f}", f"{values['fit_seconds']:.0f}"))
    return rows


def main() -> None:
    args = common.arguments(__doc__, "bridge_on_digits")
    horizons, names = ((0.2,), ("prior", "mixture")) if args.fast else (HORIZONS, TERMINALS)
    records, size = args.out / "runs.json", "fast" if args.fast else "full"
    experiment, options, _ = make("prior", 1.0, fast=args.fast, trained=False)
    fit = functools.partial(train.fit_experiment, experiment, options)
    base = common.memo_params(args.out / f"first_{size}.npz", experiment, fit)
    results = {}
    for t in report.progress(horizons, total=len(horizons), unit="horizon"):
        compute = functools.partial(reused, t, base, names, args.fast, args.out)
        results[t] = common.memo(records, f"T = {t}, {size}", compute)
    draw(args.out / "bits_per_dim.png", results)
    lines = ["360 test digits, one training run", "", report.table(rows_of(results))]
    active = [(t, measures["dirichlet"]["active"]) for t, measures in results.items() if "dirichlet" in measures]
    if active:
        counts = ", ".join(f"{count} at T = {t:g}" for t, count in active)
        lines += ["", f"components of the Dirichlet mixture with a weight above 0.01: {counts}"]
    common.finish(args.out, lines)


def draw(path: Path, results: dict[float, dict]) -> None:
    """Bits/dim and Frechet distance against T with each terminal distribution, of the network trained to T = 1."""
    curves = {}
    for t, measures in results.items():
        for name, values in measures.items():
            curves.setdefault(name, []).append((t, values.get("bits", np.nan), values["frechet"]))
    with common.panels(path, 1, 2, (9.5, 3.8)) as axes_of:
        left, right = axes_of[0]
        for marker, (name, points) in zip("os^Dv<>x*", curves.items()):
            t, bits, frechet = np.array(points).T
            left.plot(t, bits, marker=marker, fillstyle="none", label=name)
            right.semilogy(t, frechet, marker=marker, fillstyle="none", label=name)
        left.set(xlabel="T", ylabel="bits/dim of the ODE, test digits")
        right.set(xlabel="T", ylabel="Frechet distance of samples")
        right.legend(frameon=False)


if __name__ == "__main__":
    main()
