"""A sampler with everything that does not change from draw to draw: its process, its grid and its guidance."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from scoreflow.processes.sdes import Process
from scoreflow.samplers import guide
from scoreflow.samplers.adaptive import adaptive
from scoreflow.samplers.loop import Sample, SampleResult
from scoreflow.score import Score
from scoreflow.types import Flag, Key, NonNegative, Positive, Steps


class Sampler(NamedTuple):
    """A sampling algorithm on a grid.

    Attributes:
      run: the algorithm, its options bound.
      process: the forward SDE.
      grid: times from T down to the last time; an adaptive sampler uses its ends.
      guidance: strength of classifier-free guidance; 1 for none.
      data_dependent: whether its number of steps depends on the data, so that each device must loop on its own.
    """

    run: Sample
    process: Process
    grid: jax.Array
    guidance: float = 1.0
    data_dependent: bool = False

    def draw(
        self, score: Score, key: Key, x_init: jax.Array, cond: jax.Array | None = None, *, trajectory: bool = False
    ) -> SampleResult:
        """Samples from x_init [B, ...] at the horizon; `key` is one key, or one for each sample [B]."""
        guided = score if self.guidance == 1.0 else guide.classifier_free(score, self.guidance)
        return self.run(self.process, guided, key, x_init, self.grid, cond, trajectory=trajectory)


def sampler(
    run: Sample,
    process: Process,
    make_grid: Callable[..., jax.Array],
    *,
    steps: Steps = 40,
    scale_steps: Flag = True,
    t_min: Positive = 1e-3,
    guidance: NonNegative = 1.0,
    usual_horizon: float | None = None,
    data_dependent: bool | None = None,
) -> Sampler:
    """A sampler on a grid of `steps` steps.

    Args:
      run: the algorithm, its options bound.
      process: the forward SDE.
      make_grid: (process, n, *, t_min) -> times.
      steps: Number of steps of a fixed grid, for the process's usual horizon.
      scale_steps: A shorter horizon takes its share of the steps; otherwise all of them.
      t_min: Last time of the grid.
      guidance: Strength of classifier-free guidance: 0 ignores labels, 1 follows them, more exaggerates them.
      usual_horizon: the horizon for which `steps` is meant; None for that of the process itself.
      data_dependent: whether the number of steps depends on the data; None where `adaptive` is the only such sampler.
    """
    if scale_steps and usual_horizon is not None:
        steps = max(1, round(steps * float(process.horizon) / usual_horizon))
    if data_dependent is None:
        data_dependent = getattr(run, "func", run) is adaptive
    grid = make_grid(process, 1 if data_dependent else steps, t_min=t_min)
    return Sampler(run, process, grid, guidance, data_dependent)
