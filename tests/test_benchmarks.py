"""Benchmarks start as their commands; that of the image path runs at tiny width and counts operations as layers do."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from benchmarks import agreement, images, likelihood, photos
from scoreflow import gaussian, terminal
from scoreflow.likelihood import multistep, nodes, ode
from scoreflow.models import network, plus
from scoreflow.models.unet import UNet
from scoreflow.processes import sdes
from scoreflow.score import V, score_fn
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "images", "likelihood", "agreement"])
def test_benchmarks_start_from_the_root_of_the_repository(name):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    result = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"python -m benchmarks.{name}" in result.stdout


@pytest.mark.full
def test_the_image_benchmark_prints_rates_and_the_operations_of_a_step(capsys, monkeypatch):
    monkeypatch.setattr(images, "torch", None)
    options = ["--only=train,sample,likelihood", "--channels=8", "--blocks=1", "--batch=4", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["images.py", *options])
    images.main()
    out = capsys.readouterr().out
    rates = dict(re.findall(r"^(training|sampling|likelihood), float32 +(\S+) ", out, re.M))
    assert rates.keys() == {"training", "sampling", "likelihood"} and all(float(rate) > 0 for rate in rates.values())
    assert "35 evaluations" in out
    # a step is one forward pass and a reverse pass of twice its products, plus what is not a product
    net = network(plus.DDPMpp(channels=8, multipliers=(2, 2, 2), blocks=1, attention=(16,)))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), (1, 32, 32, 3)))
    forward = jax.jit(net.apply).lower(params, jax.numpy.zeros((1, 32, 32, 3)), jax.numpy.zeros(1))
    (counted,) = re.findall(r"(\S+) GFLOP an image", out)
    assert 2.2 < float(counted) * 1e9 / forward.cost_analysis()["flops"] < 4.0


@pytest.mark.slow
def test_the_likelihood_benchmark_compares_methods_that_agree(tmp_path, capsys):
    tiny.trained(tmp_path / "run")
    sys.argv = ["likelihood.py", f"--workdir={tmp_path / 'run'}", "--num=8", "--repeats=1"]
    likelihood.main()
    out = capsys.readouterr().out
    (tenth,) = re.findall(r"mean over all is (\S+)", out)
    rows = re.findall(r"^(multistep|adaptive|host) .* ([-+]\S+) ± (\S+)  (\S.*)?$", out, re.M)
    assert {name for name, *_ in rows} == {"multistep", "adaptive", "host"}
    for name, error, stderr, remark in rows:
        if remark == "equal answer" or name == "multistep":
            assert abs(float(error)) < max(float(tenth), 3 * float(stderr))
    assert "PyTorch's libraries are left out: the run has" in out  # whose network is no U-Net


@pytest.mark.slow
def test_the_agreement_with_the_adaptive_solver_is_the_error_that_is_printed(tmp_path, capsys):
    """Both are what the rule is off by: against a tight adaptive solve, and against four times as many steps."""
    tiny.trained(tmp_path / "run", eval__error=3.0)  # with few nodes, so that there is an error
    sys.argv = ["agreement.py", str(tmp_path / "run"), "--num=8"]
    agreement.main()
    _, row = re.findall(r"^run .*$", capsys.readouterr().out, re.M)
    nfe, _, _, apart, _, printed, _, asked = (float(word) for word in re.findall(r"[-+]?\d\S*", row))
    assert nfe < 64 and asked > 0
    assert abs(apart) > 1e-3 and apart == pytest.approx(printed, abs=0.1 * abs(printed) + 2e-4)
    with pytest.raises(SystemExit, match="2"):
        sys.argv = ["agreement.py", str(tmp_path / "none")]
        agreement.main()


@pytest.mark.parametrize("rank", [1, 3])
def test_what_a_probe_makes_of_the_trace_of_a_gaussian_is_known(rank):
    """Without it the adaptive solver's answer by one probe is the exact log-density; one direction leaves a rest."""
    process, start = sdes.vp_linear(), 1e-3
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    variances = np.asarray([2.0, 0.3, 0.3])
    covariance, mean = basis @ np.diag(variances) @ basis.T, np.zeros(3)

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        marginal = alpha**2 * jnp.asarray(covariance, jnp.float32)[None] + variance * jnp.eye(3)[None]
        apart = x - alpha[..., 0] * jnp.asarray(mean, jnp.float32)[None]
        return -jnp.linalg.solve(marginal, apart[..., None])[..., 0]

    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 6)
    solved = ode.log_prob(process, score, terminal.prior(process), keys, x, t_min=start, rtol=1e-6, atol=1e-6)
    around = gaussian.Gaussian(
        jnp.asarray(mean)[None], basis[:, :rank], np.broadcast_to(variances[:rank], (6, rank)), np.full(6, 0.3)
    )
    known = agreement.of_the_probe(process, start, around, np.asarray(ode.probes(keys, x)))
    alpha, variance = (float(f(start)) for f in (process.alpha, process.variance))
    law = stats.multivariate_normal(alpha * mean, alpha**2 * covariance + variance * np.eye(3))
    assert np.std(known) > 0.1
    np.testing.assert_allclose(solved.logp - known, law.logpdf(x), atol=5e-3)


@pytest.mark.full
def test_likelihoods_in_pytorch_are_those_of_the_same_network():
    """Needs `pip install -e '.[bench]' k-diffusion flow-matching`."""
    pytest.importorskip("flow_matching")
    from benchmarks import torch_peers

    settings = {"channels": 8, "multipliers": (1, 2), "blocks": 1}
    net, process, start = network(UNet(**settings, dropout=0.0)), sdes.vp_linear(), 1e-3
    params = net.init(jax.random.key(0), (1, 8, 8, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    flow = torch_peers.Flow(torch_peers.unet(params, ConfigDict(settings), 1), 0.1, 20.0, start)
    x = 0.5 * np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    score = score_fn(process, net.apply, params, V, sigma_data=1.0)
    rule = multistep.rule_at(process, nodes.even(process, start, 1.0, 400), 3)
    around = gaussian.standard(64)
    for solve in (torch_peers.by_flow_matching, torch_peers.by_k_diffusion):
        theirs = solve(flow, x, 1e-5)
        path = multistep.follow(process, score, around, rule, jax.numpy.asarray(x), probe=theirs.probe)
        ours = multistep.density_of(path, terminal.prior(process), around.of(None, 3), rule)
        np.testing.assert_allclose(theirs.logp, ours.logp, atol=0.02)


@pytest.mark.full
def test_the_network_timed_against_is_the_same_function():
    """With our weights PyTorch's DDPM++ gives our values. Needs `pip install -e '.[bench]'`."""
    torch = pytest.importorskip("torch")
    from benchmarks.torch_plus import TorchDDPMpp

    net = network(plus.DDPMpp(channels=8, multipliers=(1, 2), blocks=2, attention=(4,), dropout=0.0))
    x, log_snr = jax.random.normal(jax.random.key(0), (3, 8, 8, 3)), jax.numpy.array([-4.0, 0.0, 4.0])
    params = net.init(jax.random.key(1), x.shape)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    theirs = TorchDDPMpp(8, 8, (1, 2), 2, (4,), 0.0)

    def put(module, given):
        kernel = np.asarray(given["kernel"] if "kernel" in given else given["scale"])
        if isinstance(module, torch.nn.Linear):
            kernel = kernel.reshape(module.in_features, -1).T
        elif isinstance(module, torch.nn.Conv2d):
            kernel = kernel.reshape(*module.kernel_size, *kernel.shape[-2:]).transpose(3, 2, 0, 1)
        assert kernel.shape == module.weight.shape
        module.weight.data = torch.tensor(kernel)
        module.bias.data = torch.tensor(np.asarray(given["bias"]).reshape(-1))

    put(theirs.first, params["Conv3x3_0"])
    put(theirs.embed[0], params["Dense_1"])  # Flax numbers it after the layer it feeds
    put(theirs.embed[2], params["Dense_0"])
    put(theirs.last_norm, params["GroupNorm_0"])
    put(theirs.last, params["Conv3x3_1"])
    for i, block in enumerate([*theirs.down, theirs.middle1, theirs.middle2, *theirs.up]):
        given = params[f"Block_{i}"]
        pairs = {"norm1": "GroupNorm_0", "conv1": "Conv3x3_0", "shift": "Dense_0", "norm2": "GroupNorm_1"}
        pairs |= {"conv2": "Conv3x3_1"} | ({"skip": "Dense_1"} if "Dense_1" in given else {})
        for ours, name in pairs.items():
            put(getattr(block, ours), given[name])
        if "Attention_0" in given:
            layers = {"norm": "GroupNorm_0", "qkv": "DenseGeneral_0", "out": "DenseGeneral_1"}
            for ours, name in layers.items():
                put(getattr(block.attention, ours), given["Attention_0"][name])
    with torch.no_grad():
        output = theirs(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), torch.tensor(np.asarray(log_snr)))
    expected = np.asarray(net.apply(params, x, log_snr))
    tolerances = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
    np.testing.assert_allclose(output.permute(0, 2, 3, 1).numpy(), expected, **tolerances)


def test_crops_of_photos_are_slices():
    image = np.arange(20 * 15 * 3).reshape(20, 15, 3)
    rows = photos.crops([image, image[:9, :9]], size=8, stride=4)
    assert len(rows) == 4 * 2 + 1  # at 0, 4, 8 and 12 down, and 0 and 4 across
    np.testing.assert_array_equal(rows[5], image[8:16, 4:12])
    np.testing.assert_array_equal(rows[8], image[:8, :8])


@pytest.mark.full
def test_the_study_for_a_gpu_writes_what_each_run_measured(tmp_path):
    environment = os.environ | {"FAST": "1", "NUM_TEST": "20", "NUM_SAMPLES": "100", "PYTHONPATH": str(tiny.ROOT)}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = [str(tiny.ROOT / "benchmarks" / "gpu_study.sh"), str(tmp_path / "out")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    content = json.loads((tmp_path / "out" / "gpu_study.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["base", "order_2", "mixture"]
    text = json.dumps(content)
    assert all(name in text for name in ("examples_per_second", "bits_per_dim", "frechet", "memory_mib"))
