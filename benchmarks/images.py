"""Speed of the image path: DDPM++ on images of CIFAR-10's size, against PyTorch on the same device in the same run.

    pip install -e '.[bench]'
    python benchmarks/images.py                   # 56 million parameters on a GPU or TPU, a narrow network on a CPU
    python benchmarks/images.py --only=train,sample,likelihood,inception --channels=128 --batch=256 --peak=989

train        a step of `configs/published_images.py:cifar10_edm`, optimizer and average included, and the same with its
             batches shuffled, mirrored and sent by the host; PyTorch: the same network, channels last, torch.compile, Adam,
             average. Utilization is XLA's own count of operations over the rate of a large matrix product on the device,
             measured here in the same type, or over --peak (TFLOP/s).
sample       17 steps of Heun's rule and one to the data: 35 evaluations; PyTorch: the same loop.
likelihood   Hutchinson's divergence along the adaptive solve, its time for each evaluation; PyTorch: one evaluation of
             drift and divergence by a reverse pass, score_sde's way. The network is untrained, so the number of
             evaluations is that of an easy score; a trained one needs more.
inception    features for the FID, random weights; PyTorch: torch-fidelity's network.

Data are random levels. Times are medians. A ratio above 1: ours is faster.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from scoreflow.evaluators.density import make_log_prob

from configs import published_images
from scoreflow import configure, data, train
from scoreflow.metrics import inception
from scoreflow.runs import parallel

try:
    import torch

    from benchmarks.torch_plus import TorchDDPMpp
except ModuleNotFoundError:
    torch = None


def median(run, repeats: int, warm: int = 2) -> float:
    """Median seconds of a call, after some that compile and warm up."""
    times = []
    for _ in range(warm + repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return float(np.median(times[warm:]))


def row(name: str, ours: float, theirs: float | None, unit: str, remark: str = "") -> None:
    """One line: rates, more is better."""
    baseline = f"PyTorch {theirs:10.4g}  ratio {ours / theirs:5.2f}x" if theirs else "PyTorch not installed"
    print(f"{name:30s} {ours:10.4g} {unit:14s} {baseline}  {remark}", flush=True)


def config_of(arguments, dtype: str):
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


def torch_wait(value) -> None:
    """Until the device is done."""
    if torch_device() == "cuda":
        torch.cuda.synchronize()
    del value


def torch_model(config):
    """The network and its compiled form."""
    chosen = config.model
    options = (chosen.channels, tuple(chosen.multipliers), chosen.blocks, tuple(chosen.attention), chosen.dropout)
    model = TorchDDPMpp(32, *options).to(torch_device(), memory_format=torch.channels_last)
    torch.set_float32_matmul_precision("high")
    return model, torch.compile(model)


def torch_denoised(run, dtype: str, x, sigma):
    """EDM's preconditioning for data of root mean square 1/2."""
    total = (sigma**2 + 0.25)[:, None, None, None]
    wide = sigma[:, None, None, None]
    with torch.autocast(torch_device(), torch.bfloat16, enabled=dtype == "bfloat16"):
        found = run((x / total.sqrt()).contiguous(memory_format=torch.channels_last), -2.0 * sigma.log())
    return 0.25 / total * x + 0.5 * wide / total.sqrt() * found.float()


def torch_step(config):
    """() -> after one step."""
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
        torch_wait(loss)

    return step, sum(p.numel() for p in model.parameters())


def torch_heun(config):
    """() -> after a batch of samples."""
    model, run = torch_model(config)
    model.eval()
    n, device = config.sampling.steps, torch_device()
    ramp = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), n + 1) ** 7

    @torch.no_grad()
    def draw():
        x = 80.0 * torch.randn(config.sampling.batch_size, 3, 32, 32, device=device)
        score = lambda x, s: (
            (x - torch_denoised(run, config.model.dtype, x, torch.full((len(x),), s, device=device))) / s
        )
        for s, after in zip(ramp[:-1], ramp[1:]):
            slope = score(x, float(s))
            trial = x + float(after - s) * slope
            x = x + 0.5 * float(after - s) * (slope + score(trial, float(after)))
        torch_wait(x - float(ramp[-1]) * score(x, float(ramp[-1])))

    return draw


def torch_divergence(config):
    """() -> after one evaluation of the drift and its Hutchinson divergence for a batch."""
    model, run = torch_model(config)
    model.eval()
    x = torch.randn(config.eval.batch_size, 3, 32, 32, device=torch_device()).requires_grad_()
    probe, sigma = torch.sign(torch.randn_like(x)), torch.ones(len(x), device=torch_device())

    def evaluate():
        drift = x - torch_denoised(run, config.model.dtype, x, sigma)
        (pulled,) = torch.autograd.grad(drift, x, probe)
        torch_wait((probe * pulled).flatten(1).sum(1))

    return evaluate


# --- rows -------------------------------------------------------------------------------------------------------------


def product_rate(dtype: str) -> float:
    """Operations a second of a large square matrix product on one device."""
    n, times = (2048, 2) if jax.default_backend() == "cpu" else (8192, 20)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype) / np.sqrt(n)
    chain = parallel.jit(lambda a: jax.lax.fori_loop(0, times, lambda _, b: a @ b, a))
    return 2 * n**3 * times / median(lambda: chain(a), 5)


def bench_train(arguments, dtype: str) -> None:
    """Images a second in training."""
    config = config_of(arguments, dtype)
    experiment, plan = configure.experiment(config, "cifar10_edm"), configure.train_options(config)
    per_call = plan.batch_size * plan.steps_per_dispatch
    state = init_state(experiment.init, plan.optimizer, experiment.key(INIT))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    parts = (part for _, part in data.prefetch(train.batches_of(experiment, plan, 0)))
    first = next(parts)
    one = plan._replace(steps_per_dispatch=1)
    counted = train.dispatch_of(experiment, one).lower(state, jax.tree.map(lambda leaf: leaf[:1], first))
    operations = counted.cost_analysis()["flops"] / plan.batch_size
    dispatch, memory = parallel.compile_for(train.dispatch_of(experiment, plan), state, first)

    def step(part):
        nonlocal state
        state, metrics = dispatch(state, part)
        return metrics

    alone = median(lambda: step(first), arguments.repeats)
    begin = time.perf_counter()  # as in training: the host prepares the next batches while the device works
    for _ in range(arguments.repeats):
        metrics = step(next(parts))
    jax.block_until_ready(metrics)
    fed = (time.perf_counter() - begin) / arguments.repeats
    theirs = None
    if torch:
        run, torch_size = torch_step(config)
        if size != torch_size:
            raise RuntimeError(f"not the same network: {size} and {torch_size} parameters")
        theirs = plan.batch_size / median(run, arguments.repeats)
    peak = (arguments.peak * 1e12 or product_rate(dtype)) * parallel.device_count()
    share = operations * per_call / alone / peak
    of = f"--peak={arguments.peak:g}" if arguments.peak else f"a matrix product's {peak / 1e12:.3g} TFLOP/s"
    remark = f"{size:,} parameters; {operations / 1e9:.3g} GFLOP an image, {share:.0%} of {of}"
    row(f"training, {dtype}", per_call / alone, theirs, "images/s", remark)
    row("  with its batches from the host", per_call / fed, theirs, "images/s", f"memory of each device: {memory}")


def bench_sample(arguments, dtype: str) -> None:
    """Images a second of Heun's rule."""
    config = config_of(arguments, dtype)
    experiment = configure.experiment(config, "cifar10_edm")
    params = init_state(experiment.init, configure.train_options(config, experiment.key(INIT)).optimizer).params
    draw = draw.make_draw(experiment, arguments.batch)
    found = draw(params, jax.random.key(0), arguments.batch)
    ours = arguments.batch / median(lambda: draw(params, jax.random.key(0), arguments.batch).x, 3, warm=0)
    theirs = arguments.batch / median(torch_heun(config), 3, warm=1) if torch else None
    remark = f"{found.nfe:.0f} evaluations; 50,000 images in {50_000 / ours / 60:.1f} min"
    row(f"sampling, {dtype}", ours, theirs, "images/s", remark)


def bench_likelihood(arguments, dtype: str) -> None:
    """Evaluations of drift and divergence a second."""
    config = config_of(arguments, dtype)
    experiment = configure.experiment(config, "cifar10_edm")
    plan = configure.evaluation(config, Path("unused"))
    params = init_state(experiment.init, configure.train_options(config, experiment.key(INIT)).optimizer).params
    solve = make_log_prob(experiment, plan, params)
    keys = jax.random.split(jax.random.key(0), arguments.batch)
    x = np.asarray(plan.dequantise(params, jax.random.key(1), np.asarray(experiment.data.test.x[: arguments.batch])).x)
    nfe = float(solve("timed", keys, x).nfe.max())  # a batch runs as long as its slowest example
    seconds = median(lambda: solve("timed", keys, x).logp, 2, warm=0)
    theirs = arguments.batch / median(torch_divergence(config), 5) if torch else None
    remark = f"evaluations of drift and divergence; {arguments.batch / seconds:.3g} images/s at {nfe:.0f} evaluations"
    row(f"likelihood, {dtype}", arguments.batch * nfe / seconds, theirs, "evaluations/s", remark)


def bench_inception(arguments) -> None:
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
        for part in images.split(min(100, n)):
            torch_wait(theirs(part.to(torch_device()))[0].cpu())

    row("Inception, float32", n / median(lambda: extract(x).pool, 2, warm=1), n / median(run, 2, warm=1), "images/s")


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
    print(
        f"{parallel.describe()}, {os.cpu_count()} cores, {versions}; {arguments.channels} channels, batch {arguments.batch}"
    )
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
