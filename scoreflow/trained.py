"""A process, a score and a terminal distribution, with plain arrays in and out: the score, a denoiser and samples.

Everything is compiled at the first call of its kind, and runs in batches over all devices.
"""

from __future__ import annotations  # help() shows `ArrayLike`, and not all that it stands for

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow import score as scores
from scoreflow import space as spaces
from scoreflow.dequantise import Dequantised
from scoreflow.likelihood.prepared import Prepared
from scoreflow.processes.sdes import Process
from scoreflow.runs import parallel
from scoreflow.samplers import grids, rules
from scoreflow.samplers.gaussian_multistep import GaussianMultistep
from scoreflow.samplers.grids import TimeGrid
from scoreflow.samplers.loop import Rule, Sample
from scoreflow.samplers.sampler import Sampler, sampler
from scoreflow.samplers.tune import pilot_of, tune
from scoreflow.score import Score
from scoreflow.types import Key, Params

_AT_A_TIME = 100  # examples of a score
_SEEDS = 2**32


class Images(NamedTuple):
    """The images of a model whose x are the latents of a VAE.

    Attributes:
      shape: of one image.
      num_levels: of gray.
      points: (params, key, images [B, ...]) -> latents, with what a VAE's bound adds to their density as `log_q`.
    """

    shape: tuple[int, ...]
    num_levels: int
    points: Callable[[Params, Key, jax.Array], Dequantised]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """What `model.Model` is made of, and what can be evaluated at once; its fields are described there."""

    process: Process
    shape: tuple[int, ...]
    score_of: Callable[[Params], Score]
    params: Params
    t_min: float
    terminal_of: Callable[[Params], Any]
    space: spaces.Space
    num_classes: int = 0
    needs_labels: bool = False
    prepared: Prepared | None = None
    sampler: Sampler | None = None
    images: Images | None = None
    pilot_key: Key | None = None
    _compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict, init=False)
    _times: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        """The parts by name, and the number of parameters."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        words = [type(self.process).__name__, f"shape={self.shape}", f"t_min={self.t_min:g}", f"{count:,} parameters"]
        words += [f"{self.num_classes} classes"] * bool(self.num_classes)
        words += [f"densities in {self.prepared.evaluations} evaluations"] if self.prepared else []
        return f"{type(self).__name__}({', '.join(words)})"

    def score(self, x: ArrayLike, t: ArrayLike, cond: ArrayLike | None = None) -> np.ndarray:
        """The score of x_t for x [B, ...] at t, a number or [B], from 0 to the horizon.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> model.score([[2.0, -1.0]], 0.3).tolist()
          [[-2.0, 1.0]]
        """
        return self._at(lambda score, x, t, cond: score(x, t, cond), "score", x, t, cond)

    def denoise(self, x: ArrayLike, t: ArrayLike, cond: ArrayLike | None = None) -> np.ndarray:
        """E[x_0 | x_t = x] for x [B, ...] at t, a number or [B], from 0 to the horizon.

        Examples:
          >>> import scoreflow
          >>> process = scoreflow.vp_linear()
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, process, (2,))
          >>> bool(abs(model.denoise([[1.0, 0.0]], 0.3)[0, 0] - process.alpha(0.3)) < 1e-5)
          True
        """
        run = lambda score, x, t, cond: scores.denoised(self.process, score, x, t, cond)
        return self._at(run, "denoise", x, t, cond)

    def _at(self, fn: Callable, name: str, x: ArrayLike, t: ArrayLike, cond: ArrayLike | None) -> np.ndarray:
        x = self._examples(x)
        horizon, t = float(self.process.horizon), np.asarray(t, np.float32)
        if t.shape not in ((), (len(x),)) or not ((t >= 0) & (t <= horizon * (1 + 1e-6))).all():
            raise ValueError(f"t must be a number or [{len(x)}] of them, from 0 to the horizon {horizon:g}")
        t = np.broadcast_to(t, len(x))
        run = lambda params, x, t, cond: fn(self.score_of(params), x, t, cond)
        values = self._batched(name, run, _AT_A_TIME, x, t, self._labels(cond, len(x)))
        return finite(values, "results", "the function fails there, or there is no noise at this time")

    def sample(
        self,
        key: Key | int,
        num: int,
        cond: ArrayLike | None = None,
        *,
        rule: Rule | Sample | GaussianMultistep | None = None,
        grid: TimeGrid | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        pilot: int | None = None,
        batch_size: int = 100,
    ) -> np.ndarray:
        """Samples [num, ...], of which each depends on the key and its own number alone.

        What is not given is that of the run that was loaded; for a function of one's own it is DPM-Solver++(2M) in 40
        steps of a grid that is even in log-SNR.

        Args:
          key: PRNG key, or its seed.
          num: how many.
          cond: a label for each, or one for all; None where there are none.
          rule: of `samplers.rules`, `samplers.Adaptive`, or `samplers.GaussianMultistep` after `with_data`.
          grid: of `samplers.grids`.
          steps: of the grid.
          guidance: strength of classifier-free guidance, for a run that was trained for it: 1 follows the labels.
          pilot: samples on which the times of the grid are tuned first, so that others end near the ODE's own solution;
            worth it for few steps and many samples. 0 leaves the times as they are.
          batch_size: samples at a time.

        Returns:
          uint8 where the data are images of integers, else float32. A warning says how many are meaningless, because
          an adaptive solve failed or the score is not finite there.

        Raises:
          TypeError: if the rule or the grid is none, or a number is not whole.
          UserError: if the times of this sampler cannot be tuned.
          ValueError: for numbers below 1, for guidance without labels, or a rule that needs data and has none.

        Examples:
          >>> import jax, scoreflow
          >>> from scoreflow.samplers import Adaptive, rules
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> few, many = (model.sample(jax.random.key(0), num, rule=rules.HEUN, steps=10) for num in (2, 4))
          >>> bool(abs(few - many[:2]).max() < 1e-5)  # a sample depends on its key and number alone
          True
          >>> exact = model.sample(0, 2, rule=Adaptive(rtol=1e-5, atol=1e-5))
        """
        _check_choices(rule, grid, num, steps, batch_size, pilot)
        if min(num, batch_size) < 1 or (steps is not None and steps < 1):
            raise ValueError(f"num = {num}, steps = {steps} and batch_size = {batch_size} must be 1 or more")
        if guidance is not None and (cond is None or self.needs_labels):
            raise ValueError("guidance needs labels, and a model that also works without them")
        choices = {"method": rule, "make_grid": grid, "steps": steps, "guidance": guidance, "pilot": pilot}
        if pilot is not None and pilot < 0:
            raise ValueError(f"pilot = {pilot} must be 0 or more")
        labels = self._labels(cond, num)
        drawn_by = self._sampler({name: value for name, value in choices.items() if value is not None})
        name = "sample", rule, grid, steps, guidance, pilot, labels is not None
        if drawn_by.pilot:
            drawn_by = self._tuned(drawn_by, name, labeled=labels is not None)
        first = as_key(key)
        keys = jax.vmap(lambda i: jax.random.fold_in(first, i))(jnp.arange(num))

        def run(params, keys, cond):
            keys_init, keys, keys_decode = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
            begin = jax.vmap(lambda key: self.terminal_of(params).sample(key, (1, *self.shape))[0])(keys_init)
            x = drawn_by.draw(self.score_of(params), keys, begin, cond).x
            decoded = jax.vmap(lambda key, x: self.space.decode(params, key, x[None])[0])(keys_decode, x)
            return decoded, jnp.isfinite(x).reshape(len(x), -1).all(1)

        inputs, looped = (keys, labels), drawn_by.data_dependent
        x, finite = self._batched(name, run, batch_size, *inputs, looped=looped)
        if not finite.all():
            warnings.warn(f"{np.sum(~finite)} of {num} samples are not finite", stacklevel=2)
        return x

    def _sampler(self, choices: dict[str, Any]) -> Sampler:
        """The model's own sampler, with other options where there are choices."""
        gaussian = None if (prepared := self.prepared) is None else lambda: prepared.gaussian
        choices = choices | ({"scale_steps": False} if "steps" in choices else {})
        if "method" in choices:  # it need not be one whose times can be tuned, as the run's is
            choices = {"pilot": 0} | choices
        if self.sampler is None:
            usual = {"method": rules.DPM_SOLVER_PP_2M, "make_grid": grids.log_snr}
            return sampler(process=self.process, gaussian=gaussian, t_min=self.t_min, **usual | choices)
        if gaussian is not None:
            choices = choices | {"gaussian": gaussian}
        return self.sampler.changed(**choices) if choices else self.sampler

    def _tuned(self, usual: Sampler, name: Any, *, labeled: bool) -> Sampler:
        """The sampler with times that suit this model; they are looked for once."""
        if name not in self._times:
            params = None if self.params is None else parallel.replicate(self.params)
            given = usual.pilot, self.terminal_of(self.params), self.shape, self.num_classes if labeled else 0
            key = jax.random.key(0) if self.pilot_key is None else self.pilot_key
            self._times[name] = tune(usual, self.score_of, pilot_of(params, key, *given)).times
        return usual._replace(grid=jnp.asarray(self._times[name]))

    def _examples(self, x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        if self.space.bins is not None and np.issubdtype(x.dtype, np.integer):
            raise TypeError(f"x is {x.dtype}; it must be float, in the units of x_0 (images of integers: bits_per_dim)")
        x = x.astype(np.float32)
        if x.shape[1:] != self.shape or not len(x):
            raise ValueError(f"x has the shape {x.shape}; it must be [B, {', '.join(map(str, self.shape))}], B > 0")
        return x

    def _labels(self, cond: ArrayLike | None, count: int) -> np.ndarray | None:
        if cond is None:
            if self.needs_labels:
                raise ValueError(f"labels are missing: the function takes one of {self.num_classes} for each example")
            return None
        if not self.num_classes:
            raise ValueError("labels are given, and this model knows none: it was made without num_classes")
        labels = np.asarray(cond)
        fits = labels.shape in ((), (count,)) and np.issubdtype(labels.dtype, np.integer)
        if not fits or labels.min() < 0 or labels.max() >= self.num_classes:
            held = f"these are {list(labels.shape)} {labels.dtype}"
            raise ValueError(f"labels must be [{count}] integers from 0 to {self.num_classes - 1}; {held}")
        return np.broadcast_to(labels.astype(np.int32), count)

    def _batched(
        self, name: Any, fn: Callable, size: int, *inputs: Any, given: Any = None, looped: bool = False
    ) -> Any:
        """fn(given or params, *inputs) in batches over all devices; `looped` where its steps depend on the data."""
        count = len(jax.tree.leaves(inputs)[0])
        size = parallel.rounded_up(min(size, count))
        if name not in self._compiled:
            self._compiled[name] = parallel.map_devices(fn, broadcast=(0,)) if looped else parallel.jit(fn)
        first = self.params if given is None else given
        first = None if first is None else parallel.replicate(first)
        results = []
        for i in range(0, count, size):
            rows = np.arange(i, i + size) % count
            batch = parallel.shard(jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs))
            results.append(parallel.gather(self._compiled[name](first, *batch)))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *results)


def _check_choices(rule: Any, grid: Any, *counts: Any) -> None:
    if isinstance(rule, str) or not (rule is None or callable(rule) or isinstance(rule, Rule | GaussianMultistep)):
        raise TypeError(f"rule = {rule!r} must be one of scoreflow.samplers, such as samplers.rules.HEUN")
    if not (grid is None or callable(grid)):
        raise TypeError(f"grid = {grid!r} must be a function of scoreflow.samplers.grids, such as grids.karras")
    for count in counts:
        if not (count is None or isinstance(count, int | np.integer)):
            raise TypeError(f"{count!r} must be a whole number")


def finite(values: np.ndarray, name: str, why: str) -> np.ndarray:
    """Values [B, ...] as they are; a warning says how many of the B are not finite."""
    if failed := int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(1))):
        warnings.warn(f"{failed} of {len(values)} {name} are not finite: {why}", stacklevel=3)
    return values


def as_key(key: Key | int) -> Key:
    """A PRNG key, also from its seed.

    Raises:
      TypeError: if it is neither.
      ValueError: if the seed is negative, or 2**32 or more, which JAX would take modulo 2**32.
    """
    if isinstance(key, int | np.integer):
        if not 0 <= key < _SEEDS:
            raise ValueError(f"the seed {key} must be from 0 to below 2**32")
        return jax.random.key(int(key))
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype != np.uint32:
        raise TypeError(f"key = {key!r} must be a seed, or a PRNG key such as jax.random.key(0)")
    return jax.random.wrap_key_data(key)
