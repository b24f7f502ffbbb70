"""Log-likelihoods of a trained run against what else computes them: evaluations, seconds and errors, in one run.

    python main.py --config=configs/vp_digits.py --mode=train
    python -m benchmarks.likelihood --workdir=runs/vp_digits

All methods score the same test images with one dequantization and one random probe for each. They are timed in turn,
`--repeats` times, and the median is printed; what is compiled is compiled before.

multistep     ours, nodes chosen by a pilot on training images, whose cost is printed by itself
adaptive      ours, Tsit5 on the device, with steps for each image
host          SciPy's RK45 on the host, a call to the device for every stage, one joint solve of the batch (score_sde's)
k-diffusion   its `log_likelihood`, the same network with equal weights in PyTorch
flow_matching its `ODESolver.compute_likelihood`, the same

With `--bound` it prints the noise of the SDE model's bound instead, with and without control variates and chosen times.
With `--model` it prints instead how `Model.log_prob` does with and without the training data: seconds for `--num` test
images, and the standard deviation over random probes of log p of one image in nats, with its standard error.
With `--gaussian` it prints instead what all directions of a Gaussian of CIFAR-10's size cost, and what 256 of them do.

Each method is run at the tolerance that it has by default, and at the loosest one whose error is below a tenth of the
standard error of the mean over the test set. Errors are those of the mean log-density in bits/dim, against 400 nodes
with the same probes. The last two methods need `pip install -e '.[bench]' k-diffusion flow-matching` and a run of
`vp_linear` with the network `unet` that predicts v, and are left out without them.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import scoreflow
from benchmarks.host import HostField
from benchmarks.timing import median_seconds
from scoreflow import configure, likelihood
from scoreflow import gaussian as gaussians
from scoreflow.evaluators import density
from scoreflow.evaluators.bound import time_density
from scoreflow.evaluators.context import Context
from scoreflow.experiment import load_params
from scoreflow.likelihood import multistep, nodes, ode
from scoreflow.metrics import mean_estimate
from scoreflow.models import MAIN
from scoreflow.objectives import times
from scoreflow.runs import parallel, workdir
from scoreflow.score import probability_flow

_FINE = 400  # nodes of the reference
_LADDER = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_DEFAULTS = {"adaptive": 1e-3, "host": 1e-5, "k-diffusion": 1e-4, "flow_matching": 1e-5}


class Solved(NamedTuple):
    """Log-densities [B], the probes they used, and evaluations of an image."""

    logp: np.ndarray
    probe: np.ndarray
    nfe: float


Method = Callable[[float], Solved]
"""Solves at a tolerance."""


def our_methods(context: Context, x: np.ndarray, keys: jax.Array) -> tuple[dict[str, Method], float]:
    """The multistep rule and the adaptive solver, and the seconds in which the nodes were chosen."""
    probe = np.asarray(ode.probes(keys, jnp.asarray(x)))
    began = time.perf_counter()
    by_rule = density.make_log_prob(context).solve
    seconds = time.perf_counter() - began
    adaptive = {}

    def multistep(tolerance: float) -> Solved:
        result = by_rule("multistep", keys, x)
        return Solved(result.logp, probe, float(result.nfe.mean()))

    def by_steps(tolerance: float) -> Solved:
        if tolerance not in adaptive:
            options = context.options._replace(solver="adaptive", rtol=tolerance, atol=tolerance)
            adaptive[tolerance] = density.make_log_prob(context._replace(options=options)).solve
        result = adaptive[tolerance]("adaptive", keys, x)
        return Solved(result.logp, probe, float(result.nfe.mean()))

    return {"multistep": multistep, "adaptive": by_steps}, seconds


def on_the_host(context: Context, x: np.ndarray, keys: jax.Array) -> Method:
    """score_sde's likelihood."""
    model, params = context.model, context.params
    drift, probe = probability_flow(model.process, model.score(params)), ode.probes(keys, jnp.asarray(x))

    @parallel.jit
    def augmented(t, x):
        velocity, pull_back = jax.vjp(lambda x: drift(jnp.full(len(x), t), x), x)
        return velocity, (probe * pull_back(probe)[0]).reshape(len(x), -1).sum(1)

    field, start = HostField(augmented, x.shape), np.concatenate([np.ravel(x), np.zeros(len(x))])

    def solve(tolerance: float) -> Solved:
        last, _ = field.solve((context.start, model.process.horizon), start, tolerance)
        prior = model.terminal(params).log_prob(jnp.asarray(last[: x.size].reshape(x.shape), jnp.float32))
        return Solved(np.asarray(prior) + last[x.size :], np.asarray(probe), field.calls)

    return solve


def in_pytorch(context: Context, config: ConfigDict, x: np.ndarray) -> dict[str, Method]:
    """The peers, as far as they are installed and the run is of their kind."""
    kind = config.process.name, config.model.name, config.score.prediction, config.score.sigma_data
    if kind != ("vp_linear", "unet", "v", 1.0):
        print(f"PyTorch's libraries are left out: the run has {kind}, not a VP process with a U-Net that predicts v")
        return {}
    try:
        from benchmarks import torch_peers as peers
    except ModuleNotFoundError as error:
        print(f"PyTorch's libraries are left out: {error}")
        return {}
    params = context.params[MAIN] if context.model.network.groups else context.params
    net = peers.unet(params, config.model, x.shape[-1])
    flow = peers.Flow(net, config.process.beta_min, config.process.beta_max, context.start)
    methods: dict[str, Method] = {}
    for name, solve in (("k-diffusion", peers.by_k_diffusion), ("flow_matching", peers.by_flow_matching)):
        try:
            solve(flow, x[:2], 1e-1)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        methods[name] = lambda tolerance, solve=solve: Solved(*solve(flow, x, tolerance))
    return methods


def make_reference(context: Context, x: np.ndarray) -> Callable[[np.ndarray, bool], np.ndarray]:
    """(probe, whether the Gaussian of the data takes its part of the trace) -> log p by many nodes, [B]."""
    model, d = context.model, int(np.prod(x.shape[1:]))
    t = nodes.even(model.process, context.start, model.process.horizon, _FINE)
    rule = multistep.rule_at(model.process, t, multistep.ORDER)
    around = {True: density.fit_gaussian(context), False: gaussians.standard(d)}

    @jax.jit
    def solve(params, gaussian, probe):
        path = multistep.follow(model.process, model.score(params), gaussian, rule, jnp.asarray(x), probe=probe)
        return multistep.density_of(path, model.terminal(params), gaussian.of(None, len(x)), rule).logp

    return lambda probe, known: np.asarray(solve(context.params, around[known], jnp.asarray(probe)), np.float64)


def compare(context: Context, config: ConfigDict, num: int, repeats: int) -> None:
    """Prints a row for each method and tolerance, with ratios to the multistep rule."""
    data = context.examples(count=num)
    x, keys, unit = data.x, data.keys, context.scale
    methods, chosen = our_methods(context, x, keys)
    methods |= {"host": on_the_host(context, x, keys)} | in_pytorch(context, config, x)
    reference, references = make_reference(context, x), {}

    def error_of(name: str, solved: Solved) -> Any:
        key = (name == "multistep", solved.probe.tobytes())
        if key not in references:
            references[key] = reference(solved.probe, name == "multistep")
        return mean_estimate((references[key] - np.asarray(solved.logp, np.float64)) / unit)

    scores = context.in_unit(methods["multistep"](0.0).logp, data.log_q)
    total = len(context.experiment.data.test.x)
    tenth = 0.1 * float(np.std(scores)) / np.sqrt(total)
    print(f"{len(x)} of {total} test images; a tenth of the standard error of the mean over all is {tenth:.1e}")
    print(f"choosing the nodes took {chosen:.1f} s, with compilation")

    rows: list[tuple[str, float, str]] = [("multistep", 0.0, "")]
    for name, solve in methods.items():
        if name != "multistep":
            good = (tolerance for tolerance in _LADDER if abs(error_of(name, solve(tolerance)).value) < tenth)
            equal = next(good, None)
            rows += [(name, _DEFAULTS[name], "default")] if equal != _DEFAULTS[name] else []
            rows += [(name, equal, "equal answer")] if equal else []
    seconds: dict[tuple[str, float, str], list[float]] = {row: [] for row in rows}
    solved = {row: methods[row[0]](row[1]) for row in rows}
    for _ in range(repeats):
        for row in rows:
            began = time.perf_counter()
            methods[row[0]](row[1])
            seconds[row].append(time.perf_counter() - began)
    first = np.median(seconds[rows[0]])
    print(f"{'':14s} {'tolerance':>9s} {'evaluations':>11s} {'seconds':>8s} {'ratio':>6s}  error, bits/dim")
    for row in rows:
        name, tolerance, remark = row
        error, taken = error_of(name, solved[row]), np.median(seconds[row])
        at = f"{tolerance:.0e}" if tolerance else ""
        numbers = f"{at:>9s} {solved[row].nfe:11.0f} {taken:8.2f} {taken / first:6.2f}"
        print(f"{name:14s} {numbers}  {error.value:+.1e} ± {error.stderr:.0e}  {remark}", flush=True)


def compare_bounds(context: Context, num: int, times_each: int = 10, draws: int = 8) -> None:
    """Prints the standard deviation over draws of the bound of one image in bits/dim, at equal evaluations."""
    model, data = context.model, context.examples(count=num)
    known = density.fit_gaussian(context)
    chosen = functools.partial(times.by_cells, rate=time_density(context, known))
    first = None
    for name, gaussian, sample_times in (
        ("importance", None, times.importance),
        ("control variates", known, times.importance),
        ("control variates and chosen times", known, chosen),
    ):
        options = {"t_min": model.t_min, "num_times": times_each, "gaussian": gaussian, "sample_times": sample_times}

        def estimate(inputs, keys, x, cond, options=options):
            score, terminal = model.score(inputs), model.terminal(inputs)
            return likelihood.bound(model.process, score, terminal, keys, x, cond, **options).total

        run = context.in_batches(estimate)
        keys = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(data.keys) for i in range(draws)]
        totals = np.stack([run(f"{name}-{i}", context.params, each, data.x, data.cond) for i, each in enumerate(keys)])
        noise = float(np.sqrt(np.mean(np.var(totals, axis=0, ddof=1)))) / context.scale
        first = first or noise
        mean = mean_estimate(totals.mean(0) / context.scale)
        print(f"{name:36s} noise {noise:.4f} bits/dim ({first / noise:.2f}x less)  mean {mean.value:.4f}", flush=True)


def compare_models(folder: Path, num: int, probes: int = 6) -> None:
    """Prints seconds, evaluations and the noise of the probes of `Model.log_prob`, as it is and after `with_data`."""
    model = scoreflow.load(folder)
    config, _ = configure.of_run(workdir.stored_settings(folder))
    data = configure.dataset(config)
    began = time.perf_counter()
    prepared = model.with_data(data.train.x)
    print(f"with_data took {time.perf_counter() - began:.0f} s, with compilation")
    x = np.asarray(model.space.encode(model.params, jax.random.key(0), jnp.asarray(data.test.x[:num])))
    for name, each in (("adaptive", model), ("with_data", prepared)):
        seconds = median_seconds(lambda each=each: each.log_prob(x), 3)
        values = np.stack([each.log_prob(x, key=k) for k in range(probes)])
        variance = mean_estimate(values.var(0, ddof=1))
        noise = np.sqrt(variance.value)
        print(f"{name:10s} {seconds:6.2f} s  one probe {noise:.2f} ± {variance.stderr / (2 * noise):.2f} nats")
    print(f"{prepared.prepared.evaluations} evaluations after with_data")


def compare_gaussians(d: int = 3072, count: int = 5000) -> None:
    """Prints the seconds of a fit to `count` rows of photo-like data, and of one product in a batch of 128."""
    rng = np.random.default_rng(0)
    spectrum = 1.0 / np.arange(1, d + 1)
    x = (rng.normal(size=(count, d)) * np.sqrt(spectrum)).astype(np.float32)
    batch = jnp.asarray(rng.normal(size=(128, d)), jnp.float32)
    rows = lambda: ((x[i : i + 500], None) for i in range(0, count, 500))
    for rank in (d, gaussians.RANK):
        began = time.perf_counter()
        of = gaussians.fit(rows, d, rank=rank).of(None, 128)
        fitted = time.perf_counter() - began
        run = jax.jit(lambda x, of=of: gaussians.spectral(of, jnp.sqrt).apply(of.basis, x))
        product = median_seconds(lambda run=run: run(batch), 5)
        held = of.basis.nbytes / 2**20
        print(f"{rank:5d} of {d} directions: fit {fitted:6.1f} s, {held:5.1f} MiB, one product {1e3 * product:6.2f} ms")


def main() -> None:
    """Parses the flags and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/vp_digits"), help="a trained run")
    parser.add_argument("--bound", action="store_true", help="the noise of the bound instead")
    parser.add_argument("--gaussian", action="store_true", help="the cost of the Gaussian alone")
    parser.add_argument("--model", action="store_true", help="Model.log_prob with and without the data")
    parser.add_argument("--num", type=int, default=120, help="test images")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.gaussian:
        compare_gaussians()
        return
    if arguments.model:
        compare_models(arguments.workdir, arguments.num)
        return
    stored = workdir.stored_settings(arguments.workdir)
    config, _ = configure.of_run(
        stored, {"eval.solver": "multistep", "eval.num_test": "0", "eval.batch_size": str(arguments.num)}
    )
    experiment = configure.experiment(config, str(arguments.workdir))
    params = load_params(experiment, arguments.workdir, workdir.newest(arguments.workdir))
    context = configure.evaluation(config).context(experiment, params)
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}; {arguments.workdir.name}")
    if arguments.bound:
        compare_bounds(context, arguments.num)
    else:
        compare(context, config, arguments.num, arguments.repeats)


if __name__ == "__main__":
    main()
