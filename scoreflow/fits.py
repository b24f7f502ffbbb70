"""Parameters that are fitted to the training data before training begins, each as (params, key) -> parameters."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import gaussian as gaussians
from scoreflow.data import Dataset
from scoreflow.data.facts import moments
from scoreflow.gaussian import Gaussian
from scoreflow.latent import kl
from scoreflow.models import MIXING
from scoreflow.models.vae import normal_log_prob
from scoreflow.processes.sdes import Process
from scoreflow.runs import parallel
from scoreflow.runs.errors import UserError
from scoreflow.space import Space, infer
from scoreflow.terminal.families import Family
from scoreflow.types import Flag, Key, Params

MOST_EXAMPLES = 50_000  # that a terminal distribution is fitted to
_INACTIVE = -15.0  # logit of a channel that is left out of the prior


class InactiveOptions(NamedTuple):
    """What a score prior does with channels of a finished VAE.

    Attributes:
      drop_inactive: Leave channels that carry no information out of the prior; needs score.mixed.
    """

    drop_inactive: Flag = False


def encoded(space: Space, samples: np.ndarray, seed: int) -> jax.Array:
    """Samples [N, ...], stored as the data are, in a space without parameters of its own."""
    return space.encode(None, jax.random.key(seed), jnp.asarray(samples))


def in_batches(function: Callable, params: Params, key: Key, data: np.ndarray, size: int = 500) -> np.ndarray:
    """function(params, key, data [B, ...]) over all data, in batches with a key each, on the host."""
    run = parallel.jit(function, out_shardings=parallel.replicated())
    keys = jax.random.split(key, -(-len(data) // size))
    outputs = [run(params, k, np.asarray(data[i * size : (i + 1) * size])) for i, k in enumerate(keys)]
    return np.concatenate(parallel.gather(outputs))


def sigma_data(space: Space, data: Dataset) -> float:
    """Root mean square of the data in the units of x, to four digits.

    Raises:
      UserError: for latents, which are still to be learned.
    """
    if space.latent is not None:
        raise UserError("sigma_data = auto: there is nothing to measure in latents that are to be learned; set 1")
    return float(f"{moments(data, *space.ends).rms:.4g}")


def gaussian(space: Space, data: Dataset, conditional: bool) -> Gaussian:
    """The Gaussian with the mean and covariance of encoded training data, one for each class where there are labels.

    Latents that are to be learned are near N(0, I), which is theirs.

    Args:
      space: how data as stored are encoded, dequantized with fixed noise.
      data: of whose training split the first 50,000 examples are used.
      conditional: whether the network is given labels.

    Raises:
      UserError: where there are no examples.
    """
    rows, size = data.train.x[:MOST_EXAMPLES], int(np.prod(space.shape))
    if space.latent is not None:
        return gaussians.standard(size)
    if not len(rows):
        raise UserError("sampler.name = gaussian_multistep needs the training data; without them, choose another")

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for i in range(0, len(rows), 500):
            label = data.train.label[i : i + 500] if conditional and data.train.label is not None else None
            x = np.asarray(encoded(space, rows[i : i + 500], i))
            yield x.reshape(len(x), -1), None if label is None else label[: len(x)]

    return gaussians.fit(batches, size, classes=data.num_classes if conditional else 1)


def terminal(family: Family, space: Space, process: Process, data: np.ndarray) -> Callable[[Params, Key], Params]:
    """The terminal distribution's parameters, fitted to encoded training data.

    Args:
      family: the kind of distribution; its `fit` is used.
      space: how data [N, ...] as stored are encoded, dequantized afresh at every call.
      process: the forward SDE.
      data: training data as stored, of which the first 50,000 are used.
    """
    rows = data[:MOST_EXAMPLES]

    def fit(params: Params, key: Key) -> Params:
        def clean(key):
            if space.latent is not None:
                return in_batches(space.encode, params, key, np.asarray(rows))
            return np.asarray(space.encode(params, key, jnp.asarray(rows)))

        assert family.fit is not None
        return family.fit(key, clean=clean, process=process)

    return fit


def mask_inactive(space: Space, data: np.ndarray) -> Callable[[Params, Key], Params]:
    """The parameters of `score.mixed`, without the channels whose divergence from N(0, I) is at most 0.1 nats."""
    latent = space.latent
    assert latent is not None

    def per_channel(params, key, data):
        top = infer(latent, params, key, data).top
        return kl.channel_sums(top.log_q - normal_log_prob(top.z))

    def fit(params: Params, key: Key) -> Params:
        active = kl.active(jnp.asarray(in_batches(per_channel, params, key, data[:MOST_EXAMPLES])))
        mixing = params[MIXING]
        return {"logits": jnp.where(active, mixing["logits"], _INACTIVE), "active": active.astype(jnp.float32)}

    return fit
