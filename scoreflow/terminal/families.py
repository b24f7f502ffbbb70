"""The families of terminal distributions: what each one learns, from what, and at which times it is valid.

In the bound of a model, the terminal distribution nu and the score are separate terms (Franzese et al. 2022, arXiv
2206.05173)

    E log p >= E log nu(x_T) - (a term of the score alone),

so nu is fitted to x_T = alpha x_0 + sigma noise by maximum likelihood, before, during or after the training of the
score.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoreflow import terminal
from scoreflow.models.glow import Glow
from scoreflow.models.layers import Conv, conv3x3_direct
from scoreflow.processes.sdes import Process
from scoreflow.terminal import Terminal, mixture
from scoreflow.terminal.flow import Flow
from scoreflow.types import Count, Key, OneOf, Params, Positive, Text

_FLOOR = 1e-4  # least variance of a mixture of clean data, whose components could shrink onto an example
_COPIES = 4  # copies of each example, with independent noise, when a mixture is fitted to x_T
_FIRST = 256  # number of examples that determine a flow's initial scales

_MIXTURE_ADVICE = "choose more terminal.components, another terminal.covariance"

COVARIANCES = {
    "isotropic": mixture.ISOTROPIC,
    "diagonal": mixture.DIAGONAL,
    "low_rank": mixture.low_rank,
    "full": mixture.FULL,
}
CovarianceForm = Annotated[mixture.Covariance | Callable[[int], mixture.Covariance], OneOf(COVARIANCES)]
"""A form of covariances, or rank -> the form."""


class Family(NamedTuple):
    """A family of terminal distributions.

    Attributes:
      at: (params, process, t) -> the distribution of x_t under `process`.
      init: (key, shape [B, ...]) -> parameters before they are fitted; None where there are none.
      fit: (key, clean, process) -> parameters, where clean(key) returns the training data as the model sees them,
        [N, ...], dequantised with new noise. Where there is a `loss`, training starts from these parameters.
      loss: (params, x [B, ...]) -> nats [B], minimized by gradient on draws of x_T; None where `fit` is all.
      learning_rate: the learning rate for `loss`; None where nothing is learned by gradient.
      anywhere: whether `at` is valid at other times than the horizon that the parameters were fitted for.
      advice: the first words of a sentence on what brings it closer to the distribution of x_T.
    """

    at: Callable[[Params, Process, ArrayLike], Terminal]
    init: Callable[[Key, tuple[int, ...]], Params] | None = None
    fit: Callable[..., Params] | None = None
    loss: Callable[[Params, jax.Array], jax.Array] | None = None
    learning_rate: float | None = None
    anywhere: bool = True
    advice: str = "choose terminal.name = mixture"


def _scales(process: Process, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """alpha and variance of `process` at t."""
    return process.alpha(jnp.asarray(t, jnp.float32)), process.variance(jnp.asarray(t, jnp.float32))


def prior() -> Family:
    """The process's own Gaussian, which has no parameters."""
    return Family(lambda params, process, t: terminal.prior(dataclasses.replace(process, horizon=t)))


def pushforward(read: Callable[[str], jax.Array], path: Text = "") -> Family:
    """Samples of any generator, noised to time t.

    Args:
      read: path -> samples [N, ...] as the model sees data. It is called once.
      path: File of samples of any generator, a NumPy array in the form of the data set.
    """
    pool = read(path)

    def at(params: Params, process: Process, t: ArrayLike) -> terminal.Pushforward:
        alpha, variance = _scales(process, t)
        return terminal.Pushforward(pool, alpha, jnp.sqrt(variance))

    return Family(at)


def _mixtures(components: int, covariance: mixture.Covariance, fit_to: Callable, transport: bool) -> Family:
    """A mixture that is fitted to clean data and transported to t, or one that is fitted to x_T.

    Args:
      components: number of components.
      covariance: their form.
      fit_to: (x, seed, floor) -> Mixture.
      transport: whether the fit is to clean data.
    """

    def init(key: Key, shape: tuple[int, ...]) -> Params:
        del key
        return vars(mixture.empty(components, int(np.prod(shape[1:])), covariance))

    def fit(key: Key, clean: Callable[[Key], np.ndarray], process: Process) -> Params:
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        if transport:
            x, floor = clean(key), _FLOOR
        else:
            keys = jax.random.split(key, (_COPIES, 2))
            copies = [clean(k[0]) for k in keys]
            t = jnp.full(len(copies[0]), process.horizon, jnp.float32)
            noised = [process.perturb(k[1], jnp.asarray(x0), t).xt for k, x0 in zip(keys, copies)]
            x = np.concatenate([np.asarray(xt) for xt in noised])
            floor = float(process.variance(process.horizon))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), vars(fit_to(x, seed, floor)))

    def at(params: Params, process: Process, t: ArrayLike) -> mixture.Mixture:
        fitted = mixture.Mixture(**jax.lax.stop_gradient(params))
        return mixture.transported(fitted, *_scales(process, t)) if transport else fitted

    return Family(at, init, fit, anywhere=transport, advice=_MIXTURE_ADVICE)


def gaussian_mixture(
    components: Count = 1,
    covariance: CovarianceForm = mixture.FULL,
    rank: Count = 16,
    fitted_to: Literal["data", "end"] = "data",
) -> Family:
    """A Gaussian or a mixture of Gaussians, fitted by expectation maximization.

    Args:
      components: Number of components; 1 is a single Gaussian.
      covariance: Form of the components' covariances.
      rank: Number of directions with variances of their own, for low_rank alone.
      fitted_to: Fit the clean data and transport the fit to any T in closed form (data), or fit x_T itself (end).
    """
    form = covariance if isinstance(covariance, mixture.Covariance) else covariance(rank)

    def fit_to(x: np.ndarray, seed: int, floor: float) -> mixture.Mixture:
        return mixture.fit(x, components=components, covariance=form, floor=floor, seed=seed).mixture

    return _mixtures(components, form, fit_to, fitted_to == "data")


def dirichlet(components: Count = 20, fitted_to: Literal["data", "end"] = "end") -> Family:
    """scikit-learn's Dirichlet-process mixture with full covariances.

    Args:
      components: Largest number of components.
      fitted_to: Fit the clean data and transport the fit to any T in closed form (data), or fit x_T itself (end).
    """

    def fit_to(x: np.ndarray, seed: int, floor: float) -> mixture.Mixture:
        del floor  # the prior of the mixture keeps its covariances from collapsing
        return mixture.fit_dirichlet(x, components=components, seed=seed)

    family = _mixtures(components, mixture.FULL, fit_to, fitted_to == "data")
    return family._replace(advice="choose more terminal.components")


def glow(
    resolutions: Count = 2,
    steps: Count = 8,
    width: Count = 64,
    learning_rate: Positive = 1e-3,
    conv: Conv = conv3x3_direct,
) -> Family:
    """A multiscale flow of x_T that is trained by gradient.

    Args:
      resolutions: Number of resolutions; 2 to its power must divide the sides of the images.
      steps: Number of flow steps at each resolution.
      width: Number of channels inside the couplings.
      learning_rate: Learning rate of the flow's parameters.
      conv: lowering of the 3x3 convolutions, see `models.layers`.
    """
    module = Glow(resolutions, steps, width, conv)

    def forward(params: Params, y: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        return cast(tuple[list[jax.Array], jax.Array], module.apply(params, y))

    def inverse(params: Params, noise: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        return cast(tuple[jax.Array, jax.Array], module.apply(params, noise, method=Glow.invert))

    def flow(params: Params) -> Flow:
        mean, std = jax.lax.stop_gradient((params["mean"], params["std"]))
        return Flow(params["flow"], mean, std, forward, inverse, module.shapes)

    def init(key: Key, shape: tuple[int, ...]) -> Params:
        batch = jax.random.normal(key, (8, *shape[1:]))  # any batch that varies; `fit` sets the initial scales
        return {"flow": module.init(key, batch), "mean": jnp.zeros(()), "std": jnp.ones(())}

    def fit(key: Key, clean: Callable[[Key], np.ndarray], process: Process) -> Params:
        key_x, key_noise, key_init = jax.random.split(key, 3)
        x = clean(key_x)
        alpha, variance = (float(value) for value in _scales(process, process.horizon))
        mean, std = alpha * float(x.mean()), float(np.sqrt(alpha**2 * x.var() + variance))
        first = jnp.asarray(x[:_FIRST])
        xt = process.perturb(key_noise, first, jnp.full(len(first), process.horizon, jnp.float32)).xt
        params = jax.jit(module.init)(key_init, (xt - mean) / std)
        return {"flow": params, "mean": jnp.float32(mean), "std": jnp.float32(std)}

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return -flow(params).log_prob(x)

    advice = "choose more training.steps, more terminal.steps, terminal.name = mixture"
    return Family(lambda params, process, t: flow(params), init, fit, loss, learning_rate, False, advice)
