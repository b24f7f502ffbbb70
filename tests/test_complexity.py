"""Orders of the number of steps: the published table, in words and in the limits of the bound."""

import numpy as np
import pytest

from scoreflow.theory import complexity, processes, wasserstein
from scoreflow.theory.wasserstein import Target
from tests.truth import slope

UNIT = Target(d=4, m0=1.0, L0=1.0, x0_l2=2.0)

ROWS = {name: make(*{"ve_poly": (1.5,), "vp_poly": (3.0,)}.get(name, ())) for name, make in complexity.TABLE.items()}


@pytest.mark.parametrize("name", ROWS)
def test_steps_are_horizon_over_step(name):
    """K = T / eta, which ties the published columns to the derived horizon."""
    row = ROWS[name]
    inverse = complexity.Order(*(-exponent for exponent in row.step))
    np.testing.assert_allclose(row.steps, row.horizon.times(inverse), atol=1e-12)
    assert row.steps(100, 1e-3) == pytest.approx(row.horizon(100, 1e-3) / row.step(100, 1e-3))


def test_orders_in_words():
    words = {name: tuple(map(str, row)) for name, row in ROWS.items()}
    assert words["ve_exp"][:3] == ("d log(d/eps) / eps^2", "eps / log(1/eps)", "eps^2 / d")
    assert words["ve_const"][0] == "d^(3/2) log(d/eps) / eps^3"
    assert words["ve_sqrt"] == (
        "d^(5/4) / eps^(5/2)", "eps^(3/2)", "eps^2 / d", "d^(1/4) / eps^(1/2)", "d^(3/4) / eps^(3/2)"
    )  # fmt: skip
    assert words["ve_poly"][0] == "d^(9/8) / eps^(9/4)" and words["ve_poly"][1] == "eps^(7/4)"
    assert words["vp_linear"][0] == "d log(d/eps)^(1/2) / eps^2" and words["vp_linear"][1] == "eps"
    assert words["vp_poly"][0] == "d log(d/eps)^(1/4) / eps^2"
    assert words["vp_exp"][4] == "d^(1/2) log log(d/eps) / eps"


def test_special_cases_of_the_polynomial_row():
    """c = 0 is a constant and c = 1/2 the square root, up to the constant's own logarithms; rho = 1 a line."""
    assert complexity.ve_poly(0.5) == complexity.ve_sqrt()
    assert complexity.vp_poly(1.0) == complexity.vp_linear()
    assert complexity.ve_poly(0.0).horizon == complexity.ve_const().horizon
    assert complexity.ve_poly(0.0).steps_orthogonal == complexity.ve_const().steps_orthogonal


@pytest.mark.parametrize(
    "process, name",
    [
        (processes.ve_const(), "ve_const"),
        (processes.ve_sqrt(), "ve_sqrt"),
        (processes.ve_poly(1.0, 0.0, 1.5), "ve_poly"),
    ],
)
def test_the_derived_orders_are_those_of_the_bound(x64, process, name):
    """Slopes of T and of the steps against 1 / eps, and of T against d, where no logarithm is in the way."""
    row, accuracies = ROWS[name], np.array([0.1, 0.05, 0.025])
    plans = [wasserstein.plan(process, accuracy, UNIT) for accuracy in accuracies]
    assert slope([plan.horizon for plan in plans], accuracies) == pytest.approx(row.horizon.inverse_eps, abs=0.05)
    assert slope([plan.steps for plan in plans], accuracies) == pytest.approx(
        row.steps_orthogonal.inverse_eps, abs=0.15
    )
    dims = np.array([4, 16, 64])
    horizons = [float(wasserstein.horizon_for(process, Target(d, 1.0, 1.0, np.sqrt(d)), 0.05)) for d in dims]
    assert -slope(horizons, dims) == pytest.approx(row.horizon.d, abs=0.05)
