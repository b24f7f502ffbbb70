"""Digits at shorter diffusion times, with and without a bridge.

    python -m experiments.bridge_on_digits          about 30 minutes on 2 CPU cores

One model of `configs/vp_digits.py`, trained to T = 1, is used as it is at T = 0.1, 0.2, 0.4, 0.6 and 1 with the
terminal laws of `configs/digits_bridge.py`, and with a generator without a density (2,000 draws of the mixture, stored
as images and diffused to T).

    bits/dim    of the ODE, uniform dequantization, 360 test digits; bound: of the SDE, by the profile over T
    NFE         of the likelihood's solver; of the sampler 40 T steps, and where it says so 40
    frechet     of 1,000 samples, with precision and recall
    fit, s      seconds of fitting or training the law

Standard errors are over test digits, of one training run.
"""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scoreflow.evaluators.density import dequantised, in_batches, units

from configs import digits_bridge, vp_digits
from experiments import common
from scoreflow import configure, likelihood, terminal
from scoreflow.evaluators import sample_metrics
from scoreflow.evaluators.horizons import horizon_metrics
from scoreflow.experiment import INIT
from scoreflow.metrics import mean_estimate
from scoreflow.models import MAIN, TERMINAL
from scoreflow.runs import caches, report
from scoreflow.terminal import mixture

HORIZONS = (0.1, 0.2, 0.4, 0.6, 1.0)
LAWS = tuple(digits_bridge.VARIANTS)
METRICS, RATED = ("frechet", "precision", "recall"), ("bits", "bound")


def make(law: str, t: float, *, fast: bool, alone: bool = True, scale_steps: bool = True):
    """The experiment, its training plan and its evaluation plan. `alone`: the score is there already."""
    config = digits_bridge.get_config(law)
    config.process.horizon, config.init_from = t, ""
    if not alone:
        config.training = vp_digits.get_config().training
    config.training.update({"log_every": 0, "validate_every": 0, "checkpoint_every": 0})
    config.sampling.scale_steps = scale_steps
    config.eval.update({"draws": 1, "num_samples": 1000, "baseline": False, "bound_times": 100, "horizons": (t,)})
    if fast:
        config.model = ConfigDict({"name": "mlp", "width": 32, "depth": 2, "dropout": 0.0, "dtype": "float32"})
        config.training.update({"steps": min(config.training.steps, 8), "warmup": 0, "batch_size": 16})
        config.eval.update({"num_test": 24, "batch_size": 24, "num_samples": 100, "bound_times": 4})
        config.eval.update({"rtol": 1e-2, "atol": 1e-2})
        if law == "glow":
            config.terminal.update({"steps": 1, "width": 4})
    if alone:
        config.init_from = "in memory"
    experiment = configure.experiment(config, "bridge_on_digits")
    return experiment, configure.train_options(config), configure.evaluation(config, caches.folder())


def with_law(law: str, t: float, score, fast: bool):
    """(parameters of the score with the fitted law's, experiment, evaluation plan, seconds of the fit)."""
    experiment, plan, how = make(law, t, fast=fast)
    if not experiment.model.fits:
        return score, experiment, how, 0.0
    began = time.monotonic()
    fitted = experiment.model.fits[TERMINAL](None, jax.random.fold_in(experiment.key(INIT), 1))
    params = {MAIN: score, TERMINAL: jax.block_until_ready(fitted)}
    if plan.steps:
        params = common.fit(experiment, plan, params=jax.tree.map(jnp.copy, params))
    return params, experiment, how, time.monotonic() - began


def densities(models: dict) -> dict[str, dict]:
    """Bits/dim of the ODE under every law, from one solve: the laws differ in what they say of x(T) alone."""
    params, experiment, how, _ = models["prior"]
    data = dequantised(experiment, how, params, 0)

    def solve(everything, keys, x, cond):
        options = {"t_min": experiment.model.t_min, "rtol": how.rtol, "atol": how.atol, "max_steps": how.max_steps}
        law = terminal.prior(experiment.model.process)
        found = likelihood.log_prob(experiment.model.process, experiment.model.score(everything["prior"]), law, keys, x, **options)
        ends = {name: models[name][1].terminal(everything[name]).log_prob(found.last) for name in models}
        return found.integral, found.nfe, ends

    everything = {name: model[0] for name, model in models.items()}
    integral, nfe, ends = in_batches(solve, how)("densities", everything, data.keys, data.x, data.cond)
    out = {}
    for name, end in ends.items():
        bits = mean_estimate(units(experiment, integral + end, data.log_q))
        out[name] = {"bits": bits.value, "bits_error": bits.stderr, "nfe": float(nfe.mean())}
    return out


def bound(model) -> dict[str, float]:
    """The SDE's bound with the model's own law."""
    params, experiment, how, _ = model
    (row,) = horizon_metrics(experiment, how, params)
    found = row.get("fitted", row["prior"])
    return {"bound": found.value, "bound_error": found.stderr}


def samples(model, out: Path) -> dict[str, float]:
    """Metrics of samples."""
    params, experiment, how, seconds = model
    found = sample_metrics(experiment, how, params, out)["model"]
    return {name: found[name].value for name in METRICS} | {"sample_nfe": found["sample_nfe"], "fit_seconds": seconds}


def reused(t: float, score, laws, fast: bool, out: Path) -> dict[str, dict]:
    """The model of T = 1 at T under every law."""
    models = {law: with_law(law, t, score, fast) for law in laws}
    found = densities(models)
    for law, model in models.items():
        found[law] |= bound(model) | samples(model, out / f"{law}_{t:g}")
    if "dirichlet" in models:
        params, experiment, _, _ = models["dirichlet"]
        found["dirichlet"]["active"] = mixture.active(experiment.model.terminal(params))
    if "mixture" in models:
        params, experiment, how, _ = models["mixture"]
        drawn = experiment.model.terminal(params, 0.0).sample(jax.random.key(7), (2000, *experiment.space.shape))
        law = terminal.Pushforward(
            experiment.space.encode(params, jax.random.key(8), experiment.space.decode(params, jax.random.key(9), drawn)),
            experiment.model.process.alpha(t),
            experiment.model.process.sigma(t),
        )
        pushed = experiment._replace(terminal=lambda params: law)
        found["pushforward"] = samples((params, pushed, how, 0.0), out / f"pushforward_{t:g}")
        full, _, _ = make("mixture", t, fast=fast, scale_steps=False)
        found["mixture, 40 steps"] = samples((params, full, how, 0.0), out / f"mixture_40_{t:g}")
    return found


def rows_of(found: dict) -> list[tuple[str, ...]]:
    """One row for each T and law."""
    rows = [("T", "law", "bits/dim", "bound", "NFE", *METRICS, "sample NFE", "fit, s")]
    for t, laws in found.items():
        for law, values in laws.items():
            rated = [f"{values[k]:.3f} +- {values[k + '_error']:.3f}" if k in values else "-" for k in RATED]
            words = [f"{t:g}", law, *rated, f"{values['nfe']:.0f}" if "nfe" in values else "-"]
            words += [f"{values['frechet']:.2f}", *(f"{values[k]:.3f}" for k in METRICS[1:])]
            rows.append((*words, f"{values['sample_nfe']:.0f}", f"{values['fit_seconds']:.0f}"))
    return rows


def main() -> None:
    args = common.arguments(__doc__, "bridge_on_digits")
    horizons, laws = ((0.2,), ("prior", "mixture")) if args.fast else (HORIZONS, LAWS)
    records, size = args.out / "runs.json", "fast" if args.fast else "full"
    experiment, plan, _ = make("prior", 1.0, fast=args.fast, alone=False)
    base = common.kept(args.out / f"first_{size}.npz", experiment, lambda: common.fit(experiment, plan))
    cases = {t: functools.partial(reused, t, base, laws, args.fast, args.out) for t in horizons}
    found = {}
    for t, compute in report.progress(cases.items(), total=len(cases), unit="horizon"):
        found[t] = common.memo(records, f"T = {t}, {size}", compute)
    draw(args.out / "bits_per_dim.png", found)
    lines = ["360 test digits, one training run", "", report.table(rows_of(found))]
    active = [(t, laws["dirichlet"]["active"]) for t, laws in found.items() if "dirichlet" in laws]
    if active:
        words = ", ".join(f"{count} at T = {t:g}" for t, count in active)
        lines += ["", f"components of the Dirichlet mixture with a weight above 0.01: {words}"]
    common.finish(args.out, lines)


def draw(path: Path, found: dict) -> None:
    """Bits/dim and Frechet distance against T under each law, of the network trained to T = 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = {}
    for t, laws in found.items():
        for law, values in laws.items():
            curves.setdefault(law, []).append((t, values.get("bits", np.nan), values["frechet"]))
    for marker, (law, points) in zip("os^Dv<>x*", curves.items()):
        t, bits, frechet = np.array(points).T
        left.plot(t, bits, marker=marker, fillstyle="none", label=law)
        right.semilogy(t, frechet, marker=marker, fillstyle="none", label=law)
    left.set(xlabel="T", ylabel="bits/dim of the ODE, test digits")
    right.set(xlabel="T", ylabel="Frechet distance of samples")
    right.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
