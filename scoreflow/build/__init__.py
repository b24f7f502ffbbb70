"""From a config to the parts of an experiment: the only reader of ConfigDict.

`values` says what a setting's value must be and `tables` what can be chosen, `checks` refuses what cannot work,
`objectives` is what training minimises, and this file puts the parts together.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from scoreflow import dequantise, experiment, metrics, parallel, score, sdes, transitions
from scoreflow.build.checks import check, check_process, check_source
from scoreflow.build.objectives import encoder, of_noise, of_score, with_terminal
from scoreflow.build.tables import (
    ADAPTIVE,
    BY_GRADIENT,
    DEQUANTISERS,
    DIVERGENCES,
    ENERGIES,
    FLOWS,
    GRIDS,
    LOG_DENSITIES,
    MASKS,
    MODELS,
    OPTIMISERS,
    PARAMETERISATIONS,
    PROCESSES,
    SAMPLERS,
    TERMINALS,
    TRANSITIONS,
    UNFITTED,
)
from scoreflow.build.values import make
from scoreflow.data import Source, load
from scoreflow.data.fetch import default_dir
from scoreflow.evaluate import EvalPlan
from scoreflow.metrics import digits as digit_metrics
from scoreflow.models import DEQUANTISER, MAIN, TERMINAL, Network, beside, layers, network
from scoreflow.plan import PlanPlan
from scoreflow.sample import SamplePlan
from scoreflow.samplers import adaptive, grids, guide
from scoreflow.terminal import families
from scoreflow.train import TrainPlan

_FITTED = 50_000  # training examples that a terminal law is fitted to


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
    return config.training.steps_per_dispatch > 1 or config.training.accumulate > 1


def model(config, found: Source) -> Network:
    """The network. Convolutions whose gradient is taken inside a compiled loop, where a constrained score also takes
    one, get the lowering that is fast there."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "dtype")}
    options["dtype"] = jnp.bfloat16 if config.model.dtype == "bfloat16" else None
    options["num_classes"] = found.num_classes if config.data.conditional else 0
    if config.model.name == "unet" and (_loops(config) or config.score.energy != "none"):
        options["conv"] = layers.conv3x3_in_loop
    return network(MODELS[config.model.name].make(**options))


def bins(config, found: Source) -> dequantise.Bins | None:
    """Where the levels of integer data lie; None for continuous data."""
    if not found.levels:
        return None
    return dequantise.Bins(found.levels) if config.data.centred else dequantise.Bins(found.levels, 0.0, 1.0)


def family(config, found: Source, encode: Callable) -> families.Family:
    """The kind of terminal law.

    Raises:
      UserError: where its file of samples is missing or of another shape.
    """
    options = {key: value for key, value in config.terminal.items() if key not in ("name", "learning_rate")}
    if config.terminal.name == "pushforward":
        pool = load.samples(options.get("path", ""), found.shape, found.levels)
        return families.pushforward(encode(jax.random.key(config.seed), pool))
    if config.terminal.name == "glow" and _loops(config):
        options["conv"] = layers.conv3x3_in_loop
    return TERMINALS[config.terminal.name].make(**options)


def _sampler(config, forward: sdes.Process) -> tuple[Callable, bool]:
    options, guidance = config.sampler, config.sampling.guidance

    def guided(score_fn):
        return score_fn if guidance == 1.0 else guide.classifier_free(score_fn, guidance)

    if options.name in ADAPTIVE:
        chosen = {key: value for key, value in options.items() if key != "name"}

        def solve(score_fn, key, x_init, cond, *, trajectory=False):
            return adaptive.adaptive_ode(forward, guided(score_fn), x_init, cond, t_min=config.sampling.t_min, **chosen)

        return solve, True
    run, make_grid = make(SAMPLERS, options), make(GRIDS, config.grid)
    grid = make_grid(forward, steps_to(config), t_min=config.sampling.t_min)

    def draw(score_fn, key, x_init, cond, *, trajectory=False):
        return run(forward, guided(score_fn), key, x_init, grid, cond, trajectory=trajectory)

    return draw, False


def steps_to(config) -> int:
    """Steps of a fixed grid: those configured are for the process's default horizon."""
    if not config.sampling.scale_steps:
        return config.sampling.steps
    usual = inspect.signature(PROCESSES[config.process.name].make).parameters["horizon"].default
    return max(1, round(config.sampling.steps * config.process.horizon / usual))


def build(config: ml_collections.ConfigDict, name: str) -> experiment.Experiment:
    """Checks a config and makes the experiment.

    Args:
      config: see `configs/default.py` for every setting.
      name: the config file as given to the command, for messages.

    Raises:
      UserError: for anything in it that cannot work, data included.
    """
    check(config)
    found, forward = source(config), process(config)
    grid = bins(config, found)
    encode = encoder(config, grid)
    law = family(config, found, encode)

    def clean(key):
        return np.asarray(encode(key, np.asarray(found.train.x[:_FITTED])))

    others = {DEQUANTISER: make(FLOWS, config.dequantiser), TERMINAL: law if law.init else None}
    others = {name: part for name, part in others.items() if part is not None}
    net = beside(model(config, found), **others) if others else model(config, found)
    kind, data_rms = PARAMETERISATIONS[config.score.kind], config.score.data_rms

    def free_score(params, *, train=False, key=None):
        apply = functools.partial(net.apply, train=True, key=key) if train else net.apply
        return score.score_fn(forward, apply, params, kind, data_rms=data_rms)

    energy, score_of = None, free_score
    if (power := ENERGIES[config.score.energy]) is not None:
        energy = lambda params, **options: score.energy_fn(forward, free_score(params, **options), power)
        score_of = lambda params, **options: score.constrained(energy(params, **options))

    if config.dequantiser.name == "none":
        objective = of_score(config, forward, score_of, encode, found)
    else:
        objective = of_noise(config, forward, score_of, grid)
    if law.loss:
        objective = with_terminal(config, forward, objective, encode, law.loss)
    part = (lambda params: params[TERMINAL]) if law.init else (lambda params: None)
    sampler, per_device = _sampler(config, forward)
    return experiment.Experiment(
        name=name,
        seed=config.seed,
        source=found,
        process=forward,
        t_min=config.t_min,
        terminal=lambda params: law.law(part(params), forward, forward.horizon),
        terminal_at=(lambda params, t: law.law(part(params), forward, t)) if law.anywhere else None,
        fit_terminal=functools.partial(law.fit, clean=clean, process=forward) if law.fit else None,
        network=net,
        conditional=config.data.conditional,
        score=score_of,
        energy=energy,
        encode=encode,
        decode=functools.partial(dequantise.quantise, bins=grid) if grid else lambda x: x,
        bins=grid,
        log_density=LOG_DENSITIES.get(config.data.name),
        objective=objective,
        sampler=sampler,
        per_device=per_device,
        config=config.to_dict(),
    )


def optimiser(config) -> optax.GradientTransformation:
    """Clipping by global norm, warm-up, then a cosine to 0 or a constant rate."""
    plan = config.training
    rate, steps = plan.learning_rate, max(plan.steps, plan.warmup + 1)
    if plan.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0 if plan.warmup else rate, rate, plan.warmup, steps)
    else:
        schedule = optax.linear_schedule(0.0, rate, plan.warmup) if plan.warmup else rate
    clip = optax.clip_by_global_norm(plan.clip) if plan.clip else optax.identity()
    chain = optax.chain(clip, OPTIMISERS[plan.optimiser](schedule, plan))
    if config.dequantiser.name != "none":
        return optax.partition({"learn": chain, "hold": optax.set_to_zero()}, {MAIN: "hold", DEQUANTISER: "learn"})
    if config.terminal.name in UNFITTED:
        return chain
    # as the flow was published
    rate = optax.linear_schedule(0.0, config.terminal.get("learning_rate", 1e-3), 100)
    rules = {
        "score": chain if plan.learn == "all" else optax.set_to_zero(),
        "flow": optax.chain(optax.clip_by_global_norm(50.0), optax.adamax(rate)),
        "hold": optax.set_to_zero(),
    }
    return optax.partition(rules, {MAIN: "score", TERMINAL: "flow" if config.terminal.name in BY_GRADIENT else "hold"})


def train_plan(config) -> TrainPlan:
    """How to train."""
    plan = config.training
    return TrainPlan(
        steps=plan.steps,
        batch_size=plan.batch_size,
        accumulate=plan.accumulate,
        skip=plan.skip,
        init_from=Path(config.init_from) if config.init_from else None,
        init_part=MAIN if config.dequantiser.name != "none" or config.terminal.name not in UNFITTED else None,
        steps_per_dispatch=plan.steps_per_dispatch,
        optimiser=optimiser(config),
        ema_decay=plan.ema_decay,
        flip=config.data.flip,
        log_every=plan.log_every,
        validate_every=plan.validate_every,
        checkpoint_every=plan.checkpoint_every,
        sample_every=plan.sample_every,
        keep=plan.keep,
        num_samples=min(config.sampling.num, 400),
        sample_batch=config.sampling.batch_size,
    )


def _dequantiser(config, found: Source) -> Callable:
    """(params, key, levels [N, ...]) -> Dequantised."""
    rule, grid = DEQUANTISERS[config.eval.dequantisation], bins(config, found)
    if rule is dequantise.truncated_normal:  # at the time where the likelihood begins
        forward = process(config)
        alpha, sigma = (float(at(config.t_min)) for at in (forward.alpha, forward.sigma))
        rule = functools.partial(rule, alpha=alpha, sigma=sigma)
    if rule is not dequantise.variational:
        return lambda params, key, image: rule(key, image, grid)
    flow, size = make(FLOWS, config.dequantiser), config.eval.batch_size

    @parallel.jit
    def run(params, key, image):  # in batches, which a network needs and the other rules do not
        def one(inputs):
            key, image = inputs
            sample_flow = functools.partial(flow.apply, params[DEQUANTISER])
            found = rule(key, image[None], grid, flow=sample_flow)
            return jax.tree.map(lambda leaf: leaf[0], found)

        return jax.lax.map(one, (jax.random.split(key, len(image)), image), batch_size=min(size, len(image)))

    return run


def eval_plan(config, found: Source, cache_dir: Path) -> EvalPlan:
    """How to evaluate; `cache_dir` is where fitted feature networks are kept."""
    plan = config.eval
    extractors = {
        "digits": lambda: digit_metrics.classifier(found.train, found.levels, cache_dir),
        "pixels": lambda: metrics.Extractor("pixels", metrics.pixels),
    }
    return EvalPlan(
        num_test=min(plan.num_test, len(found.test.x)),
        draws=plan.draws,
        batch_size=plan.batch_size if plan.likelihood else 0,
        dequantise=_dequantiser(config, found) if found.levels else None,
        divergence=DIVERGENCES[plan.divergence],
        rtol=plan.rtol,
        atol=plan.atol,
        max_steps=plan.max_steps,
        in_log_snr=plan.clock == "log_snr",
        weigh_draws=plan.draws > 1 and plan.divergence == "exact",
        bound_times=plan.bound_times,
        diagnose=plan.diagnose,
        symmetry=plan.symmetry,
        symmetry_times=plan.symmetry_times,
        symmetry_probes=plan.symmetry_probes,
        horizons=plan.horizons,
        score_error=plan.score_error,
        tolerances=plan.tolerances,
        rtols=plan.rtols,
        atols=plan.atols,
        t_min=config.sampling.t_min,
        conditional=config.data.conditional,
        check=plan.check,
        baseline=plan.baseline,
        num_samples=plan.num_samples,
        sample_batch=config.sampling.batch_size,
        extractor=extractors[plan.features],
        neighbours=plan.neighbours,
    )


def planning(config) -> PlanPlan:
    """What `--mode=plan` compares: the configured process with every named one at its default ends."""
    chosen = config.process.name
    named = {name: row.make() for name, row in PROCESSES.items() if not name.startswith("theory_")}
    rule = TRANSITIONS.get(config.sampler.get("predictor", config.sampler.name), transitions.exponential_sde)
    return PlanPlan(
        processes={**named, chosen: process(config)},
        chosen=chosen,
        grids={"uniform": grids.uniform, config.grid.name: make(GRIDS, config.grid)},
        rule=rule,
        t_min=config.sampling.t_min,
        accuracy=config.plan.accuracy,
        score_error=config.plan.score_error,
        steps=tuple(sorted(config.plan.steps)),
        num=config.plan.num,
    )


def sample_plan(config, found: Source) -> SamplePlan:
    """What `--mode=sample` makes."""
    cut = MASKS[config.sampling.inpaint]
    mask = None
    if cut is not None:
        height, width, _ = found.shape
        top, bottom, left, right = (round(f * n) for f, n in zip(cut, (height, height, width, width)))
        mask = np.ones(found.shape, np.float32)
        mask[top:bottom, left:right] = 0.0
    return SamplePlan(
        config.sampling.num, config.sampling.batch_size, config.sampling.label, mask, config.score.data_rms
    )
