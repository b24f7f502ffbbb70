"""One experiment as a handful of typed things: what `train`, `evaluate`, `sample` and `planner` take apart."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from scoreflow import score as scores
from scoreflow.data import Dataset
from scoreflow.data.facts import facts, moments
from scoreflow.latent.space import LatentSpace
from scoreflow.models import (
    DEQUANTISER,
    LATENT,
    MIXING,
    TERMINAL,
    Init,
    Network,
    ParamsOnly,
    mixing,
    with_parts,
)
from scoreflow.models.dequantiser import NoiseFlow
from scoreflow.objectives.protocols import Objective
from scoreflow.processes.sdes import Process
from scoreflow.runs import workdir
from scoreflow.runs.errors import UserError
from scoreflow.samplers.sampler import Sampler
from scoreflow.score import PredictionName, Score
from scoreflow.space import Space
from scoreflow.terminal import families
from scoreflow.types import Flag, Key, NonNegative, Number, Params, PositiveOrAuto, Seed, Text

INIT, TRAIN, VALIDATE, SAMPLE, EVALUATE, READ, PILOT = range(7)
"""Purposes of `Experiment.key`; no two share a number."""


class RunOptions(NamedTuple):
    """What a run is told besides its parts.

    Attributes:
      seed: Seed of every random number of the run.
      t_min: Time at which training and likelihood begin; 0 where the process has noise there.
      checkpoint: Which checkpoint is evaluated or sampled: the newest, or the best by a measure of training.best.
      init_from: Folder of a run whose averaged parameters training begins with; empty for fresh ones.
      init_parts: What is taken from it: every group of parameters that both runs have, or the VAE alone.
    """

    seed: Seed = 0
    t_min: NonNegative = 1e-5
    checkpoint: Literal["newest", "validation", "frechet"] = "newest"
    init_from: Text = ""
    init_parts: Literal["all", "vae"] = "all"


class DataOptions(NamedTuple):
    """How training uses the data.

    Attributes:
      flip: Mirror training images left to right at random.
      conditional: Give the network the labels.
    """

    flip: Flag = False
    conditional: Flag = False


class ScoreOptions(NamedTuple):
    """How a network's output becomes a score; see `score`.

    Attributes:
      prediction: What the network predicts.
      sigma_data: Root mean square of the data, in the units of x; `auto` measures it.
      energy_power: Power p of the energy sigma^p |s|^2 / 2 whose negative gradient the score is: 1 as published, -1 as
        in the published image code, 2 derived here; 0 leaves the score unconstrained.
      mixed: Mix the network with the score of N(0, I), channel by channel, as for latents.
      mixed_logit: Logit of the network's share at the beginning, where it is mixed.
    """

    prediction: PredictionName = scores.V
    sigma_data: PositiveOrAuto = 1.0
    energy_power: Literal[0, 1, -1, 2] = 0
    mixed: Flag = False
    mixed_logit: Number = -3.0


_SCORE, _PRIOR = ScoreOptions(), families.prior()


class Model(NamedTuple):
    """A forward process, a score function and a terminal distribution.

    Attributes:
      process: the forward SDE.
      network: `init` and `apply`; `apply` is None where there are latents alone, whose score is that of N(0, I).
      t_min: the time at which training and likelihood begin.
      options: how the network's output becomes a score.
      family: the kind of terminal distribution, whose parameters are params[TERMINAL] where it has any.
      conditional: whether the network is given labels.
      fits: by part of the parameters, (params, key) -> that part fitted to the training data, before training begins.
    """

    process: Process
    network: Network | ParamsOnly
    t_min: float = 1e-5
    options: ScoreOptions = _SCORE
    family: families.Family = _PRIOR
    conditional: bool = False
    fits: Mapping[str, Callable[[Params, Key], Params]] = {}

    def init(self, key: Key, shape: tuple[int, ...]) -> Params:
        """Fresh parameters for x of a shape."""
        return self.network.init(key, (1, *shape))

    def score(self, params: Params, *, train: bool = False, key: Key | None = None) -> Score:
        """The score function; with `train`, `key` draws the dropout masks."""
        if self.network.apply is None:
            return scores.normal(self.process)
        if self.options.energy_power:
            return scores.constrained(self.energy(params, train=train, key=key))
        return self._unconstrained(params, train=train, key=key)

    def in_float32(self) -> "Model":
        """The same model with a network that computes in float32; itself where it does."""
        network = self.network
        if not isinstance(network, Network) or network.precise is None:
            return self
        return self._replace(network=network._replace(apply=network.precise, precise=None))

    def energy(self, params: Params, *, train: bool = False, key: Key | None = None) -> scores.Energy:
        """energy(x, t, cond) -> [B], whose negative gradient is the score; only where `energy_power` is not 0."""
        free = self._unconstrained(params, train=train, key=key)
        return scores.energy_fn(self.process, free, self.options.energy_power)

    def _unconstrained(self, params: Params, *, train: bool, key: Key | None) -> Score:
        options, network = self.options, self.network.apply
        assert network is not None
        apply = functools.partial(network, train=True, key=key) if train else network
        make = functools.partial(scores.score_fn, self.process, sigma_data=options.sigma_data)
        if not options.mixed:
            return make(apply, params, options.prediction)
        active = jax.lax.stop_gradient(params[MIXING]["active"])

        def active_channels(params, x, log_snr, cond=None):
            return apply(params, x * active.reshape((1,) * (x.ndim - 1) + active.shape), log_snr, cond)

        free = make(active_channels, params, options.prediction)
        return scores.mixed(self.process, free, params[MIXING]["logits"])

    def terminal(self, params: Params, t: Any = None) -> families.Terminal:
        """The distribution that is assumed at time t, by default at the horizon."""
        own = params[TERMINAL] if self.family.init is not None else None
        return self.family.at(own, self.process, self.process.horizon if t is None else t)


def parameters(
    net: Network | None,
    *,
    mixed_logit: float | None = None,
    family: families.Family = _PRIOR,
    flow: NoiseFlow | None = None,
    latent: LatentSpace | None = None,
) -> Network | ParamsOnly:
    """The score network together with every other group of parameters that is learned or fitted.

    Args:
      net: the score network; None where a VAE is trained alone.
      mixed_logit: logit of the network's share where it is mixed with the score of N(0, I); None where it is not.
      family: the kind of terminal distribution, which may have parameters.
      flow: the dequantizing flow.
      latent: the latent space, whose VAE has parameters.
    """
    groups: dict[str, Init] = {}  # keys are split in this order
    if flow is not None:
        groups[DEQUANTISER] = flow.init
    if family.init is not None:
        groups[TERMINAL] = family.init
    if mixed_logit is not None:
        groups[MIXING] = mixing(mixed_logit)
    if latent is not None:
        groups[LATENT] = lambda key, x_shape: latent.init(key)
    if net is None:
        assert latent is not None
        return ParamsOnly(lambda key, x_shape: {LATENT: latent.init(key)}, groups=(LATENT,))
    return with_parts(net, **groups) if groups else net


class Experiment(NamedTuple):
    """A generative model, its data and how it is trained and sampled.

    Attributes:
      name: for messages; of a config, the file as it was given.
      seed: of every random number.
      data: the data set.
      space: what is diffused: the data, or a VAE's latents.
      model: process, score and terminal distribution.
      objective: (params, key, batch, *, train, step=None) -> (scalar, {term: scalar}).
      sampler: draws x from the noise.
      config: everything that was configured, as nested dicts of plain values, for `config.json`.
    """

    name: str
    seed: int
    data: Dataset
    space: Space
    model: Model
    objective: Objective
    sampler: Sampler
    config: dict[str, Any]

    def key(self, purpose: int) -> Key:
        """The run's key for one purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        return self.model.init(key, self.space.shape)

    @property
    def _diffuses_data(self) -> bool:
        """Whether x are the data, and not the latents of a VAE."""
        return self.space.latent is None and self.model.network.apply is not None

    def facts(self) -> list[str]:
        """What is known of the data, in one line each."""
        if not self._diffuses_data:
            return facts(self.data)
        return facts(self.data, *self.space.ends, sigma_data=self.model.options.sigma_data)

    def signal_left(self) -> float:
        """Root mean square of the data at the horizon, in standard deviations of the noise there."""
        rms = moments(self.data, *self.space.ends).rms if self._diffuses_data else 1.0
        process, end = self.model.process, self.model.process.horizon
        return rms * float(process.alpha(end) / process.sigma(end))


class Loaded(NamedTuple):
    """A checkpoint that is used: its step, a digest of its files, and its averaged parameters."""

    step: int
    digest: str
    params: Params


def load_newest(experiment: Experiment, folder: Path, best: str = "") -> Loaded:
    """The newest whole checkpoint of a run, or the best by a measure, on all devices.

    A training that goes on in the folder may remove a step while it is read; then a newer one is taken.

    Raises:
      UserError: if there is none, or it does not fit the experiment.
    """
    while True:
        step = workdir.newest(folder, best)
        try:
            digest = workdir.sealed(folder, step, best)
            return Loaded(step, digest, load_params(experiment, folder, step, best))
        except (OSError, UserError):
            if workdir.newest(folder, best) == step:
                raise


def load_params(experiment: Experiment, folder: Path, step: int, best: str = "") -> Params:
    """The averaged parameters of a checkpoint, or of the best by a measure, on all devices."""
    template = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    return workdir.averaged(folder, step, template, best)
