"""A model that is there already, from a run's folder or a function of one's own: samples and densities of plain arrays.

    model = scoreflow.load("runs/vp_digits")
    model = scoreflow.Model.from_denoiser(lambda z, sigma: ..., scoreflow.edm(), (32, 32, 3))

Everything is compiled at the first call of its kind, runs in batches over all devices, and needs no config.
"""

from __future__ import annotations  # help() shows short names of types

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax

from scoreflow import adapt
from scoreflow import score as scores
from scoreflow import space as spaces
from scoreflow import terminal as terminals
from scoreflow.densities import Densities
from scoreflow.processes import linear
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError
from scoreflow.score import Score
from scoreflow.trained import Images

_ENCODED = 100  # images at a time


class Model(Densities):
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
      needs_labels: whether nothing can be computed without them.
      prepared: what `with_data` has found for densities, or None.
      sampler: that of the run, or None.
      pilot_key: PRNG key of the samples on which times are tuned, or None.
      images: those behind x where these are the latents of a VAE, or None.

    Examples:
      >>> import jax, scoreflow
      >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (2,))  # the score of N(0, I)
      >>> model.sample(jax.random.key(0), 5).shape
      (5, 2)
      >>> print(model.log_prob([[0.0, 0.0]]).round(2))  # -log(2 pi)
      [-1.84]
    """

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
        terminal: Any = None,
    ) -> Model:
        """A model with a score function of one's own.

        Args:
          fn: (x [B, ...], t [B]) -> the score of x_t, like x; with `num_classes`, (x, t, labels [B]). A JAX function.
          process: the forward SDE with which it was trained.
          shape: of one x.
          t_min: the time at which the data are, by default 1e-3: that of the least noise that the function knows. It
            may be 0 where the process has noise there.
          num_levels: of gray, where the data are images of integers: level k is the bin from 2 k / num_levels - 1 to
            2 (k + 1) / num_levels - 1. 0 where the data are continuous.
          centered: whether these bins divide [-1, 1]; otherwise they divide [0, 1].
          num_classes: of labels, which the third argument of `fn` receives; 0 where there are none.
          terminal: the distribution at the horizon, with `sample` and `log_prob`; None for the process's Gaussian.

        Raises:
          TypeError: if the function fails for x and t of these shapes, or cannot be traced by JAX.
          ValueError: if t_min is not below the horizon, or has no noise; or if the function's arguments or result are
            others.

        Examples:
          >>> import scoreflow
          >>> model = scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear(), (32, 32, 3), num_levels=256)
          >>> model.shape, model.num_classes
          ((32, 32, 3), 0)
        """
        options = {"t_min": t_min, "num_levels": num_levels, "centered": centered, "num_classes": num_classes}
        return cls._of(fn, lambda call: call, process, shape, **options, terminal=terminal)

    @classmethod
    def from_prediction(
        cls,
        fn: Callable[..., jax.Array],
        process: Process,
        shape: tuple[int, ...],
        *,
        prediction: str | scores.Prediction = "noise",
        sigma_data: float = 1.0,
        t_min: float = 1e-3,
        num_levels: int = 0,
        centered: bool = True,
        num_classes: int = 0,
        terminal: Any = None,
    ) -> Model:
        """A model with a network of one's own that was trained to predict the noise, v, x_0, ...

        The function is fn(x_t, t) -> that prediction, or fn(x_t, t, labels).

        Args:
          fn: as for `from_score`; x_t is not scaled, and t is a time of the process, not the number of a step.
          prediction: "noise", "x0", "v", "velocity", "flow", "edm" or "score", as in `score.PREDICTIONS`.
          sigma_data: the data's root mean square, which "edm" alone depends on.

        The other arguments and the errors are those of `from_score`.

        Examples:
          >>> import scoreflow
          >>> process = scoreflow.vp_linear()
          >>> noise = lambda x, t: process.sigma(t)[:, None] * x  # what is noise in x_t, for data from N(0, I)
          >>> model = scoreflow.Model.from_prediction(noise, process, (2,), prediction="noise")
          >>> print(model.score([[2.0, -1.0]], 0.3).round(3))
          [[-2.  1.]]
        """
        if isinstance(prediction, str) and prediction not in scores.PREDICTIONS:
            raise ValueError(f"prediction = {prediction!r} must be one of {', '.join(scores.PREDICTIONS)}")
        meaning = scores.PREDICTIONS[prediction] if isinstance(prediction, str) else prediction
        if not isinstance(meaning, scores.Prediction):
            raise TypeError(f"prediction = {prediction!r} must be one of {', '.join(scores.PREDICTIONS)}")
        options = {"t_min": t_min, "num_levels": num_levels, "centered": centered, "num_classes": num_classes}
        make = lambda call: adapt.of_prediction(call, process, meaning, sigma_data)
        return cls._of(fn, make, process, shape, **options, terminal=terminal)

    @classmethod
    def from_denoiser(
        cls,
        fn: Callable[..., jax.Array],
        process: Process,
        shape: tuple[int, ...],
        *,
        t_min: float = 1e-3,
        num_levels: int = 0,
        centered: bool = True,
        num_classes: int = 0,
        terminal: Any = None,
    ) -> Model:
        """A model with a denoiser of one's own, as EDM and k-diffusion call it.

        The function is fn(z, sigma) -> E[x_0 | z], or fn(z, sigma, labels), where z = x_0 + sigma noise and sigma is
        [B]. A denoiser has no process of its own: any will do, since x_t / alpha = x_0 + (sigma / alpha) noise, as long
        as its noise levels are among those that were trained. With `scoreflow.edm()`, t is sigma itself, so t_min is
        the least sigma, and the horizon (80) the largest.

        Args:
          fn: the denoiser, a JAX function.

        The other arguments and the errors are those of `from_score`.

        Examples:
          >>> import scoreflow
          >>> denoiser = lambda z, sigma: z / (1 + sigma[:, None] ** 2)  # for data from N(0, I)
          >>> model = scoreflow.Model.from_denoiser(denoiser, scoreflow.edm(), (2,))
          >>> model.denoise([[2.0, -1.0]], 1.0).tolist()
          [[1.0, -0.5]]
        """
        options = {"t_min": t_min, "num_levels": num_levels, "centered": centered, "num_classes": num_classes}
        return cls._of(fn, lambda call: adapt.of_denoiser(call, process), process, shape, **options, terminal=terminal)

    @classmethod
    def _of(
        cls,
        fn: Callable,
        make: Callable[[Callable], Score],
        process: Process,
        shape: tuple[int, ...],
        *,
        t_min: float,
        num_levels: int,
        centered: bool,
        num_classes: int,
        terminal: Any,
    ) -> Model:
        """`make` turns (x, t, labels) -> what `fn` gives into a score."""
        linear.check(process)
        if num_levels and not 2 <= num_levels <= 256:
            raise ValueError(f"num_levels = {num_levels} must be from 2 to 256, or 0 for continuous data")
        if not 0 <= t_min < float(process.horizon) or float(process.sigma(t_min)) <= 0:
            raise ValueError(f"t_min = {t_min} must have noise and be below the horizon {float(process.horizon):g}")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        labels = adapt.labels_of(fn, num_classes)
        adapt.check(fn, shape, labels)
        score, prior = make(adapt.called(fn, labels)), terminals.prior(process) if terminal is None else terminal
        where = spaces.pixels(shape, num_levels, centered=centered)
        return cls(process, shape, lambda _: score, None, t_min, lambda _: prior, where, num_classes, labels.needs)


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
    from scoreflow.evaluators.examples import rule_of
    from scoreflow.experiment import PILOT, RunOptions, load_newest
    from scoreflow.runs import files, workdir

    if checkpoint not in (known := get_args(RunOptions.__annotations__["checkpoint"])):
        raise UserError(f"checkpoint = {checkpoint!r} must be {', '.join(known)}")
    path = files.local(str(folder), "folder")
    stored = workdir.stored_settings(path)
    if not stored:
        raise UserError(f"{path} holds no run of scoreflow")
    config, _ = configure.of_run(stored)
    experiment = configure.experiment(config, str(path), workdir.stored_data(path))
    loaded = load_newest(experiment, path, "" if checkpoint == "newest" else checkpoint)
    source = experiment.model.in_float32()  # bfloat16 would cost densities their accuracy
    images, data = None, experiment.data
    if experiment.space.latent is not None and (rule := rule_of(experiment, "", source.t_min, None, _ENCODED)):
        images = Images(data.shape, data.num_levels, rule)
    return Model(
        process=source.process,
        shape=experiment.space.shape,
        score_of=source.score,
        params=loaded.params,
        t_min=source.t_min,
        terminal_of=source.terminal,
        space=experiment.space,
        num_classes=data.num_classes if source.conditional else 0,
        needs_labels=source.conditional and not config.training.label_dropout,
        sampler=experiment.sampler,
        images=images,
        pilot_key=experiment.key(PILOT),
    )
