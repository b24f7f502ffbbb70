"""How far few-step samplers end from the probability-flow ODE's own solution, from the same noise, for a trained run.

    python main.py --config=configs/vp_digits.py --mode=train
    python -m benchmarks.samplers --workdir=runs/vp_digits

For every number of evaluations it prints the root mean square distance in the units of x, over samples and dimensions,
and its standard error in parentheses. The last evaluation of each sampler is its denoising step. The solution is taken
from `--fine` steps of Heun's rule; its own distance from half as many steps is printed first.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from scoreflow import configure, fits
from scoreflow.experiment import load_newest
from scoreflow.runs import workdir
from scoreflow.samplers import Rule, grids, rules, sample
from scoreflow.samplers.gaussian_multistep import gaussian_multistep


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/vp_digits"))
    parser.add_argument("--num", type=int, default=500, help="samples")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[6, 8, 10, 12, 16, 20])
    parser.add_argument("--fine", type=int, default=150, help="steps of the solution")
    args = parser.parse_args()
    config, _ = configure.of_run(workdir.stored_settings(args.workdir))
    experiment = configure.experiment(config, str(args.workdir))
    model, params = experiment.model, load_newest(experiment, args.workdir).params
    process, key, t_min = model.process, jax.random.key(0), config.sampling.t_min
    known = fits.gaussian(experiment.space, experiment.data, model.conditional)
    x_init = model.terminal(params).sample(key, (args.num, *experiment.space.shape))

    def run(rule: Rule, grid: jax.Array) -> np.ndarray:
        draw = jax.jit(lambda x, grid: sample(rule, process, model.score(params), key, x, grid).x)
        return np.asarray(draw(x_init, grid), np.float64)

    def distance(x: np.ndarray, exact: np.ndarray) -> str:
        square = np.mean((x - exact) ** 2, axis=tuple(range(1, x.ndim)))
        rms = np.sqrt(square.mean())
        return f"{rms:.4f} ({square.std() / np.sqrt(len(x)) / (2 * rms):.4f})"

    exact, half = (run(rules.HEUN, grids.bell(process, n, t_min=t_min)) for n in (args.fine, args.fine // 2))
    print(f"{args.num} samples; the solution with half the steps: {distance(half, exact)}")
    tried = {"dpm_solver_pp_2m": rules.DPM_SOLVER_PP_2M}
    tried |= {f"gaussian_multistep, order {order}": gaussian_multistep(known, order) for order in (1, 2, 3)}
    tried |= {f"with corrector, order {order}": gaussian_multistep(known, order, True) for order in (2, 3)}
    print(f"{'sampler':34} grid     " + " ".join(f"{n:>15}" for n in args.evaluations))
    for name, rule in tried.items():
        for grid_name, grid in (("log_snr", grids.log_snr), ("bell", grids.bell)):
            at = [distance(run(rule, grid(process, n - 1, t_min=t_min)), exact) for n in args.evaluations]
            print(f"{name:34} {grid_name:8} " + " ".join(f"{each:>15}" for each in at), flush=True)


if __name__ == "__main__":
    main()
