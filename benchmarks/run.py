"""Speed as ratios against named baselines, all in one run on one machine.

    python main.py --config=configs/vp_digits.py --mode=train
    python -m benchmarks.run                      # all four; or --only=train,sampler,devices,orders

Likelihoods have a benchmark of their own, benchmarks/likelihood.py.

1. train: the compiled training step against the same U-Net in PyTorch (needs the extra `bench`; left out without it).
2. sampler: the adaptive sampler against SciPy's RK45 on the host, score_sde's design (one joint solve of the batch, a
   call to the device per stage, rtol = atol = 1e-5).
3. devices: one training step on 1 and on 4 pretended CPU devices, which share the same cores.
4. orders: a training step of orders 2 and 3 of score matching against order 1: seconds, operations and temporary
   memory, the last two in XLA's count, with and without recomputed blocks.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.host import HostField
from benchmarks.timing import median_seconds
from configs import digits_orders, vp_digits
from experiments.common import step_cost
from scoreflow import configure
from scoreflow.dispatch import batches_of, dispatch_of
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
    dispatch = dispatch_of(experiment, options)
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _, batch = next(batches_of(experiment, options, 0))

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
    parser.add_argument("--only", default="train,sampler,devices,orders")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(jax_step_seconds()[0]))
        return
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}; ratio above 1: ours is faster")
    alone = {"train": bench_train, "devices": bench_devices, "orders": bench_orders}
    for name in arguments.only.split(","):
        if name in alone:
            alone[name]()
        else:
            bench_sampler(arguments.workdir)


if __name__ == "__main__":
    main()
