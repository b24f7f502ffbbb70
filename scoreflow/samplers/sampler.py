"""A sampler with everything that does not change from draw to draw: its process, its grid and its guidance."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.gaussian import Gaussian
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError
from scoreflow.samplers import guide
from scoreflow.samplers.adaptive import Adaptive
from scoreflow.samplers.gaussian_multistep import GaussianMultistep, gaussian_multistep
from scoreflow.samplers.grids import TimeGrid
from scoreflow.samplers.loop import Rule, Sample, SampleResult, sample
from scoreflow.score import Score
from scoreflow.types import CountOrZero, Flag, Key, NonNegative, Steps

_MOST = 10**6  # steps
_GUESS = 100  # evaluations of an adaptive solve


class Sampler(NamedTuple):
    """A sampling algorithm on a grid.

    Attributes:
      run: the algorithm, its options bound.
      process: the forward SDE.
      grid: times from T down to the last time; an adaptive sampler uses its ends.
      changed: (**options) -> the same sampler with other options of `sampler`.
      guidance: strength of classifier-free guidance; 1 for none.
      data_dependent: whether its number of steps depends on the data, so that each device must loop on its own.
      evaluations: of the network behind a sample, two for one under guidance; where they depend on the data, a guess.
      pilot: samples on which the times of the grid are tuned to a trained model, see `tune`; 0 leaves them.
    """

    run: Sample
    process: Process
    grid: jax.Array
    changed: Callable[..., "Sampler"]
    guidance: float = 1.0
    data_dependent: bool = False
    evaluations: int = _GUESS
    pilot: int = 0

    def draw(
        self, score: Score, key: Key, x_init: jax.Array, cond: jax.Array | None = None, *, trajectory: bool = False
    ) -> SampleResult:
        """Samples from x_init [B, ...] at the horizon; `key` is one key, or one for each sample [B]."""
        guided = score if self.guidance == 1.0 else guide.classifier_free(score, self.guidance)
        return self.run(self.process, guided, key, x_init, self.grid, cond, trajectory=trajectory)


def sampler(
    method: Rule | Sample | GaussianMultistep,
    process: Process,
    make_grid: TimeGrid,
    *,
    gaussian: Callable[[], Gaussian] | None = None,
    steps: Steps = 40,
    scale_steps: Flag = True,
    t_min: NonNegative = 1e-3,
    guidance: NonNegative = 1.0,
    pilot: CountOrZero = 0,
    denoise: bool = True,
    usual_horizon: float | None = None,
) -> Sampler:
    """A sampler on a grid of `steps` steps.

    Args:
      method: what happens in an interval of the grid, or an algorithm of its own, such as `Adaptive`.
      process: the forward SDE.
      make_grid: (process, n, *, t_min) -> times.
      gaussian: computes the Gaussian of x_0; called where the method needs it.
      steps: Number of steps of a fixed grid, for the process's usual horizon.
      scale_steps: A shorter horizon takes its share of the steps; otherwise all of them.
      t_min: Last time of the grid; 0 where the process has noise there.
      guidance: Strength of classifier-free guidance: 0 ignores labels, 1 follows them, more exaggerates them.
      pilot: Samples on which the times of the grid are tuned to the trained model, so that others end near the ODE's
        own solution; 0 leaves them as they are, as in training. For samplers that draw no noise.
      denoise: whether the noise left at t_min is removed at the end.
      usual_horizon: the horizon for which `steps` is meant; None for that of the process itself.

    Raises:
      UserError: where a long horizon takes more than a million steps, or a pilot is asked for without a fixed grid or
        of a sampler that draws noise.
      ValueError: where the method needs a Gaussian and there is none.
    """
    options: dict[str, Any] = {"method": method, "process": process, "make_grid": make_grid, "gaussian": gaussian}
    options |= {"steps": steps, "scale_steps": scale_steps, "t_min": t_min, "guidance": guidance, "pilot": pilot}
    options["denoise"] = denoise
    changed = functools.partial(sampler, **options, usual_horizon=usual_horizon)
    if scale_steps and usual_horizon is not None:
        share = float(process.horizon) / usual_horizon
        if steps * share > _MOST:
            raise UserError(
                f"steps = {steps} for the usual horizon are {steps * share:.3g} for one {share:.3g} times as long"
            )
        steps = max(1, round(steps * share))
    if follows := isinstance(method, GaussianMultistep):
        if gaussian is None:
            raise ValueError("the sampler gaussian_multistep needs the Gaussian of the data")
        method = gaussian_multistep(gaussian(), *method)
    if (data_dependent := isinstance(method, Adaptive)) and pilot:
        raise UserError(f"pilot = {pilot}: the adaptive sampler chooses its own times, so they cannot be tuned")
    run = functools.partial(sample, method) if isinstance(method, Rule) else method
    grid = make_grid(process, 1 if data_dependent else steps, t_min=t_min)
    evaluations = method.evaluations * (len(grid) - 1) + denoise if isinstance(method, Rule) else _GUESS
    evaluations *= 1 if guidance == 1.0 else 2  # with and without the label
    run = functools.partial(run, denoise=denoise)
    if pilot and isinstance(method, Rule) and not follows and _draws_noise(run, process, grid):
        raise UserError(f"pilot = {pilot}: this sampler draws noise on its way, so its times cannot be tuned")
    return Sampler(run, process, grid, changed, guidance, data_dependent, evaluations, pilot)


def _draws_noise(run: Sample, process: Process, grid: jax.Array) -> bool:
    """Whether two keys give different samples, with the score of N(0, I)."""
    x = jnp.ones((1, 1))
    one, other = (run(process, lambda x, t, cond=None: -x, jax.random.key(i), x, grid[:3]).x for i in range(2))
    return bool((one != other).any())
