"""Do the fast likelihoods of trained runs agree with those of a tight adaptive solver?

    python -m benchmarks.agreement runs/vp_digits runs/digits_latent --num=60

Both score the same test examples with the same dequantization and probes. The multistep rule takes the Gaussian's part
of the trace exactly and the adaptive solver meets it through the probe, but what the probe makes of it is known:

    sum_i (c_i - 1) / 2 [log(v_i + rho^2)] from t_min to T,    c_i = (U^T u)_i^2,    rho = sigma / alpha,

with the Gaussian's directions U and variances v. It is taken from the adaptive solver's answer, so that the difference
left is that of the two solvers. Printed next to it are the error that an evaluation would print, against four times as
many steps, and the error that was asked for, `eval.error` standard errors of the mean over the test examples that the
run is evaluated on.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import configure
from scoreflow.comparison import read
from scoreflow.evaluators import density
from scoreflow.evaluators.context import Context
from scoreflow.experiment import load_params
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import ode
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes.sdes import Process
from scoreflow.runs import parallel, workdir


def of_the_probe(process: Process, start: float, gaussian: Gaussian, probe: np.ndarray) -> np.ndarray:
    """What a probe's estimate of the trace of a Gaussian's flow is off by, in nats, [B].

    Args:
      process: the forward SDE.
      start: the first time; the last is the horizon.
      gaussian: of x_0, with a row for each example.
      probe: u, [B, ...].
    """
    u = np.asarray(probe, np.float64).reshape(len(probe), -1)
    basis, variances, rest = (np.asarray(each, np.float64) for each in gaussian[1:])
    inside = (u @ basis) ** 2
    ends = [(float(process.sigma(t)) / float(process.alpha(t))) ** 2 for t in (start, process.horizon)]
    grown = lambda v: 0.5 * np.log((v + ends[1]) / (v + ends[0]))
    others = (u**2).sum(1) - inside.sum(1) - (u.shape[1] - basis.shape[1])
    return ((inside - 1.0) * grown(variances)).sum(1) + others * grown(rest)


def compare(context: Context, num: int, tolerance: float) -> tuple[float, list[Estimate]]:
    """Evaluations of the rule, and bits/dim by it, its difference to the adaptive solver's and to a finer rule."""
    data = context.examples(count=num)
    gaussian = density.fit_gaussian(context)
    options = context.options._replace(solver="adaptive", rtol=tolerance, atol=tolerance)
    by_rule = density.make_log_prob(context).solve
    adaptive = density.make_log_prob(context._replace(options=options)).solve
    ours, finer, theirs = (
        solve(name, data.keys, data.x, data.cond, finer=name == "finer")
        for name, solve in (("ours", by_rule), ("finer", by_rule), ("adaptive", adaptive))
    )
    probe = np.asarray(ode.probes(data.keys, jnp.asarray(data.x)))
    known = of_the_probe(context.model.process, context.start, gaussian.of(data.cond, len(data.x)), probe)
    scores = context.in_unit(ours.logp, data.log_q)
    apart = scores - context.in_unit(theirs.logp - known, data.log_q)
    printed = scores - context.in_unit(finer.logp, data.log_q)
    return float(ours.nfe.mean()), [mean_estimate(each) for each in (scores, apart, printed)]


def main() -> None:
    """Prints a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--num", type=int, default=60, help="test examples")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of the adaptive solver")
    arguments = parser.parse_args()
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}; {arguments.num} test examples")
    print(f"{'run':20s} {'evaluations':>11s} {'value':>17s} {'less adaptive':>19s} {'printed':>19s} {'asked':>7s}")
    if missing := [str(run) for run in arguments.runs if not read.is_run(run)]:
        parser.error(f"no runs: {', '.join(missing)}")
    for run in arguments.runs:
        config, _ = configure.of_run(
            workdir.stored_settings(run), {"eval.solver": "multistep", "eval.divergence": "hutchinson"}
        )
        experiment = configure.experiment(config, str(run))
        params = load_params(experiment, run, workdir.newest(run))
        context = configure.evaluation(config).context(experiment, params)
        nfe, (value, apart, printed) = compare(context, arguments.num, arguments.tolerance)
        count = min(arguments.num, context.num_test)
        asked = context.options.error * value.stderr * np.sqrt(count / context.num_test)
        words = [f"{each.value:+.1e} ± {each.stderr:.0e}" for each in (apart, printed)]
        score = f"{value.value:.3f} ± {value.stderr:.3f}"
        print(f"{run.name:20s} {nfe:11.0f} {score:>17s} {words[0]:>19s} {words[1]:>19s} {asked:7.0e}", flush=True)


if __name__ == "__main__":
    main()
