"""How far the score is from a gradient field, over time (`likelihood.diagnostics.symmetry`)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.likelihood import diagnostics
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import parallel, report
from scoreflow.types import Count, CountOrZero

_MAPPED = (0.02, 0.1, 0.3, 0.6)  # times of the rotation maps, as fractions of the horizon
_POINTS = 80  # of a map, along each axis


class Curves(NamedTuple):
    """Means over examples at times `t` [T], by name [T]."""

    t: np.ndarray
    values: dict[str, np.ndarray]


def symmetry(
    context: Context, *, symmetry: CountOrZero = 0, symmetry_times: Count = 100, symmetry_probes: CountOrZero = 16
) -> Results | None:
    """Asymmetry of the score's Jacobian, its curves over time and, in the plane, maps of its rotation density.

    Args:
      context: the model and how it is evaluated.
      symmetry: Test examples for how far the score is from a gradient, over time; 0 skips it.
      symmetry_times: Number of times.
      symmetry_probes: Random probes for each example and time; 0 uses all directions.
    """
    if not (context.options.likelihood and symmetry):
        return None
    metrics, curves = symmetry_metrics(context, symmetry, symmetry_times, symmetry_probes)
    if context.folder is not None:
        panels = {name: {"": curves.values[name]} for name in ("weighted", "nasym")}
        report.plot_times(context.folder / "symmetry.png", curves.t, panels)
        if context.experiment.data.shape == (2,):
            report.plot_signed(context.folder / "rotation.png", *rotation_maps(context))
    over_time = {name: [float(v) for v in values] for name, values in curves.values.items()}
    rows = [(name, in_words(value)) for name, value in metrics.items()]
    table = Table("asymmetry of the score's Jacobian", rows)
    return Results({"symmetry": metrics, "symmetry_over_time": over_time}, (table,))


def symmetry_metrics(context: Context, count: int, times: int, probes: int) -> tuple[dict[str, Estimate], Curves]:
    """Means over examples and `times` even times from t_min on, and curves over time."""
    model, data = context.model, context.examples(0, count)
    process, t_min = model.process, model.t_min
    t = t_min + (float(process.horizon) - t_min) * np.arange(times) / times

    def solve(params, keys, x, cond):
        score = model.score(params)
        return diagnostics.symmetry(process, score, keys[0], x, jnp.asarray(t, x.dtype), cond, num=probes)

    values = context.in_batches(solve)("symmetry", context.params, data.keys, data.x, data.cond)._asdict()
    metrics = {name: mean_estimate(value.mean(1)) for name, value in values.items()}
    return metrics, Curves(t, {name: value.mean(0) for name, value in values.items()})


def rotation_maps(context: Context) -> tuple[dict[str, np.ndarray], float]:
    """The rotation density of a score in the plane at four times, [80, 80] by title, and the half side of the square.

    Rows run along the second axis of the plane, from below.
    """
    model = context.model
    extent = 1.15 * float(np.abs(context.experiment.data.test.x).max())
    axis = np.linspace(-extent, extent, _POINTS)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)

    @parallel.jit
    def at(params, t):
        return diagnostics.rotation(model.score(params), x, jnp.full(len(x), t, x.dtype))

    times = [max(model.t_min, fraction * float(model.process.horizon)) for fraction in _MAPPED]
    maps = {f"t = {t:.3g}": parallel.gather(at(context.params, t)).reshape(_POINTS, _POINTS) for t in times}
    return maps, extent
