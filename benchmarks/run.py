"""Speed as ratios against named baselines, all in one run on one machine.

    python main.py --config=configs/vp_digits.py --mode=train
    python benchmarks/run.py                      # all five; or --only=train,likelihood,sampler,devices,orders

1. train: the compiled training step against the same U-Net in PyTorch (needs the extra `bench`; left out without it).
2. likelihood: the solve on device against SciPy's RK45 on the host, score_sde's design (one joint solve of the batch,
   a call to the device per stage, reverse-mode divergence, rtol = atol = 1e-5): at equal tolerance, and at equal answer,
   which is our default tolerance where its error is below a tenth of the standard error.
3. sampler: the adaptive sampler against the same host loop.
4. devices: one training step on 1 and on 4 pretended CPU devices, which share the same cores.
5. orders: a training step of orders 2 and 3 of score matching against order 1: seconds, operations and temporary memory,
   the last two in XLA's count, with and without recomputed blocks.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scoreflow.evaluators.density import make_log_prob

from configs import digits_orders, vp_digits
from experiments.common import step_cost
from scoreflow import configure, data
from scoreflow.runs import parallel, workdir
from scoreflow.samplers.adaptive import adaptive
from scoreflow.score import probability_flow


def _seconds(run, repeats: int) -> float:
    """Median time of a call, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _row(name: str, ours: float, theirs: float, unit: str, remark: str = "") -> None:
    print(
        f"{name:34s} {ours:10.4g} {unit}  baseline {theirs:10.4g} {unit}  ratio {theirs / ours:6.2f}x  {remark}",
        flush=True,
    )


def jax_step_seconds(repeats: int = 15) -> tuple[float, int]:
    """Seconds of one training step of vp_digits, optimizer and EMA included, and its number of parameters."""
    config = vp_digits.get_config()
    experiment, plan = configure.experiment(config, "vp_digits"), configure.train_options(config)
    step = step.make_train_step(experiment.objective, plan.optimizer, experiment.key(1), ema_decay=plan.ema_decay)
    dispatch = step.compile_dispatch(step, 1)
    state = init_state(experiment.init, plan.optimizer, experiment.key(INIT))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch = data.batch(experiment.data.train, 0, 0, plan.batch_size)
    batch = parallel.shard(jax.tree.map(lambda leaf: leaf[None], batch), axis=1)
    times = []
    for i in range(repeats + 2):
        begin = time.perf_counter()
        state, metrics = dispatch(state, batch)
        jax.block_until_ready(metrics)
        if i >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times)), size


def torch_step_seconds(repeats: int = 15) -> tuple[float, int]:
    """The same step in PyTorch: dequantise, draw t, perturb, predict v, weighted error, clip, AdamW, EMA."""
    import torch

    from benchmarks.torch_unet import TorchUNet

    config = vp_digits.get_config()
    model = TorchUNet(
        1, config.model.channels, tuple(config.model.multipliers), config.model.blocks, config.model.dropout
    )
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    image = torch.randint(0, 17, (config.training.batch_size, 1, 8, 8)).float()
    times = []
    for i in range(repeats + 2):
        begin = time.perf_counter()
        x0 = 2 * (image + torch.rand_like(image)) / 17 - 1
        log_snr = 10.8 - 20.9 * torch.rand(len(image))
        alpha, sigma = (torch.sigmoid(s).sqrt()[:, None, None, None] for s in (log_snr, -log_snr))
        noise = torch.randn_like(x0)
        xt = alpha * x0 + sigma * noise
        found = sigma * xt + alpha * model(xt, log_snr)
        loss = 23.9 * ((found - noise) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 0.001)
        if i >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times)), sum(p.numel() for p in model.parameters())


def bench_train() -> None:
    ours, size = jax_step_seconds()
    try:
        theirs, torch_size = torch_step_seconds()
    except ModuleNotFoundError:
        print("training step: PyTorch is not installed (pip install -e '.[bench]'), left out")
        return
    if size != torch_size:
        raise RuntimeError(f"not the same network: {size} and {torch_size} parameters")
    _row(
        "training step, vs PyTorch",
        ours,
        theirs,
        "s",
        f"{size:,} parameters, batch {vp_digits.get_config().training.batch_size}",
    )


def _trained(folder: Path):
    config = vp_digits.get_config()
    experiment = configure.experiment(config, "vp_digits")
    params = load_params(experiment, folder, workdir.newest(folder))
    return config, experiment, params


def _host_log_prob(experiment, params, x, probe):
    """score_sde's likelihood: one joint RK45 solve of the whole batch on the host."""
    drift = probability_flow(experiment.model.process, experiment.model.score(params))

    @parallel.jit
    def augmented(t, x):
        velocity, pull_back = jax.vjp(lambda x: drift(jnp.full(len(x), t), x), x)
        return velocity, (probe * pull_back(probe)[0]).reshape(len(x), -1).sum(1)

    calls = 0

    def field(t, state):
        nonlocal calls
        calls += 1
        velocity, trace = augmented(jnp.float32(t), jnp.asarray(state[: x.size].reshape(x.shape), jnp.float32))
        return np.concatenate([np.asarray(velocity, np.float64).ravel(), np.asarray(trace, np.float64)])

    field(0.5, np.concatenate([np.ravel(x), np.zeros(len(x))]))  # compiles
    calls, begin = 0, time.perf_counter()
    solution = solve_ivp(
        field, (experiment.model.t_min, 1.0), np.concatenate([np.ravel(x), np.zeros(len(x))]).astype(np.float64),
        method="RK45", rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    last = solution.y[:, -1]
    prior = np.asarray(experiment.model.terminal(params).log_prob(jnp.asarray(last[: x.size].reshape(x.shape), jnp.float32)))
    return prior + last[x.size :], time.perf_counter() - begin, calls


def bench_likelihood(folder: Path, n: int = 120) -> None:
    config, experiment, params = _trained(folder)
    plan = configure.evaluation(config, Path("/nonexistent"))._replace(batch_size=n)
    keys = jax.random.split(jax.random.key(0), n)
    x = np.asarray(plan.dequantise(params, jax.random.key(1), experiment.data.test.x[:n]).x)
    probe = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], jnp.float32))(keys)
    theirs, host_seconds, calls = _host_log_prob(experiment, params, x, probe)
    scale = np.log(2.0) * x[0].size
    error = float(np.std(theirs / scale) / np.sqrt(n))
    for name, tolerance in (("at equal tolerance 1e-5", 1e-5), ("at the default tolerance", plan.rtol)):
        solver = make_log_prob(experiment, plan._replace(rtol=tolerance, atol=tolerance), params)
        seconds = _seconds(lambda solver=solver: solver("timed", keys, x).logp, 2)
        found = solver("timed", keys, x)
        off = float(np.mean(theirs - found.logp) / scale)
        remark = f"{off:+.1e} bits/dim apart, standard error {error:.1e}; nfe {found.nfe.mean():.0f} against {calls}"
        _row(f"likelihood {name}", seconds, host_seconds, "s", remark)


def bench_sampler(folder: Path, n: int = 100) -> None:
    _, experiment, params = _trained(folder)
    score = experiment.model.score(params)
    drift = probability_flow(experiment.model.process, score)
    x_init = experiment.model.terminal(params).sample(jax.random.key(0), (n, *experiment.space.shape))
    calls = 0
    compiled = parallel.jit(lambda t, x: drift(jnp.full(n, t), x))

    def field(t, state):
        nonlocal calls
        calls += 1
        return np.asarray(
            compiled(jnp.float32(t), jnp.asarray(state.reshape(x_init.shape), jnp.float32)), np.float64
        ).ravel()

    field(0.5, np.ravel(x_init))
    calls, begin = 0, time.perf_counter()
    theirs = solve_ivp(field, (1.0, 1e-3), np.ravel(x_init).astype(np.float64), method="RK45", rtol=1e-5, atol=1e-5).y[
        :, -1
    ]
    host_seconds, ends = time.perf_counter() - begin, jnp.array([experiment.model.process.horizon, 1e-3])
    for name, tolerance in (("at equal tolerance 1e-5", 1e-5), ("at tolerance 1e-3", 1e-3)):
        solve = parallel.map_devices(
            lambda x, tol=tolerance: adaptive(
                experiment.model.process, score, jax.random.key(0), x, ends, rtol=tol, atol=tol, denoise=False
            )
        )
        seconds = _seconds(lambda solve=solve: solve(x_init), 2)
        found = solve(x_init)
        apart = float(np.sqrt(np.mean((np.ravel(found.x) - theirs) ** 2)))
        _row(
            f"adaptive sampler {name}",
            seconds,
            host_seconds,
            "s",
            f"rms {apart:.1e} apart; nfe {found.nfe.mean():.0f} against {calls}",
        )


def bench_devices() -> None:
    seconds = {}
    for count in (1, 4):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "JAX_PLATFORMS": "cpu",
        }
        out = subprocess.run(
            [sys.executable, __file__, "--step"], env=environment, capture_output=True, text=True, check=True
        )
        seconds[count] = json.loads(out.stdout.splitlines()[-1])
    _row("training step, 1 device vs 4", seconds[1], seconds[4], "s", "pretended devices on the same cores")


def bench_orders() -> None:
    costs = {}
    for remat in (False, True):
        for order in (1, 2, 3):
            config = digits_orders.get_config(str(order))
            config.init_from, config.model.remat = "", remat
            costs[order, remat] = step_cost(configure.experiment(config, "digits_orders"), configure.train_options(config), repeats=12)
    one = costs[1, False]
    for (order, remat), cost in costs.items():
        operations, memory, seconds = (this / first for this, first in zip(cost, one))
        print(
            f"training step, order {order}{', remat' if remat else '':7s} {cost.seconds:.4f} s ({seconds:.2f}x of order 1), "
            f"{operations:.2f}x the operations, {cost.memory / 2**20:.0f} MiB of temporary memory ({memory:.2f}x)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "vp_digits", help="a trained vp_digits")
    parser.add_argument("--only", default="train,likelihood,sampler,devices,orders")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(jax_step_seconds()[0]))
        return
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}; ratio above 1: ours is faster")
    for name in arguments.only.split(","):
        if name == "train":
            bench_train()
        elif name == "devices":
            bench_devices()
        elif name == "orders":
            bench_orders()
        else:
            {"likelihood": bench_likelihood, "sampler": bench_sampler}[name](arguments.workdir)


if __name__ == "__main__":
    main()
