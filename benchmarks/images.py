"""Speed of the image path: DDPM++ on images of CIFAR-10's size, against PyTorch on the same device in the same run.

    pip install -e '.[bench]'
    python -m benchmarks.images                   # 56 million parameters on a GPU or TPU, a narrow network on a CPU
    python -m benchmarks.images --only=train,sample,likelihood,inception --channels=128 --batch=256 --peak=989

train        a step of `configs/published_images.py:cifar10_edm`, optimizer and average included, and the same with its
             batches shuffled, mirrored and sent by the host; PyTorch: the same network, channels last, torch.compile,
             Adam, average. Utilization is XLA's own count of operations over the rate of a large matrix product on the
             device, measured here in the same type, or over --peak (TFLOP/s).
sample       17 steps of Heun's rule and one to the data: 35 evaluations; PyTorch: the same loop.
likelihood   Hutchinson's divergence along the adaptive solve, its time for each evaluation; PyTorch: one evaluation of
             drift and divergence by a reverse pass, score_sde's way. The network is untrained, so the number of
             evaluations is that of an easy score; a trained one needs more.
inception    features for the FID, random weights; PyTorch: torch-fidelity's network.

Data are random levels. Times are medians. A ratio above 1: ours is faster.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_seconds
from configs import published_images
from scoreflow import configure, data
from scoreflow.dispatch import batches_of, dispatch_of
from scoreflow.draw import make_draw
from scoreflow.evaluators.likelihood import make_log_prob
from scoreflow.experiment import INIT, Experiment
from scoreflow.metrics import inception
from scoreflow.runs import parallel
from scoreflow.step import init_state
from scoreflow.types import Params

try:
    import torch

    from benchmarks.torch_plus import TorchDDPMpp
except ModuleNotFoundError:
    torch = None


def print_row(name: str, ours: float, theirs: float | None, unit: str, remark: str = "") -> None:
    """One line: rates, more is better."""
    baseline = f"PyTorch {theirs:10.4g}  ratio {ours / theirs:5.2f}x" if theirs else "PyTorch not installed"
    print(f"{name:30s} {ours:10.4g} {unit:14s} {baseline}  {remark}", flush=True)


def config_of(arguments: argparse.Namespace, dtype: str) -> Any:
    """`cifar10_edm` on random levels, at the asked width."""
    config = published_images.get_config("cifar10_edm")
    config.data.update({"name": "arrays", "path": str(arguments.data)})
    config.model.update({"channels": arguments.channels, "blocks": arguments.blocks, "dtype": dtype})
    config.training.batch_size = config.sampling.batch_size = config.eval.batch_size = arguments.batch
    if jax.default_backend() == "cpu":  # where a loop saves no time
        config.training.steps_per_dispatch = 1
    return config


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def torch_device() -> str:
    """Where PyTorch runs."""
    return "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"


def torch_wait() -> None:
    """Until the device is done."""
    if torch_device() == "cuda":
        torch.cuda.synchronize()


def torch_model(config: Any) -> tuple[Any, Callable]:
    """The network and its compiled form."""
    network = config.model
    widths = (network.channels, tuple(network.multipliers), network.blocks)
    model = TorchDDPMpp(32, *widths, tuple(network.attention), network.dropout)
    model = model.to(torch_device(), memory_format=torch.channels_last)
    torch.set_float32_matmul_precision("high")
    return model, torch.compile(model)


def torch_denoised(run: Callable, dtype: str, x: Any, sigma: Any) -> Any:
    """EDM's preconditioning for data of root mean square 1/2."""
    total = (sigma**2 + 0.25)[:, None, None, None]
    expanded = sigma[:, None, None, None]
    with torch.autocast(torch_device(), torch.bfloat16, enabled=dtype == "bfloat16"):
        output = run((x / total.sqrt()).contiguous(memory_format=torch.channels_last), -2.0 * sigma.log())
    return 0.25 / total * x + 0.5 * expanded / total.sqrt() * output.float()


def torch_step(config: Any) -> tuple[Callable[[], None], int]:
    """A function that makes one step, and the number of parameters."""
    model, run = torch_model(config)
    dtype, device = config.model.dtype, torch_device()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=device == "cuda")
    levels = torch.randint(0, 256, (config.training.batch_size, 3, 32, 32), device=device)

    def step():
        x0 = levels.float() / 127.5 - 1.0
        sigma = torch.exp(1.2 * torch.randn(len(x0), device=device) - 1.2)
        xt = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
        weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)[:, None, None, None]
        loss = (weight * (torch_denoised(run, dtype, xt, sigma) - x0) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 0.001)
        torch_wait()

    return step, sum(p.numel() for p in model.parameters())


def torch_heun(config: Any) -> Callable[[], None]:
    """A function that draws a batch of samples."""
    model, run = torch_model(config)
    model.eval()
    n, device = config.sampling.steps, torch_device()
    ramp = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), n + 1) ** 7

    @torch.no_grad()
    def draw():
        x = 80.0 * torch.randn(config.sampling.batch_size, 3, 32, 32, device=device)

        def slope_at(x, s):
            return (x - torch_denoised(run, config.model.dtype, x, torch.full((len(x),), s, device=device))) / s

        for s, after in zip(ramp[:-1], ramp[1:]):
            slope = slope_at(x, float(s))
            trial = x + float(after - s) * slope
            x = x + 0.5 * float(after - s) * (slope + slope_at(trial, float(after)))
        x = x - float(ramp[-1]) * slope_at(x, float(ramp[-1]))
        torch_wait()

    return draw


def torch_divergence(config: Any) -> Callable[[], None]:
    """A function that evaluates the drift and its Hutchinson divergence for a batch."""
    model, run = torch_model(config)
    model.eval()
    x = torch.randn(config.eval.batch_size, 3, 32, 32, device=torch_device()).requires_grad_()
    probe, sigma = torch.sign(torch.randn_like(x)), torch.ones(len(x), device=torch_device())

    def evaluate():
        drift = x - torch_denoised(run, config.model.dtype, x, sigma)
        (pulled,) = torch.autograd.grad(drift, x, probe)
        (probe * pulled).flatten(1).sum(1)
        torch_wait()

    return evaluate


# --- rows -------------------------------------------------------------------------------------------------------------


def product_rate(dtype: str) -> float:
    """Operations a second of a large square matrix product on one device."""
    n, times = (2048, 2) if jax.default_backend() == "cpu" else (8192, 20)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype) / np.sqrt(n)
    chain = parallel.jit(lambda a: jax.lax.fori_loop(0, times, lambda _, b: a @ b, a))
    return 2 * n**3 * times / median_seconds(lambda: chain(a), 5, warm=2)


def bench_train(arguments: argparse.Namespace, dtype: str) -> None:
    """Images a second in training."""
    config = config_of(arguments, dtype)
    experiment = configure.experiment(config, "cifar10_edm")
    options = configure.train_options(config, experiment)
    per_call = options.batch_size * options.steps_per_dispatch
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batches = (batch for _, batch in data.prefetch(batches_of(experiment, options, 0)))
    first = next(batches)
    one_step = dispatch_of(experiment, options._replace(steps_per_dispatch=1))
    lowered = one_step.lower(state, jax.tree.map(lambda leaf: leaf[:1], first))
    operations = lowered.cost_analysis()["flops"] / options.batch_size
    dispatch, memory = parallel.compile_for(dispatch_of(experiment, options), state, first)

    def step(batch):
        nonlocal state
        state, metrics = dispatch(state, batch)
        return metrics

    alone = median_seconds(lambda: step(first), arguments.repeats, warm=2)
    began = time.perf_counter()  # as in training: the host prepares the next batches while the device works
    for _ in range(arguments.repeats):
        metrics = step(next(batches))
    jax.block_until_ready(metrics)
    with_host = (time.perf_counter() - began) / arguments.repeats
    theirs = None
    if torch:
        run, torch_size = torch_step(config)
        if size != torch_size:
            raise RuntimeError(f"not the same network: {size} and {torch_size} parameters")
        theirs = options.batch_size / median_seconds(run, arguments.repeats, warm=2)
    peak = (arguments.peak * 1e12 or product_rate(dtype)) * parallel.device_count()
    utilization = operations * per_call / alone / peak
    of = f"--peak={arguments.peak:g}" if arguments.peak else f"a matrix product's {peak / 1e12:.3g} TFLOP/s"
    remark = f"{size:,} parameters; {operations / 1e9:.3g} GFLOP an image, {utilization:.0%} of {of}"
    print_row(f"training, {dtype}", per_call / alone, theirs, "images/s", remark)
    remark = f"memory of each device: {memory}"
    print_row("  with its batches from the host", per_call / with_host, theirs, "images/s", remark)


def fresh_params(experiment: Experiment, config: Any) -> Params:
    """Untrained parameters on all devices."""
    return init_state(
        experiment.init, configure.train_options(config, experiment).optimizer, experiment.key(INIT)
    ).params


def bench_sample(arguments: argparse.Namespace, dtype: str) -> None:
    """Images a second of Heun's rule."""
    config = config_of(arguments, dtype)
    experiment = configure.experiment(config, "cifar10_edm")
    params, draw_samples = fresh_params(experiment, config), make_draw(experiment, arguments.batch)
    drawn = draw_samples(params, jax.random.key(0), arguments.batch)
    seconds = median_seconds(lambda: draw_samples(params, jax.random.key(0), arguments.batch).x, 3, warm=0)
    ours = arguments.batch / seconds
    theirs = arguments.batch / median_seconds(torch_heun(config), 3) if torch else None
    remark = f"{drawn.nfe:.0f} evaluations; 50,000 images in {50_000 / ours / 60:.1f} min"
    print_row(f"sampling, {dtype}", ours, theirs, "images/s", remark)


def bench_likelihood(arguments: argparse.Namespace, dtype: str) -> None:
    """Evaluations of drift and divergence a second."""
    config = config_of(arguments, dtype)
    experiment, evaluation = configure.experiment(config, "cifar10_edm"), configure.evaluation(config)
    context = evaluation.context(experiment, fresh_params(experiment, config))
    solve = make_log_prob(context)
    keys = jax.random.split(jax.random.key(0), arguments.batch)
    levels = np.asarray(experiment.data.test.x[: arguments.batch])
    x = np.asarray(context.rule(context.params, jax.random.key(1), levels).x)
    nfe = float(solve("timed", keys, x).nfe.max())  # a batch runs as long as its slowest example
    seconds = median_seconds(lambda: solve("timed", keys, x).logp, 2, warm=0)
    theirs = arguments.batch / median_seconds(torch_divergence(config), 5, warm=2) if torch else None
    remark = f"evaluations of drift and divergence; {arguments.batch / seconds:.3g} images/s at {nfe:.0f} evaluations"
    print_row(f"likelihood, {dtype}", arguments.batch * nfe / seconds, theirs, "evaluations/s", remark)


def bench_inception(arguments: argparse.Namespace) -> None:
    """Images a second through the network of the FID."""
    if not torch:
        print("inception: left out, since its random weights are PyTorch's")
        return
    from torch_fidelity import feature_extractor_inceptionv3 as module

    load, module_load = torch.nn.Module.load_state_dict, torch.load
    torch.nn.Module.load_state_dict, torch.load = (lambda *args, **options: None), (lambda *args, **options: {})
    try:
        theirs = module.FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path="unused")
    finally:
        torch.nn.Module.load_state_dict, torch.load = load, module_load
    theirs = theirs.to(torch_device()).eval()
    layers = inception.fold({name: value.cpu().numpy() for name, value in theirs.state_dict().items()})
    n = arguments.images
    x = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    extract = inception.features_of(parallel.replicate(layers), 256)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    @torch.no_grad()
    def run():
        for batch in images.split(min(100, n)):
            theirs(batch.to(torch_device()))[0].cpu()

    seconds, torch_seconds = median_seconds(lambda: extract(x).pool, 2), median_seconds(run, 2)
    print_row("Inception, float32", n / seconds, n / torch_seconds, "images/s")


def main() -> None:
    """Parses the flags and prints the rows."""
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="train,sample,likelihood,inception")
    parser.add_argument("--channels", type=int, default=32 if cpu else 128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16 if cpu else 512)
    parser.add_argument("--repeats", type=int, default=7 if cpu else 20)
    parser.add_argument("--images", type=int, default=50 if cpu else 2000, help="through Inception")
    parser.add_argument("--dtypes", default="float32" if cpu else "bfloat16,float32")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of a device by its data sheet")
    arguments = parser.parse_args()
    versions = f"jax {jax.__version__}" + (f", PyTorch {torch.__version__}" if torch else "")
    size = f"{arguments.channels} channels, batch {arguments.batch}"
    print(f"{parallel.describe()}, {os.cpu_count()} cores, {versions}; {size}")
    with tempfile.TemporaryDirectory() as folder:
        arguments.data = Path(folder) / "images.npz"
        levels = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3)).astype(np.uint8)
        np.savez(arguments.data, train=levels, test=levels[:2000])
        for name in arguments.only.split(","):
            if name == "inception":
                bench_inception(arguments)
                continue
            for dtype in arguments.dtypes.split(","):
                {"train": bench_train, "sample": bench_sample, "likelihood": bench_likelihood}[name](arguments, dtype)


if __name__ == "__main__":
    main()
