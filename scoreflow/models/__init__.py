"""Networks as two pure functions, and one parameter tree for everything that is trained together."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoreflow.types import Cond, Key, Params

Init = Callable[[Key, tuple[int, ...]], Params]
"""(key, x_shape) -> params, where x_shape is that of one batch [B, ...] and B does not matter."""


class Apply(Protocol):
    """A network as a function of its arguments alone."""

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        log_snr: jax.Array,
        cond: Cond = None,
        *,
        train: bool = False,
        key: Key | None = None,
    ) -> jax.Array:
        """The output at x [B, ...] and the noise labels log_snr [B], given cond (see `types.Cond`); [B, ...]."""
        ...


class Network(NamedTuple):
    """A network without mutable collections, so that jvp, vjp and vmap compose.

    Attributes:
      init: (key, x_shape) -> params; x_shape is that of one batch [B, ...], of which B does not matter.
      apply: (params, x [B, ...], log_snr [B], cond, *, train=False, key=None) -> [B, ...] float32. `key` draws the
        dropout masks and is needed only where `train` is set. `cond` are class labels [B] int32, or None. Without them,
        or where they equal num_classes, the output of a class-conditional network is that of all classes together.
        Networks of `plus` may be told of augmentation, too (`types.Conditioning`); otherwise there was none.
      groups: names of the branches at the top of the parameter tree; () where the tree is the network's own.
      precise: `apply` in float32, where `apply` computes with fewer bits; None where it does not.
    """

    init: Init
    apply: Apply
    groups: tuple[str, ...] = ()
    precise: Apply | None = None


def network(module: nn.Module) -> Network:
    """Wraps a Linen module as a score network: functions `init` and `apply` of plain parameters.

    Args:
      module: its call is (x [B, ...], log_snr [B], cond [B] or None, train) -> a prediction, like x.

    Examples:
      >>> import jax, jax.numpy as jnp, scoreflow
      >>> from scoreflow.models.mlp import ResidualMLP
      >>> net = scoreflow.network(ResidualMLP(width=16, depth=1))
      >>> params = net.init(jax.random.key(0), (1, 2))
      >>> net.apply(params, jnp.ones((5, 2)), jnp.zeros(5)).shape
      (5, 2)
    """

    def init(key: Key, x_shape: tuple[int, ...]) -> Params:
        x = jnp.zeros((1, *x_shape[1:]))
        return module.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32), False)["params"]

    def apply_of(module: nn.Module) -> Apply:
        def apply(params, x, log_snr, cond=None, *, train=False, key=None):
            rngs = {"dropout": cast(Key, key)} if train else None
            return cast(jax.Array, module.apply({"params": params}, x, log_snr, cond, train, rngs=rngs))

        return apply

    low = getattr(module, "dtype", None) not in (None, jnp.float32)
    precise = apply_of(module.clone(dtype=None)) if low else None
    return Network(init, apply_of(module), precise=precise)


MAIN, DEQUANTISER, TERMINAL, LATENT, MIXING = "score", "dequantiser", "terminal", "vae", "mixing"
"""Names of the branches of the parameter tree of `with_parts`."""


class ParamsOnly(NamedTuple):
    """Parameters without a network: `init` and `groups` as in `Network`, and `apply`, which is always None."""

    init: Init
    apply: None = None
    groups: tuple[str, ...] = ()


def mixing(logit: float) -> Init:
    """Initializes the parameters of `score.mixed`: by channel, `logits`, and `active`, 1 or 0 where it is left out."""

    def init(key: Key, x_shape: tuple[int, ...]) -> Params:
        return {"logits": jnp.full(x_shape[-1], logit), "active": jnp.ones(x_shape[-1])}

    return init


def with_parts(net: Network, **branches: Init) -> Network:
    """A network whose parameter tree has further branches, for everything else that is trained.

    Args:
      net: the network. Its parameters are the branch `MAIN`, and `apply` uses them alone.
      branches: name of a branch -> (key, x_shape) -> its parameters.
    """

    def init(key: Key, x_shape: tuple[int, ...]) -> Params:
        keys = jax.random.split(key, 1 + len(branches))
        params = {name: init(k, x_shape) for k, (name, init) in zip(keys[1:], branches.items())}
        return {MAIN: net.init(keys[0], x_shape), **params}

    def of_main(apply: Apply) -> Apply:
        return lambda params, *args, **options: apply(params[MAIN], *args, **options)

    precise = None if net.precise is None else of_main(net.precise)
    return Network(init, of_main(net.apply), (MAIN, *branches), precise)


def count_params(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
