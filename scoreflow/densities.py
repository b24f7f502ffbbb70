"""Densities of a model, with plain arrays in and out: by an adaptive solver, or in few evaluations with data."""

from __future__ import annotations  # help() shows `ArrayLike`, and not all that it stands for

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow import dequantise, likelihood
from scoreflow.divergence import exact, hutchinson
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import multistep
from scoreflow.likelihood import pilot as pilots
from scoreflow.likelihood.prepared import fit_gaussian, prepare
from scoreflow.trained import Trained, as_key, finite
from scoreflow.types import Key

_EXACT = 16  # dimensions up to which the divergence is exact by default
_TOLERANCE = 1e-4
_PILOTED = 16  # examples of the pilot at a time, each with a gradient
_MEASURED = 4  # times as many examples as the pilot has are measured


class Densities(Trained):
    """A model whose densities can be computed."""

    def with_data(
        self,
        x: ArrayLike,
        cond: ArrayLike | None = None,
        *,
        error: float = 0.1,
        num: int = 1000,
        pilot: int = 32,
        batch_size: int = 100,
    ) -> Self:
        """The same model, prepared by training data to compute densities in some 16 evaluations of the function.

        A Gaussian is fitted to the data, whose part of the density is known, and the nodes of a multistep rule are
        chosen by what a pilot of the data meets; see `likelihood.multistep` and `likelihood.nodes`. They are right
        for x like the data. Far from them, such as for images of another kind, give `log_prob` a `tolerance`.

        Args:
          x: training data [N, ...], float, or images of integers where the model has levels; some hundreds or more.
          cond: labels [N], or None.
          error: of the mean of log p over `num` examples, in its standard errors.
          num: examples whose mean should be as exact as that.
          pilot: examples that look for the nodes, each with gradients at 49 nodes.
          batch_size: examples at a time.

        Raises:
          ValueError: if there are fewer than two examples, or one is not finite.

        Examples:
          >>> import jax, numpy as np, scoreflow
          >>> denoiser = lambda z, sigma: 4 * z / (4 + sigma[:, None] ** 2)  # for data from N(0, 4 I)
          >>> model = scoreflow.Model.from_denoiser(denoiser, scoreflow.edm(horizon=400.0), (20,))
          >>> data = 2 * np.asarray(jax.random.normal(jax.random.key(0), (500, 20)))
          >>> prepared = model.with_data(data)
          >>> print(prepared.log_prob(np.zeros((1, 20)), exact_divergence=True).round())  # -10 log(8 pi) = -32.2
          [-32.]
        """
        rows = self._examples(self._continuous(np.asarray(x), jax.random.key(2**20))[0])
        if len(rows) < 2 or not np.isfinite(rows).all():
            raise ValueError(f"the data must be finite, and two or more; these are {len(rows)}")
        labels = self._labels(cond, len(rows))
        gaussian = fit_gaussian(self.process, self.t_min, rows, labels, num_classes=self.num_classes)
        model, met = dataclasses.replace(self, prepared=None), pilots.follower(self.process, self.score_of)

        def examples(count: int) -> tuple:
            at = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
            keys = jax.random.split(jax.random.key(2**20 - 1), len(at))
            return keys, rows[at], None if labels is None else labels[at]

        def follow(rule: multistep.Rule) -> multistep.Nodes:
            given = self.params, gaussian, rule
            nodes: Any = model._batched("pilot", met, _PILOTED, *examples(pilot), given=given)
            return pilots.nodes_first(nodes)

        def solve(rule: multistep.Rule) -> np.ndarray:
            return model._by_nodes(gaussian, rule, *examples(_MEASURED * pilot), whole=False, batch_size=batch_size)

        prepared = prepare(self.process, self.t_min, gaussian, follow, solve, error=error, num=num)
        return dataclasses.replace(model, prepared=prepared)

    def log_prob(
        self,
        x: ArrayLike,
        cond: ArrayLike | None = None,
        *,
        key: Key | int = 0,
        probes: int = 1,
        exact_divergence: bool | None = None,
        tolerance: float | None = None,
        batch_size: int = 100,
    ) -> np.ndarray:
        """log p(x) in nats of continuous x [B, ...] under the probability-flow ODE, [B]; NaN where its solver failed.

        In more than 16 dimensions this is an estimate by random probes: unbiased, but off by up to tens of nats for a
        single x. Take several `probes`, see `log_prob_and_error`, or the exact divergence; and `with_data`, if you
        have the training data.

        Args:
          x: float, in the units of x_0.
          cond: labels [B], or None.
          key: PRNG key of the random probes, or its seed.
          probes: that are averaged for each x.
          exact_divergence: whether to take the exact divergence, at the cost of one product for every dimension; None
            for up to 16 dimensions.
          tolerance: relative and absolute, of the adaptive solver; None for 1e-4, or for the rule of `with_data`.
          batch_size: examples at a time.

        Raises:
          TypeError: if x is integer: see `bits_per_dim`.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> print(model.log_prob([[0.0, 0.0], [1.0, 1.0]]).round(2))  # -log(2 pi), and 1 less
          [-1.84 -2.84]
        """
        x = np.asarray(x)
        has_levels = self.space.bins is not None or self.images is not None
        kinds = "f" if has_levels else "fi"  # of a continuous model, signed integers are numbers like others
        if x.dtype.kind not in kinds:
            words = "call bits_per_dim" if has_levels else "give num_levels to the model and call bits_per_dim"
            raise TypeError(f"x is {x.dtype}, and a density needs float data; for images of integers, {words}")
        if probes < 1 or batch_size < 1:
            raise ValueError(f"probes = {probes} and batch_size = {batch_size} must be 1 or more")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance = {tolerance} must be above 0")
        x = self._examples(x)
        whole = x[0].size <= _EXACT if exact_divergence is None else exact_divergence
        start, cond = as_key(key), self._labels(cond, len(x))
        total = np.zeros(len(x))
        for k in range(probes := 1 if whole else probes):
            keys = jax.random.split(jax.random.fold_in(start, k) if k else start, len(x))
            if self.prepared is not None and tolerance is None:
                known = self.prepared.gaussian, self.prepared.rule
                total += self._by_nodes(*known, keys, x, cond, whole=whole, batch_size=batch_size)
            else:
                total += self._adaptive(keys, x, cond, tolerance or _TOLERANCE, whole=whole, batch_size=batch_size)
        return finite(total / probes, "densities", "the solver gave up, or the score is not finite there")

    def _by_nodes(
        self, gaussian: Gaussian, rule: multistep.Rule, keys: Any, x: Any, cond: Any, *, whole: bool, batch_size: int
    ) -> Any:
        def run(given, keys, x, cond):
            params, gaussian, rule = given
            known = {"gaussian": gaussian, "rule": rule, "divergence": exact if whole else hutchinson}
            score, end = self.score_of(params), self.terminal_of(params)
            return multistep.log_prob(self.process, score, end, keys, x, cond, **known).logp

        given = self.params, gaussian, rule
        return self._batched(("nodes", whole), run, batch_size, keys, x, cond, given=given)

    def _adaptive(self, keys: Any, x: Any, cond: Any, tolerance: float, *, whole: bool, batch_size: int) -> Any:
        def run(params, keys, x, cond, tolerance):
            options = {"t_min": self.t_min, "divergence": exact if whole else hutchinson}
            end, options = self.terminal_of(params), options | {"rtol": tolerance[0], "atol": tolerance[0]}
            return likelihood.log_prob(self.process, self.score_of(params), end, keys, x, cond, **options).logp

        inputs = keys, x, cond, np.full(len(x), tolerance, np.float32)
        return self._batched(("log_prob", whole), run, batch_size, *inputs, looped=True)

    def log_prob_and_error(
        self, x: ArrayLike, cond: ArrayLike | None = None, *, key: Key | int = 0, probes: int = 8, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean of log p(x) over random probes, [B], and its standard error, [B].

        The error is that of the probes alone. `options` as for `log_prob`.

        Raises:
          ValueError: for fewer than two probes.

        Examples:
          >>> import numpy as np, scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (20,))
          >>> mean, error = model.log_prob_and_error(np.zeros((1, 20)), probes=2)
          >>> print(mean.round(1), error.round(1))  # -10 log(2 pi); probes give the trace of -I exactly
          [-18.4] [0.]
        """
        if probes < 2:
            raise ValueError(f"probes = {probes}: a standard error needs 2 or more")
        keys = jax.random.split(as_key(key), probes)
        values = np.stack([self.log_prob(x, cond, key=each, **options) for each in keys])
        return values.mean(0), values.std(0, ddof=1) / np.sqrt(probes)

    def bits_per_dim(
        self, images: ArrayLike, cond: ArrayLike | None = None, *, key: Key | int = 0, **options: Any
    ) -> np.ndarray:
        """-log2 p per dimension of images of integers [B, ...], dequantized uniformly, [B].

        On average over the noise it is an upper bound on that of the images themselves. Where x are latents of a VAE,
        it is the VAE's bound, with one draw of them, and not a density.

        Args:
          images: levels, as stored.
          cond: labels [B], or None.
          key: PRNG key of the noise and the probes, or its seed.
          options: as for `log_prob`.

        Raises:
          ValueError: if the model's data are continuous, or the images have other levels.

        Examples:
          >>> import numpy as np, scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2, 2, 1), num_levels=8)
          >>> images = np.full((3, 2, 2, 1), 4)  # near 0 in [-1, 1], where N(0, I) has the density 0.4
          >>> print((model.bits_per_dim(images) - np.log2(8 / 2 * np.sqrt(2 * np.pi))).round(1))
          [0. 0. 0.]
        """
        bins, shape = self.space.bins, self.shape if self.images is None else self.images.shape
        if bins is None:
            words = "this model's data are continuous: see log_prob, or give num_levels=256 to the model"
            if self.images is not None:
                words = "this model's decoder gives probabilities of two levels: see log_prob, of latents"
            raise ValueError(f"bits/dim are of images of integers; {words}")
        images = np.asarray(images)
        if self.images is not None and images.dtype.kind == "f":  # `_continuous` takes these for latents
            raise ValueError(f"images must be integers from 0 to {self.images.num_levels - 1}, not {images.dtype}")
        key_noise, key_probe = jax.random.split(as_key(key))
        x, log_q = self._continuous(images, key_noise)
        logp = self.log_prob(x, cond, key=key_probe, **options)
        return np.asarray(dequantise.bits_per_dim(jnp.asarray(logp, jnp.float32), log_q, int(np.prod(shape)), bins))

    def bound(
        self,
        x: ArrayLike,
        cond: ArrayLike | None = None,
        *,
        key: Key | int = 0,
        num_times: int = 100,
        batch_size: int = 100,
    ) -> np.ndarray:
        """An estimate of the upper bound on -log p(x) in nats under the reverse SDE, [B]; see `likelihood.bound`.

        Args:
          x: float, in the units of x_0.
          cond: labels [B], or None.
          key: PRNG key of times and noise, or its seed.
          num_times: evaluations for each x, and as many again.
          batch_size: examples at a time.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))
          >>> bounds = model.bound([[0.0, 0.0]] * 400, num_times=200)  # log(2 pi) = 1.84 on average
          >>> bool(abs(bounds.mean() - 1.84) < 4 * bounds.std() / 20)
          True
        """
        x = self._examples(x)

        def run(given, keys, x, cond):
            params, gaussian = given
            options = {"t_min": self.t_min, "num_times": num_times, "gaussian": gaussian}
            score, end = self.score_of(params), self.terminal_of(params)
            return likelihood.bound(self.process, score, end, keys, x, cond, **options).total

        inputs = jax.random.split(as_key(key), len(x)), x, self._labels(cond, len(x))
        given = self.params, None if self.prepared is None else self.prepared.gaussian
        name = ("bound", num_times, self.prepared is None)
        total = self._batched(name, run, batch_size, *inputs, given=given)
        return finite(np.asarray(total, np.float64), "bounds", "the score is not finite there")

    def _continuous(self, x: np.ndarray, key: Key) -> tuple[np.ndarray, jax.Array]:
        """x_0 of images of integers, by uniform noise or a VAE, and the density of that noise; floats as they are."""
        bins, encoded = self.space.bins, self.images
        num_levels = encoded.num_levels if encoded is not None else 0 if bins is None else bins.num_levels
        if not num_levels or (encoded is not None and np.issubdtype(x.dtype, np.floating)):
            return x, jnp.zeros(len(x))
        shape = self.shape if encoded is None else encoded.shape
        if not np.issubdtype(x.dtype, np.integer) or (x.size and (x.min() < 0 or x.max() >= num_levels)):
            held = f"from {x.min()} to {x.max()}" if np.issubdtype(x.dtype, np.integer) else str(x.dtype)
            raise ValueError(f"images must be integers from 0 to {num_levels - 1}, and these are {held}")
        if x.shape[1:] != shape or not len(x):
            raise ValueError(f"images have the shape {x.shape}; it must be [B, {', '.join(map(str, shape))}], B > 0")
        if encoded is not None:
            point = encoded.points(self.params, key, jnp.asarray(x))
        else:
            assert bins is not None
            point = dequantise.uniform(key, jnp.asarray(x), bins)
        return np.asarray(point.x), point.log_q
