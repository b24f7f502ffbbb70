"""Networks behind two pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Network(NamedTuple):
    """A network as functions of its arguments alone (no mutable collections), so that jvp, vjp and vmap compose.

    Attributes:
      init: (key, x_shape) -> params; x_shape is that of one batch [B, ...], of which B does not matter.
      apply: (params, x [B, ...], log_snr [B], cond [B] int32 or None, *, train=False, key=None) -> [B, ...] float32.
        `key` draws the dropout masks and is needed only where `train` is set. Without `cond`, or where it equals
        num_classes, a class-conditional network answers for all classes together.
    """

    init: Callable
    apply: Callable


def network(module: nn.Module) -> Network:
    """Wraps a Linen module whose call is (x, log_snr, cond, train)."""

    def init(key, x_shape):
        x = jnp.zeros((1, *x_shape[1:]))
        return module.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32), False)["params"]

    def apply(params, x, log_snr, cond=None, *, train=False, key=None):
        rngs = {"dropout": key} if train else None
        return module.apply({"params": params}, x, log_snr, cond, train, rngs=rngs)

    return Network(init, apply)


MAIN, DEQUANTISER, TERMINAL, LATENT, MIXING = "score", "dequantiser", "terminal", "vae", "mixing"
"""Names of the parts in the parameters of `beside`."""


class Other(NamedTuple):
    """Something with parameters that is no score network; `init` as in `Network`."""

    init: Callable


def mixing(logit: float) -> Other:
    """For each channel (of x_shape) the `logits` of `score.mixed` and which are `active`: 1, or 0 for left out."""

    def init(key, x_shape):
        return {"logits": jnp.full(x_shape[-1], logit), "active": jnp.ones(x_shape[-1])}

    return Other(init)


def beside(net: Network, **others) -> Network:
    """`net` with others whose parameters live in the same tree: {MAIN: of net, name: of another, by its `init`}."""

    def init(key, x_shape):
        keys = jax.random.split(key, 1 + len(others))
        made = {name: other.init(k, x_shape) for k, (name, other) in zip(keys[1:], others.items())}
        return {MAIN: net.init(keys[0], x_shape), **made}

    def apply(params, *args, **options):
        return net.apply(params[MAIN], *args, **options)

    return Network(init, apply)


def only(name: str, init: Callable) -> Network:
    """Parameters {name: init(key)} and nothing to apply: where the score needs no network."""
    return Network(lambda key, x_shape: {name: init(key)}, None)


def count_params(params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
