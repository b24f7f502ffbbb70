"""Speed as ratios against named baselines, all in one run on one machine.

    python main.py --config=configs/vp_digits.py --mode=train
    python -m benchmarks.run                      # all five; or --only=train,likelihood,sampler,devices,orders

1. train: the compiled training step against the same U-Net in PyTorch (needs the extra `bench`; left out without it).
2. likelihood: the solve on device against SciPy's RK45 on the host, score_sde's design (one joint solve of the batch,
   a call to the device per stage, reverse-mode divergence, rtol = atol = 1e-5): at equal tolerance, and at equal
   answer, which is our default tolerance where its error is below a tenth of the standard error.
3. sampler: the adaptive sampler against the same host loop.
4. devices: one training step on 1 and on 4 pretended CPU devices, which share the same cores.
5. orders: a training step of orders 2 and 3 of score matching against order 1: seconds, operations and temporary
   memory, the last two in XLA's count, with and without recomputed blocks.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.timing import median_seconds
from configs import digits_orders, vp_digits
from experiments.common import step_cost
from scoreflow import configure, train
from scoreflow.evaluators.likelihood import make_log_prob
from scoreflow.experiment import INIT, Experiment, load_params
from scoreflow.runs import parallel, workdir
from scoreflow.samplers.adaptive import Adaptive
from scoreflow.score import probability_flow
from scoreflow.step import init_state
from scoreflow.types import Params

ROOT = Path(__file__).resolve().parent.parent
T_MIN = 1e-3  # where the samplers stop


def _print_row(name: str, ours: float, theirs: float, unit: str, remark: str = "") -> None:
    numbers = f"{ours:10.4g} {unit}  baseline {theirs:10.4g} {unit}  ratio {theirs / ours:6.2f}x"
    print(f"{name:34s} {numbers}  {remark}", flush=True)


def jax_step_seconds(repeats: int = 15) -> tuple[float, int]:
    """Seconds of one training step of vp_digits, optimizer and EMA included, and its number of parameters."""
    config = vp_digits.get_config()
    experiment = configure.experiment(config, "vp_digits")
    options = configure.train_options(config, experiment)
    dispatch = train.dispatch_of(experiment, options)
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _, batch = next(train.batches_of(experiment, options, 0))

    def step():
        nonlocal state
        state, metrics = dispatch(state, batch)
        return metrics

    return median_seconds(step, repeats, warm=2), size


def torch_step_seconds(repeats: int = 15) -> tuple[float, int]:
    """The same step in PyTorch: dequantize, draw t, perturb, predict v, weighted error, clip, AdamW, EMA."""
    import torch

    from benchmarks.torch_unet import TorchUNet

    config = vp_digits.get_config()
    network = config.model
    model = TorchUNet(1, network.channels, tuple(network.multipliers), network.blocks, network.dropout)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    image = torch.randint(0, 17, (config.training.batch_size, 1, 8, 8)).float()

    def step():
        x0 = 2 * (image + torch.rand_like(image)) / 17 - 1
        log_snr = 10.8 - 20.9 * torch.rand(len(image))
        alpha, sigma = (torch.sigmoid(s).sqrt()[:, None, None, None] for s in (log_snr, -log_snr))
        noise = torch.randn_like(x0)
        xt = alpha * x0 + sigma * noise
        predicted = sigma * xt + alpha * model(xt, log_snr)
        loss = 23.9 * ((predicted - noise) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 0.001)

    return median_seconds(step, repeats, warm=2), sum(p.numel() for p in model.parameters())


def bench_train() -> None:
    """The training step against PyTorch."""
    ours, size = jax_step_seconds()
    try:
        theirs, torch_size = torch_step_seconds()
    except ModuleNotFoundError:
        print("training step: PyTorch is not installed (pip install -e '.[bench]'), left out")
        return
    if size != torch_size:
        raise RuntimeError(f"not the same network: {size} and {torch_size} parameters")
    remark = f"{size:,} parameters, batch {vp_digits.get_config().training.batch_size}"
    _print_row("training step, vs PyTorch", ours, theirs, "s", remark)


def _trained(folder: Path) -> tuple[Experiment, Params]:
    experiment = configure.experiment(vp_digits.get_config(), "vp_digits")
    return experiment, load_params(experiment, folder, workdir.newest(folder))


class HostField:
    """A field on the device as SciPy's solver calls it on the host: it counts its calls.

    Args:
      run: compiled (t, x) -> arrays whose first axes are that of x.
      shape: of x.
    """

    def __init__(self, run: Callable, shape: tuple[int, ...]):
        self.run, self.shape, self.calls = run, shape, 0

    def __call__(self, t: float, state: np.ndarray) -> np.ndarray:
        self.calls += 1
        x = jnp.asarray(state[: np.prod(self.shape)].reshape(self.shape), jnp.float32)
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in self.run(jnp.float32(t), x)])

    def solve(self, span: tuple[float, float], start: np.ndarray) -> tuple[np.ndarray, float]:
        """The last state, and seconds of one joint RK45 solve of the whole batch, after a call that compiles."""
        self(span[0], start)
        self.calls, began = 0, time.perf_counter()
        last = solve_ivp(self, span, start.astype(np.float64), method="RK45", rtol=1e-5, atol=1e-5).y[:, -1]
        return last, time.perf_counter() - began


def _host_log_prob(
    experiment: Experiment, params: Params, x: np.ndarray, probe: jax.Array
) -> tuple[np.ndarray, float, int]:
    """score_sde's likelihood: log p [B], seconds, and evaluations of the drift and its divergence."""
    model = experiment.model
    drift = probability_flow(model.process, model.score(params))

    @parallel.jit
    def augmented(t, x):
        velocity, pull_back = jax.vjp(lambda x: drift(jnp.full(len(x), t), x), x)
        return velocity, (probe * pull_back(probe)[0]).reshape(len(x), -1).sum(1)

    field, start = HostField(augmented, x.shape), np.concatenate([np.ravel(x), np.zeros(len(x))])
    last, seconds = field.solve((model.t_min, 1.0), start)
    prior = model.terminal(params).log_prob(jnp.asarray(last[: x.size].reshape(x.shape), jnp.float32))
    return np.asarray(prior) + last[x.size :], seconds, field.calls


def bench_likelihood(folder: Path, n: int = 120) -> None:
    """The likelihood on the device against the host loop."""
    experiment, params = _trained(folder)
    evaluation = configure.evaluation(vp_digits.get_config())
    options = evaluation.options._replace(batch_size=n)
    context = evaluation._replace(options=options).context(experiment, params)
    keys = jax.random.split(jax.random.key(0), n)
    x = np.asarray(context.rule(params, jax.random.key(1), experiment.data.test.x[:n]).x)
    probe = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], jnp.float32))(keys)
    theirs, host_seconds, calls = _host_log_prob(experiment, params, x, probe)
    error = float(np.std(theirs / context.scale) / np.sqrt(n))
    for name, tolerance in (("at equal tolerance 1e-5", 1e-5), ("at the default tolerance", options.rtol)):
        solve = make_log_prob(context._replace(options=options._replace(rtol=tolerance, atol=tolerance)))
        seconds = median_seconds(lambda solve=solve: solve("timed", keys, x).logp, 2)
        solution = solve("timed", keys, x)
        difference = float(np.mean(theirs - solution.logp) / context.scale)
        nfe = f"nfe {solution.nfe.mean():.0f} against {calls}"
        remark = f"{difference:+.1e} bits/dim apart, standard error {error:.1e}; {nfe}"
        _print_row(f"likelihood {name}", seconds, host_seconds, "s", remark)


def bench_sampler(folder: Path, n: int = 100) -> None:
    """The adaptive sampler on the device against the host loop."""
    experiment, params = _trained(folder)
    process, score = experiment.model.process, experiment.model.score(params)
    drift = probability_flow(process, score)
    x_init = experiment.model.terminal(params).sample(jax.random.key(0), (n, *experiment.space.shape))
    field = HostField(parallel.jit(lambda t, x: (drift(jnp.full(n, t), x),)), x_init.shape)
    theirs, host_seconds = field.solve((1.0, T_MIN), np.ravel(x_init))
    ends = jnp.array([process.horizon, T_MIN])
    for name, tolerance in (("at equal tolerance 1e-5", 1e-5), ("at tolerance 1e-3", 1e-3)):

        def solve(x, tolerance=tolerance):
            sampler = Adaptive(tolerance, tolerance)
            return sampler(process, score, jax.random.key(0), x, ends, denoise=False)

        run = parallel.map_devices(solve)
        seconds = median_seconds(lambda run=run: run(x_init), 2)
        result = run(x_init)
        apart = float(np.sqrt(np.mean((np.ravel(result.x) - theirs) ** 2)))
        remark = f"rms {apart:.1e} apart; nfe {result.nfe.mean():.0f} against {field.calls}"
        _print_row(f"adaptive sampler {name}", seconds, host_seconds, "s", remark)


def bench_devices() -> None:
    """The training step on one device against four."""
    seconds = {}
    for count in (1, 4):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.run", "--step"]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=True)
        seconds[count] = json.loads(result.stdout.splitlines()[-1])
    _print_row("training step, 1 device vs 4", seconds[1], seconds[4], "s", "pretended devices on the same cores")


def bench_orders() -> None:
    """Training steps of each order, with and without recomputed blocks."""
    costs = {}
    for remat in (False, True):
        for order in (1, 2, 3):
            config = digits_orders.get_config(str(order))
            config.init_from, config.model.remat = "", remat
            experiment = configure.experiment(config, "digits_orders")
            options = configure.train_options(config, experiment)
            costs[order, remat] = step_cost(experiment, options, repeats=12)
    one = costs[1, False]
    for (order, remat), cost in costs.items():
        operations, memory, seconds = (value / first for value, first in zip(cost, one))
        print(
            f"training step, order {order}{', remat' if remat else '':7s} {cost.seconds:.4f} s ({seconds:.2f}x of "
            f"order 1), {operations:.2f}x the operations, {cost.memory / 2**20:.0f} MiB of temporary memory "
            f"({memory:.2f}x)",
            flush=True,
        )


def main() -> None:
    """Parses the flags and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "vp_digits", help="a trained vp_digits")
    parser.add_argument("--only", default="train,likelihood,sampler,devices,orders")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(jax_step_seconds()[0]))
        return
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}; ratio above 1: ours is faster")
    alone = {"train": bench_train, "devices": bench_devices, "orders": bench_orders}
    of_a_run = {"likelihood": bench_likelihood, "sampler": bench_sampler}
    for name in arguments.only.split(","):
        if name in alone:
            alone[name]()
        else:
            of_a_run[name](arguments.workdir)


if __name__ == "__main__":
    main()
