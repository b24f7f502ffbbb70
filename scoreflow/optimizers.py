"""Optimizers: one rule for the score, and what each other group of parameters needs."""

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from scoreflow.models import DEQUANTISER, LATENT, MAIN, MIXING, TERMINAL
from scoreflow.terminal.families import Family
from scoreflow.types import CountOrZero, Fraction, NonNegative, Positive


class OptimizerOptions(NamedTuple):
    """What learns, and the rule by which the score network does.

    Attributes:
      optimizer: Rule of the update.
      learning_rate: Learning rate after warm-up.
      learning_rate_end: Learning rate at the last step of the cosine schedule.
      schedule: Course of the learning rate after warm-up.
      warmup: Steps over which the learning rate grows from 0; fewer than all.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      eps: Number added to the root of the second moment.
      weight_decay: Decoupled weight decay; adam has none.
      clip: Largest global norm of the gradient; 0 for none.
      learn: What is learned: all, or only the terminal distribution, while the score of init_from stays as it is.
    """

    optimizer: Literal["adam", "adamw", "adamax"] = "adamw"
    learning_rate: Positive = 1e-3
    learning_rate_end: NonNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: CountOrZero = 100
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip: NonNegative = 1.0
    learn: Literal["all", "terminal"] = "all"


DEFAULTS = OptimizerOptions()


class VaeRates(NamedTuple):
    """How a VAE learns together with its prior: AdamW with a cosine schedule.

    Attributes:
      learning_rate: Learning rate of the VAE after warm-up.
      learning_rate_end: Learning rate of the VAE at the last step.
      eps: Number added to the root of the VAE's second moment.
      weight_decay: Decoupled weight decay of the VAE.
    """

    learning_rate: Positive = 1e-4
    learning_rate_end: NonNegative = 1e-5
    eps: Positive = 1e-3
    weight_decay: NonNegative = 3e-4


def _cosine(rate: float, end: float, warmup: int, steps: int) -> optax.Schedule:
    """Warm-up, then a cosine to `end` at the last step."""
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, max(steps, warmup + 1), end)


def _schedule(options: OptimizerOptions, steps: int) -> optax.Schedule | float:
    if options.schedule == "cosine":
        return _cosine(options.learning_rate, options.learning_rate_end, options.warmup, steps)
    if options.warmup:
        return optax.linear_schedule(0.0, options.learning_rate, options.warmup)
    return options.learning_rate


def rate_at(step: int, steps: int, options: OptimizerOptions) -> float:
    """The learning rate of a step of `optimizer`."""
    schedule = _schedule(options, steps)
    return float(jnp.asarray(schedule(step) if callable(schedule) else schedule))


def optimizer(steps: int, options: OptimizerOptions = DEFAULTS) -> optax.GradientTransformation:
    """Clipping by global norm, then the rule with its schedule over `steps` steps."""
    rate = _schedule(options, steps)
    betas: dict[str, Any] = {"b1": options.beta1, "b2": options.beta2, "eps": options.eps}
    decayed: dict[str, Any] = betas | {"weight_decay": options.weight_decay}
    rules = {
        "adam": lambda: optax.adam(rate, **betas),
        "adamw": lambda: optax.adamw(rate, **decayed),
        "adamax": lambda: optax.adamaxw(rate, **decayed),
    }
    clip = optax.clip_by_global_norm(options.clip) if options.clip else optax.identity()
    return optax.chain(clip, rules[options.optimizer]())


def flow_optimizer(learning_rate: float) -> optax.GradientTransformation:
    """The rule of a flow as terminal distribution, as published: Adamax, clipped at 50, warmed up over 100 steps."""
    rate = optax.linear_schedule(0.0, learning_rate, 100)
    return optax.chain(optax.clip_by_global_norm(50.0), optax.adamax(rate))


def vae_rate_at(step: int, steps: int, rates: VaeRates, warmup: int) -> float:
    """The learning rate of a step of `vae_optimizer`."""
    return float(jnp.asarray(_cosine(rates.learning_rate, rates.learning_rate_end, warmup, steps)(step)))


def vae_optimizer(rates: VaeRates, warmup: int, steps: int) -> optax.GradientTransformation:
    """The rule of a VAE that learns together with its prior."""
    schedule = _cosine(rates.learning_rate, rates.learning_rate_end, warmup, steps)
    return optax.adamw(schedule, eps=rates.eps, weight_decay=rates.weight_decay)


def grouped(
    steps: int,
    options: OptimizerOptions = DEFAULTS,
    *,
    groups: tuple[str, ...] = (),
    family: Family | None = None,
    rates: VaeRates | None = None,
) -> optax.GradientTransformation:
    """One rule for every group of parameters.

    The score network learns by the rule of `optimizer`, and so do its shares where it is mixed with N(0, I). They stay
    as they are where `options.learn` is `terminal`, and where there is a dequantizing flow, which learns by that rule.

    Args:
      steps: of training.
      options: the rule; the warm-up of the VAE's schedule is the same.
      groups: names at the top of the parameter tree, as in `models.Network`; without that of a score network, one rule
        is for all parameters.
      family: the kind of terminal distribution, where it has parameters: they learn if it has a loss, and are fitted
        before training otherwise.
      rates: how a VAE learns; None where it stays as it is.
    """
    rule = optimizer(steps, options)
    if MAIN not in groups:
        return rule
    rules: dict[Hashable, optax.GradientTransformation] = {"learn": rule, "hold": optax.set_to_zero()}
    score = "learn" if options.learn == "all" and DEQUANTISER not in groups else "hold"
    labels: dict[str, Any] = {MAIN: score, MIXING: {"logits": score, "active": "hold"}, DEQUANTISER: "learn"}
    if TERMINAL in groups and family is not None:
        labels[TERMINAL] = "hold" if family.loss is None else "flow"
        rules["flow"] = flow_optimizer(family.learning_rate or 1e-3)
    if LATENT in groups:
        labels[LATENT] = "hold" if rates is None or options.learn != "all" else "vae"
        rules["vae"] = vae_optimizer(rates or VaeRates(), options.warmup, steps)
    return optax.partition(rules, {group: labels[group] for group in groups})
