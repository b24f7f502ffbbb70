"""How far few-step samplers end from the probability-flow ODE's own solution, from the same noise, for a trained run.

    python main.py --config=configs/vp_digits.py --mode=train
    python -m benchmarks.samplers --workdir=runs/vp_digits

For every number of evaluations it prints the mean distance of a sample, which is the root mean square over dimensions
in the units of x, and its standard error in parentheses; and behind it the Frechet distance of the samples in the
features of the run's evaluation. The last evaluation of each sampler is its denoising step. The grid `tuned` has times
that are tuned to each sampler on `--pilot` other samples, from those of the grid `bell`. The solution is taken from
`--fine` steps of Heun's rule; half as many steps show its own error.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import configure, fits
from scoreflow.data.fetch import default_dir
from scoreflow.evaluators import features
from scoreflow.experiment import Experiment, load_newest
from scoreflow.metrics import frechet
from scoreflow.runs import caches, workdir
from scoreflow.samplers import GaussianMultistep, Rule, grids, rules
from scoreflow.samplers.sampler import Sampler, sampler
from scoreflow.samplers.tune import Pilot, tune

GRIDS = {"log_snr": grids.log_snr, "bell": grids.bell, "tuned": grids.bell}
SAMPLERS = {
    "dpm_solver_pp_2m": rules.DPM_SOLVER_PP_2M,
    **{f"gaussian_multistep, order {order}": GaussianMultistep(order) for order in (1, 2)},
}


def frechet_of(experiment: Experiment, name: features.FeatureName) -> Callable[[np.ndarray], float]:
    """x as stored -> Frechet distance to the training data."""
    data, folder = experiment.data, caches.folder()
    extract = features.extractor(name, data, folder, default_dir())
    gaussian = features.target(name, extract, data, folder).gaussian

    def measure(x: np.ndarray) -> float:
        moments = features.merged(features.collect(extract, x, gaussian.mean).moments)
        return frechet.frechet_distance(moments, gaussian)

    return measure


class Bench:
    """A trained run, noise, and the solutions of the ODE from it."""

    def __init__(self, folder: Path, num: int, pilot: int, fine: int):
        config, _ = configure.of_run(workdir.stored_settings(folder))
        self.experiment = experiment = configure.experiment(config, str(folder))
        self.model, self.params = experiment.model, load_newest(experiment, folder).params
        self.t_min, self.pilot = config.sampling.t_min, pilot
        self.gaussian = fits.gaussian(experiment.space, experiment.data, self.model.conditional)
        self.key, self.frechet = jax.random.key(0), frechet_of(experiment, config.eval.features)
        self.noise, self.others = (self.begin(key, count) for key, count in enumerate((num, pilot)))
        solve = lambda steps: self.ends(self.made(rules.HEUN, grids.bell, steps))
        self.exact, half = solve(fine), solve(fine // 2)
        print(f"{num} samples; the solution: {self.judged(self.exact)}; with half the steps: {self.judged(half)}")

    def begin(self, key: int, count: int) -> jax.Array:
        """Noise at the horizon."""
        return self.model.terminal(self.params).sample(jax.random.key(key), (count, *self.experiment.space.shape))

    def made(self, rule: Rule | GaussianMultistep, grid: grids.TimeGrid, steps: int) -> Sampler:
        """A sampler of the run's process."""
        given = {"gaussian": lambda: self.gaussian, "steps": steps, "t_min": self.t_min}
        return sampler(rule, self.model.process, grid, **given)

    def tuned(self, made: Sampler) -> Sampler:
        """The same with tuned times."""
        pilot = Pilot(self.params, jax.random.split(self.key, self.pilot), self.others)
        return made._replace(grid=jnp.asarray(tune(made, self.model.score, pilot).times))

    def ends(self, made: Sampler) -> np.ndarray:
        """The samples, as x."""
        draw = jax.jit(lambda params, x: made.draw(self.model.score(params), self.key, x).x)
        return np.asarray(draw(self.params, self.noise), np.float64)

    def judged(self, x: np.ndarray) -> str:
        """Mean distance to the solution (standard error) and Frechet distance to the training data."""
        each = np.sqrt(np.mean((x - self.exact) ** 2, axis=tuple(range(1, x.ndim))))
        stored = np.asarray(self.experiment.space.decode(self.params, self.key, jnp.asarray(x, jnp.float32)))
        return f"{each.mean():.4f} ({each.std() / np.sqrt(len(x)):.4f}) {self.frechet(stored):6.2f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/vp_digits"))
    parser.add_argument("--num", type=int, default=1500, help="samples")
    parser.add_argument("--pilot", type=int, default=64, help="samples on which times are tuned")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[6, 8, 12, 16])
    parser.add_argument("--fine", type=int, default=150, help="steps of the solution")
    args = parser.parse_args()
    bench = Bench(args.workdir, args.num, args.pilot, args.fine)
    print(f"{'sampler':34} grid     " + " ".join(f"{n:>22}" for n in args.evaluations))
    for name, rule in SAMPLERS.items():
        for grid, make in GRIDS.items():
            made = [bench.made(rule, make, n - 1) for n in args.evaluations]
            found = [bench.judged(bench.ends(bench.tuned(each) if grid == "tuned" else each)) for each in made]
            print(f"{name:34} {grid:8} " + " ".join(f"{each:>22}" for each in found), flush=True)


if __name__ == "__main__":
    main()
