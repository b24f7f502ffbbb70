"""One experiment as typed parts: what `build` makes of a config and `train`, `evaluate` and `sample` take apart."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from scoreflow.data import Source
from scoreflow.dequantise import Bins
from scoreflow.latent.space import Space
from scoreflow.models import Network
from scoreflow.processes.sdes import Process


class Experiment(NamedTuple):
    """A generative model and its data.

    Attributes:
      name: the config file as given to the command, for messages.
      seed: of every random number.
      source: the data set.
      shape: of one x, which is what is diffused: of an example, or of its latents.
      process: the forward SDE.
      t_min: the time at which training and likelihood begin.
      terminal: (params) -> the law assumed at the horizon.
      terminal_at: (params, t) -> the law that would be assumed if the path ended at t; None where it is fitted to the
        horizon alone.
      fits: by part, (params, key) -> that part's parameters fitted to the training data, from which training begins.
      network: `init` and `apply`.
      conditional: whether the network is given labels.
      score: (params, *, train=False, key=None) -> score function.
      energy: (params, *, train=False, key=None) -> energy(x, t, cond) [B] where the score is one's gradient, else None.
      latent: the latent space, whose parameters are params[LATENT]; None where x are the data.
      encode: (params, key, data [B, ...] as stored) -> x [B, ...], dequantised if they are levels, or their latents.
      decode: (params, key, x) -> data as stored: uint8 levels, or x itself where the data are continuous.
      bins: where the levels of integer data lie; None where the data are continuous, or have two levels and a decoder:
        their likelihood is in nats.
      log_density: (x [d], alpha, sigma) -> log-density (nats) of alpha data + sigma noise, where it is known.
      objective: (params, key, batch, *, train, step=None) -> (scalar, {name: scalar}); step is that of training, for
        terms that are let in gradually, and None where all of them count.
      sampler: (score, key, x_init, cond, *, trajectory=False) -> SampleResult, with its grid inside.
      per_device: whether the sampler loops a data-dependent number of times, so that each device runs its own.
      config: everything that was configured, for `config.json`.
    """

    name: str
    seed: int
    source: Source
    shape: tuple[int, ...]
    process: Process
    t_min: float
    terminal: Callable
    terminal_at: Callable | None
    fits: dict[str, Callable]
    network: Network
    conditional: bool
    score: Callable
    energy: Callable | None
    latent: Space | None
    encode: Callable
    decode: Callable
    bins: Bins | None
    log_density: Callable | None
    objective: Callable
    sampler: Callable
    per_device: bool
    config: dict

    def key(self, purpose: int) -> jax.Array:
        """The run's key for one purpose; no two purposes share a number."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)


INIT, TRAIN, VALIDATE, SAMPLE, EVALUATE, READ = range(6)
"""Purposes of `Experiment.key`."""
