"""A model that is there already, from a run's folder or a function of one's own: samples and densities of plain arrays.

    model = scoreflow.load("runs/vp_digits")
    model = scoreflow.Model.from_denoiser(lambda z, sigma: ..., scoreflow.edm(), (32, 32, 3))

Everything is compiled at the first call of its kind, runs in batches over all devices, and needs no config.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow import dequantise, likelihood, terminal
from scoreflow import score as scores
from scoreflow import space as spaces
from scoreflow.divergence import exact, hutchinson
from scoreflow.likelihood.ode import check_continuous
from scoreflow.processes.sdes import Process, expand
from scoreflow.runs import parallel
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids, rules, sample
from scoreflow.samplers.loop import Rule
from scoreflow.score import Score
from scoreflow.types import Key, Params

_EXACT = 16  # dimensions up to which the divergence is exact by default


def _takes_labels(fn: Callable) -> bool:
    """Whether a function takes a third positional argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # of a built-in function
        return False
    return sum(p.kind in kinds for p in parameters) > 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A process, a score and a terminal distribution.

    Attributes:
      process: the forward SDE.
      shape: of one x.
      score_of: params -> the score function.
      params: parameters of the score and of the terminal distribution; None where a function has them inside.
      t_min: the time at which the data are, for densities and at the end of sampling; above 0.
      terminal_of: params -> the distribution at the horizon, with `sample` and `log_prob`.
      space: from data as stored to x and back.
      num_classes: of labels; 0 where there are none.

    Examples:
      >>> import jax, scoreflow
      >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))  # the score of N(0, I)
      >>> model.sample(jax.random.key(0), 5).shape
      (5, 2)
      >>> print(model.log_prob([[0.0, 0.0]]).round(2))  # -log(2 pi)
      [-1.84]
    """

    process: Process
    shape: tuple[int, ...]
    score_of: Callable[[Params], Score]
    params: Params
    t_min: float
    terminal_of: Callable[[Params], Any]
    space: spaces.Space
    num_classes: int = 0
    _compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def from_score(
        cls,
        fn: Callable[..., jax.Array],
        process: Process,
        shape: tuple[int, ...],
        *,
        t_min: float = 1e-3,
        num_levels: int = 0,
        centered: bool = True,
        num_classes: int = 0,
        end: Any = None,
    ) -> "Model":
        """A model with a score function of one's own.

        Args:
          fn: (x [B, ...], t [B]) or (x, t, labels [B]) -> the score of x_t, like x; a JAX function.
          process: the forward SDE with which it was trained.
          shape: of one x.
          t_min: the time at which the data are; where the process has noise at 0 it may be 0.
          num_levels: of gray, where the data are images of integers; 0 where they are continuous.
          centered: whether these images are in [-1, 1]; otherwise in [0, 1].
          num_classes: of labels; 0 where there are none.
          end: the distribution at the horizon, with `sample` and `log_prob`; None for the process's Gaussian.

        Raises:
          ValueError: if t_min is not below the horizon, or has no noise.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (32, 32, 3), num_levels=256)
          >>> model.shape, model.num_classes
          ((32, 32, 3), 0)
        """
        if not 0 <= t_min < float(process.horizon) or float(process.sigma(t_min)) <= 0:
            raise ValueError(f"t_min = {t_min} must have noise and be below the horizon {float(process.horizon):g}")
        prior = terminal.prior(process) if end is None else end
        labeled = _takes_labels(fn)

        def score(x: jax.Array, t: jax.Array, cond: Any = None) -> jax.Array:
            return fn(x, t, cond) if labeled else fn(x, t)

        where = spaces.pixels(tuple(shape), num_levels, centered=centered)
        return cls(process, tuple(shape), lambda _: score, None, t_min, lambda _: prior, where, num_classes)

    @classmethod
    def from_prediction(
        cls,
        fn: Callable[..., jax.Array],
        process: Process,
        shape: tuple[int, ...],
        *,
        prediction: scores.PredictionName = scores.NOISE,
        **options: Any,
    ) -> "Model":
        """The same from fn(x, t[, labels]) -> what a network of one of `score.PREDICTIONS` gives: the noise, v, ...

        `options` as for `from_score`.

        Examples:
          >>> import scoreflow
          >>> process = scoreflow.vp_linear()
          >>> noise = lambda x, t: process.sigma(t)[:, None] * x  # what is noise in x_t, for data from N(0, I)
          >>> model = scoreflow.Model.from_prediction(noise, process, (2,), prediction="noise")
          >>> print(model.score([[2.0, -1.0]], 0.3).round(3))
          [[-2.  1.]]
        """
        source = scores.PREDICTIONS[prediction] if isinstance(prediction, str) else prediction

        def score(x: jax.Array, t: jax.Array, *labels: Any) -> jax.Array:
            scales = scores.SignalNoise(expand(process.alpha(t), x), expand(process.sigma(t), x))
            return scores.convert(fn(x, t, *labels), x, scales, source, scores.SCORE)

        return cls._from(fn, score, process, shape, **options)

    @classmethod
    def from_denoiser(
        cls, fn: Callable[..., jax.Array], process: Process, shape: tuple[int, ...], **options: Any
    ) -> "Model":
        """The same from fn(z, sigma[, labels]) -> E[x_0 | z], where z = x_0 + sigma noise and sigma is [B].

        This is what EDM and k-diffusion call a denoiser. It has no process of its own: any will do, since
        x_t / alpha = x_0 + (sigma / alpha) noise, as long as its noise levels are among those that were trained.

        Examples:
          >>> import scoreflow
          >>> denoiser = lambda z, sigma: z / (1 + sigma[:, None] ** 2)  # for data from N(0, I)
          >>> model = scoreflow.Model.from_denoiser(denoiser, scoreflow.edm(), (2,))
          >>> model.denoise([[2.0, -1.0]], 1.0).tolist()
          [[1.0, -0.5]]
        """

        def score(x: jax.Array, t: jax.Array, *labels: Any) -> jax.Array:
            alpha, sigma = process.alpha(t), process.sigma(t)
            clean = fn(x / expand(alpha, x), sigma / alpha, *labels)
            return (expand(alpha, x) * clean - x) / expand(sigma, x) ** 2

        return cls._from(fn, score, process, shape, **options)

    @classmethod
    def _from(cls, fn: Callable, score: Callable, process: Process, shape: tuple[int, ...], **options: Any) -> "Model":
        with_labels = lambda x, t, cond: score(x, t, cond)
        return cls.from_score(with_labels if _takes_labels(fn) else lambda x, t: score(x, t), process, shape, **options)

    def score(self, x: ArrayLike, t: ArrayLike, cond: ArrayLike | None = None) -> np.ndarray:
        """The score of x_t for x [B, ...] at t, a number or [B].

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> model.score([[2.0, -1.0]], 0.3).tolist()
          [[-2.0, 1.0]]
        """
        return self._at(lambda score, x, t, cond: score(x, t, cond), "score", x, t, cond)

    def denoise(self, x: ArrayLike, t: ArrayLike, cond: ArrayLike | None = None) -> np.ndarray:
        """E[x_0 | x_t = x] for x [B, ...] at t, a number or [B].

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
        t = np.broadcast_to(np.asarray(t, np.float32), len(x))
        run = lambda params, x, t, cond: fn(self.score_of(params), x, t, cond)
        return self._batched(name, run, len(x), x, t, self._labels(cond, len(x)))

    def sample(
        self,
        key: Key,
        num: int,
        cond: ArrayLike | None = None,
        *,
        rule: Rule = rules.DPM_SOLVER_PP_2M,
        steps: int = 40,
        batch_size: int = 100,
    ) -> np.ndarray:
        """Samples [num, ...], of which each depends on the key and its own number alone.

        Args:
          key: PRNG key.
          num: how many.
          cond: a label for each, or one for all; None where there are none.
          rule: of `samplers.rules`, for each step of a grid that is even in log-SNR.
          steps: of the grid.
          batch_size: samples at a time.

        Returns:
          uint8 where the data are images of integers, else float32.

        Examples:
          >>> import jax, scoreflow
          >>> from scoreflow.samplers import rules
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> few, many = (model.sample(jax.random.key(0), num, rule=rules.HEUN, steps=10) for num in (2, 4))
          >>> bool(abs(few - many[:2]).max() < 1e-5)  # a sample depends on its key and number alone
          True
        """
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        cond = None if cond is None else np.broadcast_to(np.asarray(cond, np.int32), num)
        grid = grids.log_snr(self.process, steps, t_min=self.t_min)

        def run(params, keys, cond):
            keys_init, keys, keys_decode = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
            begin = jax.vmap(lambda key: self.terminal_of(params).sample(key, (1, *self.shape))[0])(keys_init)
            x = sample(rule, self.process, self.score_of(params), keys, begin, grid, cond).x
            return jax.vmap(lambda key, x: self.space.decode(params, key, x[None])[0])(keys_decode, x)

        return self._batched(("sample", rule, steps), run, batch_size, keys, self._labels(cond, num))

    def log_prob(
        self,
        x: ArrayLike,
        cond: ArrayLike | None = None,
        *,
        key: Key | None = None,
        exact_divergence: bool | None = None,
        tolerance: float = 1e-4,
        batch_size: int = 100,
    ) -> np.ndarray:
        """log p(x) in nats of continuous x [B, ...] under the probability-flow ODE, [B]; NaN where its solver failed.

        Args:
          x: float, in the units of x_0.
          cond: labels [B], or None.
          key: PRNG key of the random probes; the estimate is unbiased. None for the same every time.
          exact_divergence: whether to take the exact divergence, at the cost of one product for every dimension; None
            for up to 16 dimensions.
          tolerance: relative and absolute, of the adaptive solver.
          batch_size: examples at a time.

        Raises:
          TypeError: if x is integer: see `bits_per_dim`.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> print(model.log_prob([[0.0, 0.0], [1.0, 1.0]]).round(2))  # -log(2 pi), and 1 less
          [-1.84 -2.84]
        """
        check_continuous(jnp.asarray(x))
        x = self._examples(x)
        whole = x[0].size <= _EXACT if exact_divergence is None else exact_divergence
        keys = jax.random.split(jax.random.key(0) if key is None else key, len(x))

        def run(params, keys, x, cond, tolerance):
            options = {"t_min": self.t_min, "divergence": exact if whole else hutchinson}
            end, options = self.terminal_of(params), options | {"rtol": tolerance[0], "atol": tolerance[0]}
            return likelihood.log_prob(self.process, self.score_of(params), end, keys, x, cond, **options).logp

        tolerances = np.full(len(x), tolerance, np.float32)
        inputs = keys, x, self._labels(cond, len(x)), tolerances
        return self._batched(("log_prob", whole), run, batch_size, *inputs, looped=True)

    def bits_per_dim(
        self, images: ArrayLike, cond: ArrayLike | None = None, *, key: Key | None = None, **options: Any
    ) -> np.ndarray:
        """-log2 p per dimension of images of integers [B, ...], dequantized uniformly, [B].

        On average over the noise it is an upper bound on that of the images themselves.

        Args:
          images: levels, as stored.
          cond: labels [B], or None.
          key: PRNG key of the noise and the probes; None for the same every time.
          options: as for `log_prob`.

        Raises:
          ValueError: if the model's data are continuous.

        Examples:
          >>> import numpy as np, scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2, 2, 1), num_levels=8)
          >>> images = np.full((3, 2, 2, 1), 4)  # near 0 in [-1, 1], where N(0, I) has the density 0.4
          >>> print((model.bits_per_dim(images) - np.log2(8 / 2 * np.sqrt(2 * np.pi))).round(1))
          [0. 0. 0.]
        """
        bins = self.space.bins
        if bins is None or self.space.latent is not None:
            raise ValueError("bits/dim are of images of integers; this model's data are continuous, see log_prob")
        images = np.asarray(images)
        if not np.issubdtype(images.dtype, np.integer) or images.min() < 0 or images.max() >= bins.num_levels:
            raise ValueError(f"images must be integers from 0 to {bins.num_levels - 1}, not {images.dtype}")
        key_noise, key_probe = jax.random.split(jax.random.key(0) if key is None else key)
        point = dequantise.uniform(key_noise, jnp.asarray(images), bins)
        logp = self.log_prob(np.asarray(point.x), cond, key=key_probe, **options)
        size = int(np.prod(self.shape))
        return np.asarray(dequantise.bits_per_dim(jnp.asarray(logp), point.log_q, size, bins))

    def _examples(self, x: ArrayLike) -> np.ndarray:
        x = np.asarray(x, np.float32)
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has the shape {x.shape}; it must be [B, {', '.join(map(str, self.shape))}]")
        return x

    def _labels(self, cond: ArrayLike | None, count: int) -> np.ndarray | None:
        if cond is None:
            return None
        if not self.num_classes:
            raise ValueError("labels are given, and this model takes none")
        return np.broadcast_to(np.asarray(cond, np.int32), count)

    def _batched(self, name: Any, fn: Callable, size: int, *inputs: Any, looped: bool = False) -> np.ndarray:
        """fn(params, *inputs) in batches over all devices; `looped` where its number of steps depends on the data."""
        count = len(jax.tree.leaves(inputs)[0])
        size = parallel.rounded_up(min(size, count))
        if name not in self._compiled:
            self._compiled[name] = parallel.map_devices(fn, broadcast=(0,)) if looped else parallel.jit(fn)
        params = None if self.params is None else parallel.replicate(self.params)
        results = []
        for i in range(0, count, size):
            rows = np.arange(i, i + size) % count
            batch = parallel.shard(jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs))
            results.append(parallel.gather(self._compiled[name](params, *batch)))
        return np.concatenate(results)[:count]


def load(folder: str | Path, checkpoint: str = "newest") -> Model:
    """The model of a run.

    Args:
      folder: of the run, as `--workdir`.
      checkpoint: "newest", or the best by a measure that the run kept: "validation" or "frechet".

    Raises:
      UserError: if there is no run, or no such checkpoint.

    Examples:
      >>> import jax, scoreflow
      >>> model = scoreflow.load("runs/vp_digits")
      >>> model.sample(jax.random.key(0), 3, steps=10).shape
      (3, 8, 8, 1)
    """
    from scoreflow import configure
    from scoreflow.experiment import load_newest
    from scoreflow.runs import files, workdir

    path = files.local(str(folder), "folder")
    stored = workdir.stored_settings(path)
    if not stored:
        raise UserError(f"{path} holds no run of scoreflow")
    config, _ = configure.of_run(stored)
    experiment = configure.experiment(config, str(path))
    loaded = load_newest(experiment, path, "" if checkpoint == "newest" else checkpoint)
    source = experiment.model
    return Model(
        process=source.process,
        shape=experiment.space.shape,
        score_of=source.score,
        params=loaded.params,
        t_min=source.t_min,
        terminal_of=source.terminal,
        space=experiment.space,
        num_classes=experiment.data.num_classes if source.conditional else 0,
    )
