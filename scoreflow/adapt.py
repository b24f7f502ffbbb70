"""The score of a function of one's own: of a denoiser, or of a network's output, checked before it is used."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow import score as scores
from scoreflow.processes.sdes import Process, expand
from scoreflow.runs.errors import first_line
from scoreflow.score import Prediction, Score

_TRIED = 3  # examples with which a function is traced
_TRACED = "it must be a JAX function that can be traced: jax.numpy in the place of numpy, no `if` on values"


class Labels(NamedTuple):
    """What a function does with labels.

    Attributes:
      takes: whether labels are passed on.
      needs: whether it cannot be called without them.
    """

    takes: bool
    needs: bool


def labels_of(fn: Callable, num_classes: int) -> Labels:
    """Whether a function has a third argument, which is for labels where there are classes or it has no default.

    Raises:
      ValueError: if it needs a third argument and there are no classes, or takes none and there are some.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # of a built-in function
        return Labels(num_classes > 0, num_classes > 0)
    third = [p for p in parameters if p.kind in kinds][2:3]
    needs = bool(third) and third[0].default is inspect.Parameter.empty
    if needs and not num_classes:
        raise ValueError(f"the function has a third argument, {third[0].name}, which is for labels: give num_classes")
    takes = bool(third) or any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if num_classes and not takes:
        raise ValueError(f"num_classes = {num_classes}, but the function has no third argument for labels")
    return Labels(num_classes > 0, num_classes > 0 and needs)


def check(fn: Callable, shape: tuple[int, ...], labels: Labels) -> None:
    """Traces a function with a few examples of a shape.

    Raises:
      TypeError: if it cannot be traced, or fails for the shapes that it is given; or if it gives no array.
      ValueError: if what it gives has another shape.
    """
    x = jax.ShapeDtypeStruct((_TRIED, *shape), jnp.float32)
    inputs = [x, jax.ShapeDtypeStruct((_TRIED,), jnp.float32)]
    inputs += [jax.ShapeDtypeStruct((_TRIED,), jnp.int32)] * labels.takes
    try:
        out = jax.eval_shape(fn, *inputs)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(f"the function cannot be used: {_TRACED} ({first_line(error)})") from error
    except Exception as error:
        given = f"x {list(x.shape)} and a time or noise level for each example, [{_TRIED}]"
        raise TypeError(f"the function fails when it is given {given}: {first_line(error)}") from error
    if getattr(out, "shape", None) is None:
        raise TypeError(f"the function gives {type(out).__name__}, and not an array like x")
    if out.shape != x.shape:
        raise ValueError(f"the function gives {list(out.shape)} for x {list(x.shape)}; it must be like x")


def called(fn: Callable, labels: Labels) -> Callable[..., jax.Array]:
    """(x, t, cond) -> fn, which is given labels where it takes them and there are some."""

    def call(x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
        return fn(x, t, cond) if labels.takes and cond is not None else fn(x, t)

    return call


def of_prediction(call: Callable, process: Process, prediction: Prediction, sigma_data: float) -> Score:
    """The score of a network's output for x_t at t."""

    def score(x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
        scales = scores.SignalNoise(expand(process.alpha(t), x), expand(process.sigma(t), x), sigma_data)
        return scores.convert(call(x, t, cond), x, scales, prediction, scores.SCORE)

    return score


def of_denoiser(call: Callable, process: Process) -> Score:
    """The score of a denoiser of z = x_0 + sigma noise, since x_t / alpha = x_0 + (sigma / alpha) noise."""

    def score(x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
        alpha, sigma = process.alpha(t), process.sigma(t)
        clean = call(x / expand(alpha, x), sigma / alpha, cond)
        return (expand(alpha, x) * clean - x) / expand(sigma, x) ** 2

    return score
