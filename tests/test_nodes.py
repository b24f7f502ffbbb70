"""Nodes of a multistep rule: what is expected of a plan is what is measured, and the best plan is chosen."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import gaussian, terminal
from scoreflow.likelihood import multistep, nodes
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.processes import sdes
from scoreflow.samplers.adams import ORDER
from tests.truth import PROCESSES, TOY, lagrange_weights


def met(q, rate, slope=None, pull=None):
    """What a pilot of len(rate[0]) examples would have met, in one dimension."""
    rate = np.asarray(rate)
    zeros = np.zeros((*rate.shape, 1))
    slope, pull = (zeros if each is None else each for each in (slope, pull))
    return multistep.Nodes(slope, rate, pull, np.zeros_like(pull))


def bumps(q):
    """Smooth functions of q for three examples, [len(q), 3], and their integrals over all q."""
    return np.stack([np.exp(-((q - c) ** 2) / s) for c, s in ((0.0, 0.5), (1.0, 0.8), (-1.5, 0.3))], 1)


def plans(q, met, order, most):
    """Of nodes of the pilot alone."""
    return nodes.plans(q, *nodes.integrands(q, met, q), order, most)


@pytest.mark.parametrize("order", [2, 3])
def test_the_expected_error_is_that_of_the_rule_on_the_integrand(order):
    """Of a known integrand: the exact integral minus the rule's, the sum of all its steps."""
    q = np.linspace(-4.0, 4.0, 41)
    found = plans(q, met(q, bumps(q)), order, 12)[10]
    at = q[found.nodes]
    rule = np.zeros(3)
    for n in range(1, len(at)):
        around = np.arange(n, max(n - order, -1), -1)
        rule += lagrange_weights(at, n - 1, around) @ bumps(at[around])
    fine = np.linspace(-4.0, 4.0, 20001)
    np.testing.assert_allclose(found.error, rule - np.trapezoid(bumps(fine), fine, axis=0), atol=2e-5)


def test_an_error_of_the_place_counts_by_the_gradient_of_the_density():
    """With a constant gradient, slopes have the effect of rates: the sum is what (1) says."""
    q = np.linspace(-4.0, 4.0, 31)
    slope, pull = bumps(q)[..., None] * [1.0, -0.5], np.broadcast_to([2.0, 1.0], (31, 3, 2))
    alone = plans(q, met(q, 1.5 * bumps(q)), 3, 8)[8]
    both = plans(q, met(q, 0 * bumps(q), slope, pull), 3, 8)[8]
    np.testing.assert_array_equal(alone.nodes, both.nodes)
    np.testing.assert_allclose(alone.error, both.error, atol=1e-12)


def bent(q):
    """Values of a pilot of three examples in one dimension where the place matters too."""
    values = bumps(q)
    slope, pull, bend = 0.3 * values[..., ::-1], 1.0 + 0.1 * values, 0.5 + values
    return multistep.Nodes(slope[..., None], values, pull[..., None], bend[..., None])


@pytest.mark.parametrize("order", [2, 3])
def test_the_local_error_is_that_of_corrector_and_predictor(order):
    q = np.sort(np.random.default_rng(0).uniform(-3, 3, 12))
    end, place = nodes.integrands(q, bent(q), q)
    for i, j, k in ((0, 1, 2), (0, 4, 6), (3, 5, 9), (5, 8, 11), (2, 3, 4)):
        m = max(2 * i - j, 0)
        before = [j, i, m][: 2 if m == i else order]
        at = np.sort([*before, k])
        step = np.searchsorted(at, j)
        wanted = 0.0
        for of, used, factor in ((end, [k, *before[: order - 1]], 1.0), (place, before, q[k] - q[j])):
            rule = lagrange_weights(q[at], step, np.searchsorted(at, used)) @ of.value[k, used]
            wanted = wanted + factor * (rule - of.area[k, k] + of.area[k, j])
        np.testing.assert_allclose(nodes.local_errors(q, end, place, order, k)[i, j], wanted, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_no_other_nodes_have_a_smaller_sum_of_errors(order):
    q = np.linspace(-3.0, 3.0, 11)
    values = bent(q)
    both = nodes.integrands(q, values, q)
    first, size = nodes.first_errors(q, *both), lambda error: np.sqrt(np.mean(error**2))

    def cost(path):
        steps = zip(path, path[1:], path[2:])
        later = (size(nodes.local_errors(q, *both, order, k)[i, j]) for i, j, k in steps)
        return size(first[path[1]]) + sum(later)

    found = plans(q, values, order, 5)
    for steps in (2, 4, 5):
        best = min(cost((0, *inner, 10)) for inner in itertools.combinations(range(1, 10), steps - 1))
        assert len(found[steps].nodes) == steps + 1 and cost(found[steps].nodes.tolist()) == pytest.approx(best)


@pytest.mark.parametrize("order", [2, 3])
def test_the_expected_error_is_the_one_that_is_measured(order):
    """Of a mixture with its exact score, by the rule on few nodes and on many."""
    process, start, around = PROCESSES["vp"], 1e-3, gaussian.standard(1, 0.5)
    score, end = TOY.score(process), terminal.prior(process)
    x = jnp.asarray(TOY.sample(np.random.default_rng(5), 200), jnp.float32).reshape(-1, 1)
    t = nodes.even(process, start, process.horizon, 97)

    @functools.partial(jax.jit, static_argnames="keep")
    def run(rule, keep=False):
        path = multistep.follow(process, score, around, rule, x, probe=jnp.ones_like(x), keep=keep)
        return multistep.density_of(path, end, around.of(None, len(x)), rule).logp, path.nodes

    _, pilot = run(multistep.rule_at(process, t, 3), keep=True)
    truth, _ = run(multistep.rule_at(process, nodes.even(process, start, process.horizon, 401), 3))
    q = multistep.q_at(process, t)
    plan = plans(q, pilot, order, 31)[31]
    measured = run(multistep.rule_at(process, t[plan.nodes], order))[0] - truth
    assert np.std(plan.error - measured) < 0.15 * np.std(measured)
    straight = nodes.integrands(q, pilot._replace(bend=0 * pilot.bend), q)
    of_correctors = nodes.expected(q, *straight, plan.nodes, order)
    assert np.std(of_correctors - measured) > 0.5 * np.std(measured)


def test_a_pilot_of_half_the_nodes_expects_nearly_the_same():
    """Interpolated onto nodes in between, it is the integral of a smooth function all the same."""
    q = np.linspace(-4.0, 4.0, 65)
    fine = nodes.halved(q)
    np.testing.assert_allclose(fine, np.linspace(-4.0, 4.0, 129), atol=1e-12)
    path = np.asarray([0, 13, 31, 44, 61, 70, 77, 90, 101, 115, 128])
    few, many = (nodes.expected(fine, *nodes.integrands(at, bent(at), fine), path, 3) for at in (q, fine))
    np.testing.assert_allclose(few, many, atol=1e-4)
    assert np.abs(many).min() > 1e-2


def test_the_fewest_nodes_are_chosen_whose_measured_error_is_small_enough():
    """Nothing is expected to be left, and what is measured falls with the fourth power of the number of nodes."""
    q = np.linspace(-4.0, 4.0, nodes.PILOT)
    values, tried = met(q, 0 * bumps(q)), []

    def measure(nodes, order):
        tried.append((len(nodes), order))
        return Estimate((10 / len(nodes)) ** 4 * (1.0 if order == 2 else 1.2), 0.02)

    choice = nodes.choose(q, values, measure, 0.15)
    assert len(choice.q) == 17 and choice.order == 2 and choice.error.value == pytest.approx((10 / 17) ** 4)
    assert choice.tried == tuple(count for count, _ in tried)
    # of order p an error e at K nodes is taken to fall below 0.15 at K (e / 0.15)^(1 / 2p) nodes
    assert tried == [(8, 2), (8, 3), (14, 3), (16, 3), (17, 2), (17, 3)]
    assert choice.q[0] == -4.0 and choice.q[-1] == 4.0
    # a value of 0.12 and an error of 0.04 are each below 0.15, and not together
    unsure = nodes.choose(q, values, lambda nodes, order: measure(nodes, order)._replace(stderr=0.04), 0.15)
    assert len(unsure.q) == 18 and (10 / 17) ** 4 < 0.15 - 0.02 < (10 / 17) ** 4 + 0.04
    never = nodes.choose(q, values, lambda nodes, order: Estimate(1.0, 0.0), 0.15)
    assert len(never.q) == nodes.PILOT and never.order == ORDER and np.isnan(never.error.value)
    nearly = nodes.choose(q, values, lambda nodes, order: Estimate(0.2 + abs(len(nodes) - 14), 0.0), 0.15)
    assert len(nearly.q) == min(nearly.tried, key=lambda count: abs(count - 14)) < nodes.PILOT
    assert np.isnan(nearly.error.value)


def test_plans_that_promise_too_little_are_not_tried():
    q = np.linspace(-4.0, 4.0, nodes.PILOT)
    values, tried = met(q, bumps(q)), []
    grid = nodes.halved(q)
    both = nodes.integrands(q, values, grid)
    promised = [mean_estimate(nodes.plans(grid, *both, order, 7)[7].error) for order in (2, 3)]
    asked = min(max(abs(error.value), error.stderr) for error in promised) / 1.1
    nodes.choose(q, values, lambda nodes, order: tried.append(len(nodes)) or Estimate(0.0, 0.0), asked)
    assert tried and min(tried) > 8


@pytest.mark.parametrize("name", ["vp", "edm", "straight"])
def test_nodes_are_even_in_log_snr_and_refined_there(name):
    process, start = PROCESSES[name], 2e-3
    t = nodes.even(process, start, process.horizon, 9)
    assert (t[0], t[-1]) == (start, process.horizon)
    np.testing.assert_allclose(np.diff(multistep.q_at(process, t)), np.diff(multistep.q_at(process, t))[0], rtol=1e-6)
    np.testing.assert_allclose(nodes.refined(process, t), nodes.even(process, start, process.horizon, 33), rtol=1e-6)


def test_processes_of_jax_arrays_are_taken_too():
    process = sdes.vp_linear(jnp.float32(0.1), jnp.float32(20.0))
    rule = multistep.rule_at(process, nodes.even(process, 1e-3, 1.0, 5), 2)
    np.testing.assert_allclose(rule.alpha, process.alpha(rule.t), rtol=1e-5)
