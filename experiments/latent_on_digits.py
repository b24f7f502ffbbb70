"""The digits through a VAE: with N(0, I), a frozen and a jointly trained score prior, and what each choice is worth.

    python -m experiments.latent_on_digits          38 minutes on 2 CPU cores, beside other work

For the 17 gray levels and for binary digits, by the settings of `configs/digits_vae.py` and `configs/digits_latent.py`:

    VAE alone           the prior N(0, I)
    frozen              the same VAE, a score model as prior, trained on its latents as they are (latent diffusion)
    1, 2, 3             both trained on, by the published algorithms, from that VAE
    1, not mixed        without the Normal component in the score
    1, uniform t        without importance sampling of the time
    1, geometric        another process, for which uniform times are already the best
    x                   no latent space: the model of `configs/vp_digits.py` (gray levels alone)

Of each: the bound of the VAE (latents' density by the ODE) on the test digits in bits/dim or nats, with its terms; the
Frechet distance, precision and recall of 1,500 samples and the evaluations that each took; evaluations of the sampler
against its tolerance. One seed; errors are over test digits, or samples.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import digits_latent, digits_vae, vp_digits
from experiments import common
from scoreflow import configure, draw, train
from scoreflow.experiment import SAMPLE
from scoreflow.models import LATENT
from scoreflow.runs import caches, report
from scoreflow.types import Params

RECIPES = ("VAE alone", "frozen", "1", "2", "3", "1, not mixed", "1, uniform t", "1, geometric", "x")
DATA = ("levels", "binary")
SHOWN = ("VAE alone", "frozen", "1")  # a row of samples each
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)


def config_of(data: str, recipe: str, *, fast: bool) -> ConfigDict:
    """The config of a recipe."""
    training, _, change = recipe.partition(", ")
    if recipe == "VAE alone":
        config = digits_vae.get_config(data)
    elif recipe == "x":
        config = vp_digits.get_config()
        config.sampler.update({"name": "adaptive", "rtol": 1e-3, "atol": 1e-3, "denoise": True})
    else:
        config = digits_latent.get_config(f"{data}_{training}")
    if change == "not mixed":
        config.score.mixed = False
    elif change == "uniform t":
        config.sample_times.name = "uniform"
    elif change == "geometric":
        config.process.update({"name": "vp_geometric", "variance_min": 3e-5, "variance_max": 0.999, "horizon": 1.0})
        config.sample_times.name, config.t_min, config.eval.t_min = "uniform", 1e-5, 1e-5
    config.eval.solver = "adaptive"
    config.eval.update({"baseline": False, "draws": 5, "tolerances": 20, "rtols": TOLERANCES, "atols": TOLERANCES})
    if fast:
        config.model.update({**common.SMALL_MLP, "depth": 1})
        config.vae.update({"name": "mlp", "width": 32, "depth": 1, "latents": 8, "dtype": "float32"})
        config.training.update({"steps": 20, "warmup": 2, "batch_size": 32})
        config.eval.update({"draws": 1, "num_test": 24, "batch_size": 24, "check": 24, "num_samples": 100})
        config.eval.update({"tolerances": 4, "rtols": (1e-2,), "atols": (1e-2,)})
    return config


def run(data: str, recipe: str, fast: bool, out: Path) -> dict:
    """Trains, or takes what was trained, and measures; plain numbers and their standard errors."""
    config = config_of(data, recipe, fast=fast)
    experiment, evaluation = configure.experiment(config, recipe), configure.evaluation(config, caches.folder())
    params = params_of(data, recipe, fast, out)
    metrics = common.measure(experiment, evaluation, params, out / data / recipe)
    unit, of_model = "bits_per_dim" if experiment.space.bins else "nats", metrics["samples"]["model"]
    estimates = {"bound": metrics["likelihood"][unit]}
    if experiment.space.latent is not None:
        estimates |= {name: metrics["latent"][name] for name in ("reconstruction", "negative_entropy")}
    estimates |= {name: of_model[name] for name in ("frechet", "precision", "recall")}
    tolerances = [[row["rtol"], row["nfe"].value] for row in metrics["tolerances"] if row["rtol"] == row["atol"]]
    values = {name: [estimate.value, estimate.stderr] for name, estimate in estimates.items()}
    return values | {"nfe": of_model["sample_nfe"], "steps": config.training.steps, "tolerances": tolerances}


def params_of(data: str, recipe: str, fast: bool, out: Path) -> Params:
    """Trained parameters; stage two begins with the VAE of stage one."""
    config = config_of(data, recipe, fast=fast)
    experiment = configure.experiment(config, recipe)
    options = configure.train_options(config, experiment)

    def fit():
        start = None
        if recipe not in ("VAE alone", "x"):
            first = params_of(data, "VAE alone", fast, out)
            fresh = experiment.init(jax.random.key(config.seed))
            start = {**fresh, LATENT: jax.tree.map(jnp.copy, first[LATENT])}
        return train.fit_experiment(experiment, options, start)

    return common.memo_params(out / data / f"{recipe} {'fast' if fast else 'full'}.npz", experiment, fit)


def cell(pair: list[float], digits: int = 4) -> str:
    """value ± standard error."""
    return f"{pair[0]:.{digits}g} ± {pair[1]:.1g}"


def rows_of(results: dict[str, dict]) -> list[tuple[str, ...]]:
    """One line for each recipe."""
    rows = [("prior", "bound", "-log p(x|z)", "KL", "frechet", "precision", "recall", "nfe")]
    for recipe, values in results.items():
        terms = ("", "")
        if "reconstruction" in values:
            nats = values["bound"][0] * (64 * np.log(2.0) if values["bound"][0] < 8 else 1.0)
            terms = (cell(values["reconstruction"]), f"{nats - values['reconstruction'][0]:.4g}")
        quality = [cell(values[name], 3) for name in ("frechet", "precision", "recall")]
        rows.append((recipe, cell(values["bound"]), *terms, *quality, f"{values['nfe']:.0f}"))
    return rows


def tolerance_rows(results: dict[str, dict]) -> list[tuple[str, ...]]:
    """Evaluations of the score for each tolerance, a column per recipe."""
    first = next(iter(results.values()))["tolerances"]
    rows = [("rtol = atol", *results)]
    for i, (rtol, _) in enumerate(first):
        rows.append((f"{rtol:.0e}", *(f"{values['tolerances'][i][1]:.0f}" for values in results.values())))
    return rows


def draw_samples(path: Path, fast: bool, out: Path, columns: int = 20) -> None:
    """Twenty samples of each of SHOWN, gray levels above binary digits."""
    rows = []
    for data in DATA:
        for recipe in SHOWN:
            experiment = configure.experiment(config_of(data, recipe, fast=fast), recipe)
            params, draw_samples = params_of(data, recipe, fast, out), draw.make_draw(experiment, columns)
            rows.append(draw_samples(params, experiment.key(SAMPLE), columns).x)
    report.save_png(path, report.grid(np.concatenate(rows), 17, columns=columns))


def main() -> None:
    args = common.arguments(__doc__, "latent_on_digits")
    recipes = {data: [r for r in RECIPES if r != "x" or data == "levels"] for data in DATA}
    if args.fast:
        recipes = {"binary": ["VAE alone", "1"]}
    records, size = args.out / "runs.json", "fast" if args.fast else "full"
    cases = [(data, recipe) for data, names in recipes.items() for recipe in names]
    results = {data: {} for data in recipes}
    for data, recipe in report.progress(cases, total=len(cases), unit="run"):
        compute = functools.partial(run, data, recipe, args.fast, args.out)
        results[data][recipe] = common.memo(records, f"{data}, {recipe}, {size}", compute)
    lines = []
    for data, values in results.items():
        unit = "bits/dim" if data == "levels" else "nats"
        lines += [f"{data}: bound in {unit}, terms in nats", report.table(rows_of(values)), ""]
        lines += ["evaluations of the score by the adaptive sampler", report.table(tolerance_rows(values)), ""]
    if not args.fast:
        draw_samples(args.out / "samples.png", args.fast, args.out)
    common.finish(args.out, lines[:-1])


if __name__ == "__main__":
    main()
