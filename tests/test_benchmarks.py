"""The benchmark of the image path at tiny width: it runs, and counts operations as the layers do."""

import re
import sys

import jax
import pytest

from benchmarks import images
from scoreflow.models import network, plus


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.full
def test_it_prints_rates_and_the_operations_of_a_step(capsys, monkeypatch):
    monkeypatch.setattr(images, "torch", None)
    options = ["--only=train,sample,likelihood", "--channels=8", "--blocks=1", "--batch=4", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["images.py", *options])
    images.main()
    out = capsys.readouterr().out
    rates = dict(re.findall(r"^(training|sampling|likelihood), float32 +(\S+) ", out, re.M))
    assert rates.keys() == {"training", "sampling", "likelihood"} and all(float(rate) > 0 for rate in rates.values())
    assert "35 evaluations" in out
    # a step is one forward pass and a reverse pass of twice its products, plus what is not a product
    net = network(plus.ddpmpp(channels=8, multipliers=(2, 2, 2), blocks=1, attention=(16,)))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), (1, 32, 32, 3)))
    forward = jax.jit(net.apply).lower(params, jax.numpy.zeros((1, 32, 32, 3)), jax.numpy.zeros(1))
    (counted,) = re.findall(r"(\S+) GFLOP an image", out)
    assert 2.2 < float(counted) * 1e9 / forward.cost_analysis()["flops"] < 4.0
