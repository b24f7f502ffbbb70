"""The parts of an experiment that a section of its config names."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from scoreflow import dequantise
from scoreflow.configure.checks import check_process, check_source
from scoreflow.configure.tables import CONVOLUTIONAL, DECODERS, MODELS, PROCESSES, TERMINALS, VAES
from scoreflow.configure.values import make
from scoreflow.data import Source, load
from scoreflow.data.fetch import default_dir
from scoreflow.latent import space as latent
from scoreflow.models import Network, layers, network
from scoreflow.models.vae import vae
from scoreflow.processes import sdes
from scoreflow.terminal import families


def source(config) -> Source:
    """The data set, read from where it is.

    Raises:
      UserError: where it is missing or damaged, or does not go with the rest of the config.
    """
    data = config.data
    if data.name == "digits":
        found = load.digits()
    elif data.name in load.TOYS:
        found = load.toy_density(data.name)
    elif data.name == "arrays":
        found = load.arrays(data.path, test_fraction=data.test_fraction, levels=data.levels)
    elif data.name == "folder":
        found = load.folder(data.path, image_size=data.image_size, test_fraction=data.test_fraction)
    else:
        found = load.named(data.name, Path(data.dir).expanduser() if data.dir else default_dir(), data.image_size)
    check_source(config, found)
    return found


def process(config) -> sdes.Process:
    """The forward SDE.

    Raises:
      UserError: where its horizon leaves no signal.
    """
    made = make(PROCESSES, config.process)
    check_process(config, made)
    return made


def _loops(config) -> bool:
    """Whether gradients are taken inside a compiled loop."""
    return config.training.steps_per_dispatch > 1 or config.training.grad_accum > 1


def model(config, found: Source) -> Network:
    """The network. Convolutions whose gradient is taken inside a compiled loop, where a constrained score also takes
    one, get the lowering that is fast there."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "dtype")}
    options["dtype"] = jnp.bfloat16 if config.model.dtype == "bfloat16" else None
    options["num_classes"] = found.num_classes if config.data.conditional else 0
    if config.model.name in CONVOLUTIONAL and (_loops(config) or config.score.energy != "none"):
        options["conv"] = layers.conv3x3_in_loop
    return network(MODELS[config.model.name].make(**options))


def space(config, found: Source) -> latent.Space | None:
    """The latent space, where there is one."""
    if config.vae.name == "none":
        return None
    count = 2 if config.data.binarized else 2**config.data.bits if config.data.bits else found.levels
    decoder = make(DECODERS, config.decoder)(count)
    options = {key: value for key, value in config.vae.items() if key != "name"}
    if "dtype" in options:
        options["dtype"] = jnp.bfloat16 if options["dtype"] == "bfloat16" else None
    module = VAES[config.vae.name].make(**options)(decoder.outputs(found.shape[-1]), found.shape)
    return latent.space(vae(module), decoder, latent.Levels(found.levels, count, config.data.binarized), found.shape)


def bins(config, found: Source, within: latent.Space | None = None) -> dequantise.Bins | None:
    """Where the levels of integer data lie; None for continuous data, and for data in latent space with two levels.

    A decoder gives probabilities of levels, so that there a bin has size 1, and what is measured of two levels is nats.
    """
    if within is not None:
        count = within.levels.count
        return dequantise.Bins(count, 0.0, float(count)) if count > 2 else None
    if not found.levels:
        return None
    return dequantise.Bins(found.levels) if config.data.centered else dequantise.Bins(found.levels, 0.0, 1.0)


def family(config, found: Source, encode: Callable) -> families.Family:
    """The kind of terminal law.

    Raises:
      UserError: where its file of samples is missing or of another shape.
    """
    options = {key: value for key, value in config.terminal.items() if key not in ("name", "learning_rate")}
    if config.terminal.name == "pushforward":
        pool = load.samples(options.get("path", ""), found.shape, found.levels)
        return families.pushforward(encode(None, jax.random.key(config.seed), pool))
    if config.terminal.name == "glow" and _loops(config):
        options["conv"] = layers.conv3x3_in_loop
    return TERMINALS[config.terminal.name].make(**options)
