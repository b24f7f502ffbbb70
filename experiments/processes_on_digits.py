"""Every forward process on the digits at equal training cost: sample quality against the number of steps.

    python -m experiments.processes_on_digits                          25 to 35 minutes on 2 CPU cores
    python -m experiments.processes_on_digits --training=published     the same again

One small network of the same parameterization is trained for each process of `configs/digits_processes.py` and each of
two seeds, all with the same number of steps, and sampled by the exponential integrator on two grids: uniform in t,
which the theory's statements are for, and even in log-SNR. Quality is the Frechet distance of the features of a digit
classifier to the training data. Beside it stands the exact W2 of the same sampler for the Gaussian with the digits'
mean and covariance. `--training=published` draws t uniformly and weights the noise error evenly, as the published
experiments do; the default is this library's own, the likelihood weight with importance sampling, under which processes
that are re-timings of each other train alike.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from configs import digits_processes
from experiments import common
from scoreflow import configure, planner, score, train
from scoreflow.data import load
from scoreflow.experiment import SAMPLE, Experiment
from scoreflow.metrics import classifier as classifiers
from scoreflow.metrics import frechet
from scoreflow.processes import transitions
from scoreflow.runs import caches, parallel, report
from scoreflow.samplers import grids, rules, sample
from scoreflow.theory import exact

SEEDS, SAMPLES, TRAINING = (0, 1), 500, 2000
STEPS = {"uniform": (10, 20, 50, 100, 500, 1000), "log_snr": (10, 20, 50, 100)}
GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr}
RULE = transitions.exponential_sde


def config_of(variant: str, seed: int, training: str, steps: int) -> ConfigDict:
    """The process's config with a network that trains in seconds."""
    config = digits_processes.get_config(variant)
    config.seed = seed
    config.model.update({"name": "mlp", "width": 256, "depth": 4, "dropout": 0.1, "dtype": "float32"})
    config.score.update({"prediction": "edm", "sigma_data": 0.8})
    config.training.update({"steps": steps, "batch_size": 128, "steps_per_dispatch": 10})
    config.training.update({"learning_rate": 2e-3, "warmup": 50})
    if training == "published":
        config.weight.name, config.sample_times.name = "noise", "uniform"
    return config


class Judge:
    """Frechet distance of samples to the training digits; `floor` is that of the test digits."""

    def __init__(self):
        data = load.digits()
        self.extract = classifiers.classifier(data.train, data.num_levels, caches.folder(), "digits").extract
        self.origin = self.extract(data.train.x[:1]).pool[0]
        self.target = frechet.reference(*frechet.mean_and_covariance(self.moments(data.train.x)))
        self.floor = self(data.test.x)

    def moments(self, x: np.ndarray) -> frechet.Moments:
        """Of the features of digits [N, 8, 8, 1]."""
        return frechet.update(frechet.init(self.origin), self.extract(x).pool)

    def __call__(self, x: np.ndarray) -> float:
        return frechet.frechet_distance(self.moments(x), self.target)


@functools.cache
def sampler(apply: Callable, prediction: score.Prediction) -> Callable[..., jax.Array]:
    """Compiled (process, params, sigma_data, key, x_init, times) -> x; one program for all processes of a form."""

    def draw(process, params, sigma_data, key, x_init, times):
        network_score = score.score_fn(process, apply, params, prediction, sigma_data=sigma_data)
        return sample(rules.affine(RULE), process, network_score, key, x_init, times).x

    return parallel.jit(draw)


def times_of(experiment: Experiment, grid: str, steps: int) -> jax.Array:
    """The grid on which an experiment is sampled."""
    return GRIDS[grid](experiment.model.process, steps, t_min=experiment.config["sampling"]["t_min"])


def measure(
    experiment: Experiment, options: train.TrainOptions, judge: Judge, steps: dict[str, tuple[int, ...]], samples: int
) -> dict[str, list[float]]:
    """Trains once; the distance at each number of steps, by grid."""
    params, model = train.fit_experiment(experiment, options), experiment.model
    draw = sampler(model.network.apply, model.options.prediction)
    key_init, key_path = jax.random.split(experiment.key(SAMPLE))
    x_init = model.terminal(params).sample(key_init, (samples, *experiment.space.shape))

    def distance(times):
        x = draw(model.process, params, model.options.sigma_data, key_path, x_init, times)
        return judge(np.asarray(experiment.space.decode(params, jax.random.key(1), x)))

    return {grid: [distance(times_of(experiment, grid, k)) for k in counts] for grid, counts in steps.items()}


def theory(experiment: Experiment, steps: dict[str, tuple[int, ...]]) -> dict[str, list[float]]:
    """Exact W2 of the same sampler, from the same start, for the digits' Gaussian."""
    process = experiment.model.process
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, planner.fit_gaussian(experiment, None, 10_000))
        variance = process.prior_std() ** 2
        start = exact.Gaussian(jnp.zeros_like(data.mean), jnp.full_like(data.variance, variance))

        def distance(times):
            return float(exact.w2(exact.gaussian_law(process, times, RULE, data, start=start), data))

        return {grid: [distance(times_of(experiment, grid, k)) for k in counts] for grid, counts in steps.items()}


def ordering(values: dict[str, float]) -> str:
    """Names from the smallest value on."""
    return " ".join(sorted(values, key=values.get))


def lines_of(
    grid: str, steps: tuple[int, ...], distances: dict[str, np.ndarray], expected: dict[str, list]
) -> list[str]:
    """The table of one grid and, at each number of steps, both orderings and their rank correlation."""
    rows = [(f"{grid} grid, steps", *map(str, steps))]
    mean = {name: values.mean(0) for name, values in distances.items()}
    for name, values in distances.items():
        errors = values.std(0, ddof=1) / np.sqrt(len(values))
        rows.append((name, *(f"{m:.2f} ± {e:.2f}" for m, e in zip(mean[name], errors))))
        rows.append(("  exact W2, Gaussian", *(f"{w:.3f}" for w in expected[name])))
    lines = ["", report.table(rows), "", "from the best on, as measured and by the theory:"]
    for i, k in enumerate(steps):
        measured, predicted = ({name: values[i] for name, values in v.items()} for v in (mean, expected))
        correlation = spearmanr(list(measured.values()), list(predicted.values())).statistic
        lines.append(f"{k:5d} steps, rank correlation {correlation:+.2f}")
        lines += [f"      measured  {ordering(measured)}", f"      theory    {ordering(predicted)}"]
    return lines


def main() -> None:
    args = common.arguments(__doc__, "processes_on_digits", training=("likelihood", "published"))
    variants, seeds, steps, samples, training = tuple(digits_processes.VARIANTS), SEEDS, STEPS, SAMPLES, TRAINING
    if args.fast:
        variants, seeds, samples, training = ("vp_linear", "ve_geometric"), (0, 1), 100, 100
        steps = {"uniform": (10, 20), "log_snr": (10,)}
    judge, distances, expected = Judge(), {}, {}
    for variant in report.progress(variants, total=len(variants), unit="variant"):
        runs = []
        for seed in seeds:
            config = config_of(variant, seed, args.training, training)
            experiment = configure.experiment(config, f"configs/digits_processes.py:{variant}")
            options = configure.train_options(config, experiment)
            key = f"{args.training} {variant} seed {seed}, {training} steps, {samples} samples at {steps}"
            compute = functools.partial(measure, experiment, options, judge, steps, samples)
            runs.append(common.memo(args.out / "runs.json", key, compute))
        distances[variant] = {grid: np.array([run[grid] for run in runs]) for grid in steps}
        expected[variant] = theory(experiment, steps)
    write(args.out, args.training, f"{samples} samples, {len(seeds)} seeds", judge.floor, steps, distances, expected)


def write(out: Path, training: str, size: str, floor: float, steps: dict, distances: dict, expected: dict) -> None:
    """The report and the picture."""
    lines = [
        f"Frechet distance to the training digits (classifier features), mean ± standard error; {size}; training: "
        f"{training}; test digits {floor:.2f}"
    ]
    panels = {}
    for grid, counts in steps.items():
        measured, predicted = ({name: by_grid[grid] for name, by_grid in v.items()} for v in (distances, expected))
        lines += lines_of(grid, counts, measured, predicted)
        panels[f"measured Frechet distance, {grid} grid"] = {name: list(v.mean(0)) for name, v in measured.items()}
        panels[f"exact W2 of the Gaussian, {grid} grid"] = predicted
    exploding = {name for name in distances if name.startswith("ve")}
    report.plot_steps(out / f"{training}.png", steps["uniform"], panels, dashed=exploding)
    common.finish(out, lines, f"{training}.txt")


if __name__ == "__main__":
    main()
