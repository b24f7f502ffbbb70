"""Every kind of part, as a literal table: name -> what makes it and the parameters it takes, with what they must be.

A new method is a new row.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from scoreflow import dequantise, divergence, score, train
from scoreflow.configure import latents
from scoreflow.configure.values import (
    ANY_NUMBER,
    COUNT,
    COUNT_OR_0,
    COUNTS,
    DTYPE,
    FLAG,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    TEXT,
    Check,
    Choice,
    one_of,
)
from scoreflow.data import toy
from scoreflow.evaluators import samples
from scoreflow.latent import decoders
from scoreflow.models import dequantiser, plus
from scoreflow.models.hierarchical import HierarchicalVAE
from scoreflow.models.mlp import ResidualMLP
from scoreflow.models.unet import UNet
from scoreflow.models.vae import MLPVAE, ConvVAE
from scoreflow.objectives import conservative, dsm, high_order, times, weights
from scoreflow.processes import sdes, transitions
from scoreflow.samplers import affine, grids, ode
from scoreflow.terminal import families, mixture
from scoreflow.theory import exact, processes

_HORIZON = {"horizon": POSITIVE}
_BETAS = {"beta_min": POSITIVE, "beta_max": POSITIVE, **_HORIZON}
_SIGMAS = {"sigma_min": POSITIVE, "sigma_max": POSITIVE, **_HORIZON}
_VARIANCE = Check(float, lambda v: 0 < v < 1, "a number between 0 and 1")
_OFFSET = {"v0": NON_NEGATIVE, **_HORIZON}
PROCESSES = {
    # by the ends of beta or sigma at t = 0 and t = 1
    "vp_linear": Choice(sdes.vp_linear, _BETAS),
    "vp_constant": Choice(sdes.vp_constant, _BETAS),
    "vp_power": Choice(sdes.vp_power, {**_BETAS, "rho": POSITIVE}),
    "vp_exponential": Choice(sdes.vp_exponential, _BETAS),
    "vp_cosine": Choice(sdes.vp_cosine, {"offset": POSITIVE, **_HORIZON}),
    "vp_geometric": Choice(sdes.vp_geometric, {"variance_min": _VARIANCE, "variance_max": _VARIANCE, **_HORIZON}),
    "sub_vp_linear": Choice(sdes.sub_vp_linear, _BETAS),
    "ve_geometric": Choice(sdes.ve_geometric, _SIGMAS),
    "ve_constant": Choice(sdes.ve_constant, _SIGMAS),
    "ve_linear": Choice(sdes.ve_linear, _SIGMAS),
    "ve_power": Choice(sdes.ve_power, {**_SIGMAS, "rho": Check(float, lambda v: v >= 0.5, "a number, 0.5 or above")}),
    "edm": Choice(sdes.edm, _HORIZON),
    "straight": Choice(sdes.straight, {"horizon": Check(float, lambda v: 0 < v < 1, "a number between 0 and 1")}),
    # by the letters of the theory
    "theory_ve_exp": Choice(processes.ve_exp, {"a": POSITIVE, "b": POSITIVE, **_OFFSET}),
    "theory_ve_const": Choice(processes.ve_const, {"a": POSITIVE, **_OFFSET}),
    "theory_ve_sqrt": Choice(processes.ve_sqrt, {"a": POSITIVE, **_OFFSET}),
    "theory_ve_poly": Choice(
        processes.ve_poly, {"a": POSITIVE, "b": NON_NEGATIVE, "c": NON_NEGATIVE, "k": POSITIVE, **_OFFSET}
    ),
    "theory_ou": Choice(processes.ou, {"al": POSITIVE, "si": POSITIVE, **_HORIZON}),
    "theory_vp_linear": Choice(processes.vp_linear, {"a": NON_NEGATIVE, "b": POSITIVE, **_HORIZON}),
    "theory_vp_poly": Choice(processes.vp_poly, {"a": NON_NEGATIVE, "b": POSITIVE, "rho": NON_NEGATIVE, **_HORIZON}),
    "theory_vp_exp": Choice(processes.vp_exp, {"a": POSITIVE, "b": ANY_NUMBER, **_HORIZON}),
    "theory_sub_vp": Choice(processes.sub_vp, {"a": NON_NEGATIVE, "b": POSITIVE, **_HORIZON}),
}
_NET = {"dropout": FRACTION, "dtype": DTYPE}
MODELS = {
    "mlp": Choice(ResidualMLP, {"width": COUNT, "depth": COUNT, **_NET}),
    "unet": Choice(
        UNet,
        {
            **dict.fromkeys(("channels", "blocks", "num_heads"), COUNT),
            **dict.fromkeys(("multipliers", "attention"), COUNTS),
            "remat": FLAG,
            **_NET,
        },
    ),
}
_PLUS = {
    **dict.fromkeys(("channels", "blocks"), COUNT),
    **dict.fromkeys(("multipliers", "attention"), COUNTS),
    "remat": FLAG,
    **_NET,
}
MODELS |= {make.__name__: Choice(make, _PLUS) for make in (plus.ddpmpp, plus.ncsnpp, plus.adm)}
CONVOLUTIONAL = ("unet", "ddpmpp", "ncsnpp", "adm")  # networks of images, which halve them once less than multipliers
PREDICTIONS = {
    "noise": score.NOISE,
    "x0": score.X0,
    "v": score.V,
    "flow": score.FLOW,
    "score": score.SCORE,
    "edm": score.EDM,
}
# Powers of sigma in the energy of a constrained score.
ENERGIES = {"none": None, "paper": 1, "code": -1, "noise": 2}
WEIGHTS = {
    "noise": Choice(lambda: weights.noise_weight),
    "likelihood": Choice(lambda: weights.likelihood_weight),
    "diffusion": Choice(lambda: weights.diffusion_weight),
    "edm": Choice(lambda sigma_data=0.5: weights.edm_weight(sigma_data), {"sigma_data": POSITIVE}),
    # on the noise error: min(snr, gamma) / snr (Hang et al. 2023), and a sigmoid (Kingma, Gao 2023)
    "min_snr": Choice(
        lambda gamma=5.0: weights.snr_weight(lambda s: jnp.minimum(1.0, gamma * jnp.exp(-s))), {"gamma": POSITIVE}
    ),
    "sigmoid": Choice(lambda bias=0.0: weights.snr_weight(lambda s: jax.nn.sigmoid(bias - s)), {"bias": ANY_NUMBER}),
}


def _first_order() -> Callable:
    return lambda step: dsm.dsm


def _high_order(
    order: int = 2, method: str = "projected", weighted: bool = True, begin: int = 0, ramp: int = 0, **given
) -> Callable:
    shares = {}
    for name, published in high_order.PUBLISHED.items():
        suffix = name.removeprefix("order")
        coefficient = given.get(f"coefficient{suffix}", published.coefficient)
        shares[name] = high_order.Share(coefficient, given.get(f"power{suffix}", published.power))
    options = {"order": order, "method": METHODS[method], "shares": shares, "weighted": weighted}

    def loss_at(step):
        amount = 1.0 if step is None else jnp.clip((step + 1.0 - begin) / max(ramp, 1), 0.0, 1.0)
        return functools.partial(high_order.high_order, amount=amount, **options)

    return loss_at


def _quasi_conservative(
    coefficient: float = 1e-4,
    form: str = "b",
    law: str = "rademacher",
    num: int = 1,
    weight: str = "noise",
    every: int = 1,
    part: float = 1.0,
) -> Callable:
    chosen = conservative.Probes(PROBES[law], num, FORMS[form])
    options = {"probes": chosen, "weight": WEIGHTS[weight].make(), "part": part}

    def penalty_at(step):
        def also(*args):
            run = lambda scale: conservative.quasi_conservative(*args, coefficient=scale, **options)
            if step is None or every == 1:
                return run(coefficient)
            nothing = lambda: {"asym": jnp.zeros_like(args[4])}  # [B], like t
            return jax.lax.cond(step % every == 0, lambda: run(every * coefficient), nothing)

        return also

    return penalty_at


FORMS = {"a1": divergence.a1, "a2": divergence.a2, "b": divergence.b}
PROBES = {
    "rademacher": divergence.rademacher,
    "gaussian": divergence.gaussian,
    "sphere": divergence.sphere,
    "exact": None,
}
# Each makes step (None: after all steps) -> terms that a loss adds at its noised data, or None.
PENALTIES = {
    "none": Choice(lambda: lambda step: None),
    "quasi_conservative": Choice(
        _quasi_conservative,
        {
            "coefficient": NON_NEGATIVE,
            "form": one_of(*FORMS),
            "law": one_of(*PROBES),
            "num": COUNT,
            "weight": one_of("noise", "likelihood"),
            "every": COUNT,
            "part": Check(float, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
        },
    ),
}
METHODS = {"projected": high_order.projected, "exact": high_order.exact, "trace": high_order.trace}
# Each makes step (None: after all steps) -> the loss, which takes the weight.
LOSSES = {
    "first_order": Choice(_first_order),
    "high_order": Choice(
        _high_order,
        {
            "order": Check(int, lambda v: v in (2, 3), "2 or 3"),
            "method": one_of(*METHODS),
            **dict.fromkeys(("coefficient2", "coefficient2_trace", "coefficient3"), NON_NEGATIVE),
            **dict.fromkeys(("power2", "power2_trace", "power3", "begin", "ramp"), COUNT_OR_0),
            "weighted": FLAG,
        },
    ),
}
TIMES = {
    "uniform": Choice(lambda: times.uniform),
    "stratified": Choice(lambda: times.stratified),
    "importance": Choice(lambda: times.importance),
    "velocity": Choice(lambda: times.velocity),
    "normal_likelihood": Choice(lambda: times.normal_likelihood),
    "normal_unweighted": Choice(lambda: times.normal_unweighted),
    "variance_uniform": Choice(lambda: times.variance_uniform),
    "log_normal": Choice(
        lambda **options: functools.partial(times.log_normal, **options), {"mean": ANY_NUMBER, "std": POSITIVE}
    ),
}
GRIDS = {
    "uniform": Choice(lambda: grids.uniform),
    "log_snr": Choice(lambda: grids.log_snr),
    "karras": Choice(functools.partial(functools.partial, grids.karras), {"rho": POSITIVE}),
}
TRANSITIONS = {
    "exponential": transitions.exponential_sde,
    "euler_maruyama": transitions.euler_maruyama,
    "reverse_diffusion": transitions.reverse_diffusion,
    "conditional_mean": transitions.conditional_mean,
    "ancestral": transitions.ancestral,
    "exponential_ode": transitions.exponential_ode,
    "euler_ode": transitions.euler_ode,
    "ddim": transitions.ddim,
}
_DENOISE = {"denoise": FLAG}
SAMPLERS = {
    **{
        name: Choice(functools.partial(functools.partial, affine.affine, transition=transition), _DENOISE)
        for name, transition in TRANSITIONS.items()
    },
    "predictor_corrector": Choice(
        lambda predictor="reverse_diffusion", **options: functools.partial(
            affine.predictor_corrector, transition=TRANSITIONS[predictor], **options
        ),
        {"predictor": one_of(*TRANSITIONS), "corrector_steps": COUNT_OR_0, "snr": POSITIVE, **_DENOISE},
    ),
    "heun": Choice(functools.partial(functools.partial, ode.heun), _DENOISE),
    "dpm_solver_pp_2m": Choice(functools.partial(functools.partial, ode.dpm_solver_pp_2m), _DENOISE),
}
ADAPTIVE = {"adaptive": {"rtol": POSITIVE, "atol": POSITIVE, "max_steps": COUNT, **_DENOISE}}
# What learns the noise of `variational`: makes a network, or nothing.
FLOWS = {
    "none": Choice(lambda: None),
    "couplings": Choice(
        lambda **options: dequantiser.dequantiser(dequantiser.DequantisingFlow(**options)),
        {
            **dict.fromkeys(("couplings", "channels", "blocks", "components", "context"), COUNT),
            "num_heads": COUNT_OR_0,
        },
    ),
}
COVARIANCES = {
    "isotropic": lambda rank: mixture.ISOTROPIC,
    "diagonal": lambda rank: mixture.DIAGONAL,
    "low_rank": mixture.low_rank,
    "full": lambda rank: mixture.FULL,
}
_FITTED_TO = {"fitted_to": one_of("data", "end")}


def _mixture(components: int = 1, covariance: str = "full", rank: int = 16, fitted_to: str = "data") -> families.Family:
    return families.gaussian_mixture(components, COVARIANCES[covariance](rank), transport=fitted_to == "data")


def _dirichlet(components: int = 20, fitted_to: str = "end") -> families.Family:
    return families.dirichlet(components, transport=fitted_to == "data")


# What is assumed about x_T: each makes a `families.Family`; pushforward is given the samples, not their file.
TERMINALS = {
    "prior": Choice(families.prior),
    "mixture": Choice(
        _mixture,
        {
            "components": COUNT,
            "covariance": one_of(*COVARIANCES),
            "rank": COUNT,
            **_FITTED_TO,
        },
    ),
    "dirichlet": Choice(_dirichlet, {"components": COUNT, **_FITTED_TO}),
    "glow": Choice(families.glow, {**dict.fromkeys(("levels", "steps", "width"), COUNT), "learning_rate": POSITIVE}),
    "pushforward": Choice(families.pushforward, {"path": TEXT}),
}
UNFITTED, BY_GRADIENT = ("prior", "pushforward"), ("glow",)  # terminal laws without parameters; learnt with the score


def _hierarchical(**options) -> Callable:
    def make(outputs, shape):
        return HierarchicalVAE(outputs=outputs, side=shape[0] + 2 * options.get("pad", 0), **options)

    return make


_CELLS = {**dict.fromkeys(("channels", "latents"), COUNT), "multipliers": COUNTS, "dtype": DTYPE}
# Each makes (numbers of the decoder for each pixel, shape of an example) -> a module for `models.vae.vae`.
VAES = {
    "none": Choice(lambda: None),
    "conv": Choice(
        lambda **options: lambda outputs, shape: ConvVAE(outputs=outputs, **options), {"blocks": COUNT, **_CELLS}
    ),
    "mlp": Choice(
        lambda **options: lambda outputs, shape: MLPVAE(outputs=outputs, shape=shape[:-1], **options),
        {**dict.fromkeys(("width", "depth", "latents"), COUNT), "dtype": DTYPE},
    ),
    "hierarchical": Choice(
        _hierarchical,
        {
            **dict.fromkeys(("scales", "per_scale", "cells", "outer_cells"), COUNT),
            "inverted": FLAG,
            "pad": COUNT_OR_0,
            **_CELLS,
        },
    ),
}
# Each makes levels -> `decoders.Decoder`.
DECODERS = {
    "none": Choice(lambda: None),
    "bernoulli": Choice(lambda: lambda levels: decoders.bernoulli()),
    "categorical": Choice(lambda: decoders.categorical),
    "logistic_mixture": Choice(
        lambda **options: functools.partial(decoders.logistic_mixture, **options), {"components": COUNT}
    ),
}
_OF_VAE = {
    "coefficient_min": NON_NEGATIVE,
    "coefficient_max": POSITIVE,
    **dict.fromkeys(("hold", "ramp"), COUNT_OR_0),
    "closed_entropy": FLAG,
    "spectral_weight": NON_NEGATIVE,
}
_CHANNELS = {"drop_inactive": FLAG}
# What is learnt of a model in latent space; each makes a `latents.Latent`.
LATENTS = {
    "none": Choice(lambda: None),
    "alone": Choice(latents.alone, {"balance": FLAG, **_OF_VAE}),
    "joint": Choice(
        latents.joint,
        {
            "algorithm": Check(int, lambda v: v in (1, 2, 3), "1, 2 or 3"),
            "spectral_score": NON_NEGATIVE,
            **_OF_VAE,
            **dict.fromkeys(("learning_rate", "eps"), POSITIVE),
            **dict.fromkeys(("learning_rate_end", "weight_decay"), NON_NEGATIVE),
            **_CHANNELS,
        },
    ),
    "frozen": Choice(latents.frozen, _CHANNELS),
}
DEQUANTISERS = {
    "uniform": dequantise.uniform,
    "truncated_normal": dequantise.truncated_normal,  # of evaluation alone
    "variational": dequantise.variational,  # of evaluation alone, by a flow that was trained
    "none": dequantise.center,  # of training alone
}
DIVERGENCES = {"hutchinson": divergence.hutchinson, "exact": divergence.exact}
# Each makes (experiment, TrainPlan, feature function, samples, cache folder) -> a measure of averaged parameters, of
# which the lower is the better.
MEASURES = {
    "validation": lambda experiment, plan, *rest: train.validator(experiment, plan),
    "frechet": lambda experiment, plan, extractor, num, cache_dir: samples.distance(
        experiment, extractor, num, plan.sample_batch, cache_dir
    ),
}
FEATURES = ("digits", "pixels", "inception")


def _betas(plan) -> dict:
    return {"b1": plan.beta1, "b2": plan.beta2, "eps": plan.eps}


OPTIMIZERS = {
    "adam": lambda rate, plan: optax.adam(rate, **_betas(plan)),
    "adamw": lambda rate, plan: optax.adamw(rate, weight_decay=plan.weight_decay, **_betas(plan)),
    "adamax": lambda rate, plan: optax.adamaxw(rate, weight_decay=plan.weight_decay, **_betas(plan)),
}
MASKS = {
    "none": None,
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "right": (0.0, 1.0, 0.5, 1.0),
    "center": (0.25, 0.75, 0.25, 0.75),
}

# Data whose law under noise is known: (x [d], alpha, sigma) -> log-density.
LOG_DENSITIES = {
    **{name: exact.mixture_log_density(exact.Mixture(*law)) for name, law in toy.MIXTURES.items()},
    "checkerboard": exact.checkerboard_log_density,
}
