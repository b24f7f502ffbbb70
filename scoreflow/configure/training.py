"""How to train: the optimizer of every part of the parameters, and where a run begins."""

import functools
from pathlib import Path

import optax

from scoreflow.configure.latents import Rates
from scoreflow.configure.plans import extractor
from scoreflow.configure.tables import BY_GRADIENT, LATENTS, MEASURES, OPTIMIZERS, UNFITTED
from scoreflow.configure.values import make
from scoreflow.models import DEQUANTISER, LATENT, MAIN, MIXING, TERMINAL
from scoreflow.runs import caches
from scoreflow.train import TrainPlan

# What a part that is learnt on top of a finished score model must have in common with it; but its horizon may be
# shorter, since the network knows times by their log-SNR.
_OF_A_VAE = ("vae.", "decoder.", "data.name", "data.binarized", "data.bits", "data.levels")
_OF_A_SCORE = (*_OF_A_VAE, "process.", "score.", "model.", "t_min", "data.centered", "data.conditional")


def _cosine(plan, rate: float, end: float) -> optax.Schedule:
    """Warm-up, then a cosine to `end` at the last step."""
    steps = max(plan.steps, plan.warmup + 1)
    return optax.warmup_cosine_decay_schedule(0.0 if plan.warmup else rate, rate, plan.warmup, steps, end)


def _schedule(plan) -> optax.Schedule | float:
    """That of the score: a cosine, or warm-up and a constant rate."""
    if plan.schedule == "cosine":
        return _cosine(plan, plan.learning_rate, plan.learning_rate_end)
    return optax.linear_schedule(0.0, plan.learning_rate, plan.warmup) if plan.warmup else plan.learning_rate


def _of_vae(plan, rates: Rates) -> optax.GradientTransformation:
    schedule = _cosine(plan, rates.learning_rate, rates.learning_rate_end)
    return optax.adamw(schedule, eps=rates.eps, weight_decay=rates.weight_decay)


def optimizer(config) -> optax.GradientTransformation:
    """Clipping by global norm and the configured rule for the score, with what each of the other parts needs."""
    plan, latent = config.training, make(LATENTS, config.latent)
    clip = optax.clip_by_global_norm(plan.clip) if plan.clip else optax.identity()
    chain = optax.chain(clip, OPTIMIZERS[plan.optimizer](_schedule(plan), plan))
    if latent is not None and not latent.prior:
        return chain
    # the flow as it was published
    flow_rate = optax.linear_schedule(0.0, config.terminal.get("learning_rate", 1e-3), 100)
    rules = {"learn": chain, "hold": optax.set_to_zero()}
    score = "learn" if plan.learn == "all" and config.dequantiser.name == "none" else "hold"
    labels = {MAIN: score}
    if config.score.mixed:
        labels[MIXING] = {"logits": score, "active": "hold"}
    if config.dequantiser.name != "none":
        labels[DEQUANTISER] = "learn"
    if config.terminal.name not in UNFITTED:
        labels[TERMINAL] = "flow" if config.terminal.name in BY_GRADIENT else "hold"
        rules["flow"] = optax.chain(optax.clip_by_global_norm(50.0), optax.adamax(flow_rate))
    if latent is not None:
        labels[LATENT] = "vae" if latent.rates is not None and plan.learn == "all" else "hold"
        rules["vae"] = _of_vae(plan, latent.rates or Rates())
    return chain if labels.keys() == {MAIN} else optax.partition(rules, labels)


def _must_be_same(config) -> tuple[str, ...]:
    """Settings that this run must share with the one it begins with."""
    if config.training.learn == "terminal" or config.dequantiser.name != "none" or config.terminal.name not in UNFITTED:
        return _OF_A_SCORE
    return _OF_A_VAE if config.latent.name != "none" else ()


def train_plan(config) -> TrainPlan:
    """How to train."""
    plan = config.training
    made = TrainPlan(
        steps=plan.steps,
        batch_size=plan.batch_size,
        grad_accum=plan.grad_accum,
        skip=plan.skip,
        init_from=Path(config.init_from) if config.init_from else None,
        init_same=_must_be_same(config),
        steps_per_dispatch=plan.steps_per_dispatch,
        optimizer=optimizer(config),
        ema_decay=plan.ema_decay,
        followed=(LATENT,),
        flip=config.data.flip,
        log_every=plan.log_every,
        validate_every=plan.validate_every,
        checkpoint_every=plan.checkpoint_every,
        sample_every=plan.sample_every,
        keep=plan.keep,
        best={},
        num_samples=min(config.sampling.num, 400),
        sample_batch=config.sampling.batch_size,
        fsdp=config.training.fsdp,
    )

    def measure(name, experiment):
        features = extractor(config, experiment.data, caches.folder())
        return MEASURES[name](experiment, made, features, config.eval.num_samples, caches.folder())

    return made._replace(best={name: functools.partial(measure, name) for name in plan.best})
