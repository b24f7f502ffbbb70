"""From a config to the parts of an experiment: the only reader of ConfigDict.

`values` says what a setting's value must be, `tables` what can be chosen and `sections` where; `checks` refuses what
cannot work; `objectives` and `latents` are what training minimises, `training` how; this file puts the parts together.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scoreflow import dequantise, experiment, latent, metrics, parallel, score, sdes, transitions
from scoreflow.build import latents
from scoreflow.build.checks import check, check_process, check_shape, check_source
from scoreflow.build.objectives import encoder, of_noise, of_score, with_terminal
from scoreflow.build.tables import (
    ADAPTIVE,
    DECODERS,
    DEQUANTISERS,
    DIVERGENCES,
    ENERGIES,
    FLOWS,
    GRIDS,
    LATENTS,
    LOG_DENSITIES,
    MASKS,
    MODELS,
    PARAMETERISATIONS,
    PROCESSES,
    SAMPLERS,
    TERMINALS,
    TIMES,
    TRANSITIONS,
    VAES,
    WEIGHTS,
)
from scoreflow.build.training import optimiser as optimiser
from scoreflow.build.training import train_plan as train_plan
from scoreflow.build.values import make
from scoreflow.data import Source, load
from scoreflow.data.fetch import default_dir
from scoreflow.evaluate import EvalPlan
from scoreflow.losses import latent as latent_losses
from scoreflow.metrics import digits as digit_metrics
from scoreflow.models import (
    DEQUANTISER,
    LATENT,
    MIXING,
    TERMINAL,
    Network,
    Other,
    beside,
    layers,
    mixing,
    network,
    only,
)
from scoreflow.models.vae import vae
from scoreflow.plan import PlanPlan
from scoreflow.sample import SamplePlan
from scoreflow.samplers import adaptive, grids, guide
from scoreflow.terminal import families

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


def space(config, found: Source) -> latent.Space | None:
    """The latent space, where there is one."""
    if config.vae.name == "none":
        return None
    count = 2 if config.data.binarised else 2**config.data.bits if config.data.bits else found.levels
    decoder = make(DECODERS, config.decoder)(count)
    options = {key: value for key, value in config.vae.items() if key != "name"}
    if "dtype" in options:
        options["dtype"] = jnp.bfloat16 if options["dtype"] == "bfloat16" else None
    module = VAES[config.vae.name].make(**options)(decoder.outputs(found.shape[-1]), found.shape)
    return latent.space(vae(module), decoder, latent.Levels(found.levels, count, config.data.binarised), found.shape)


def bins(config, found: Source, within: latent.Space | None = None) -> dequantise.Bins | None:
    """Where the levels of integer data lie; None for continuous data, and for data in latent space with two levels.

    A decoder gives probabilities of levels, so that there a bin has size 1, and what is measured of two levels is nats.
    """
    if within is not None:
        count = within.levels.count
        return dequantise.Bins(count, 0.0, float(count)) if count > 2 else None
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
        return families.pushforward(encode(None, jax.random.key(config.seed), pool))
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


def _score(config, forward: sdes.Process, net: Network) -> tuple[Callable, Callable | None]:
    """`score` and `energy` of an `Experiment`."""
    kind, data_rms = PARAMETERISATIONS[config.score.kind], config.score.data_rms

    def of_network(params, *, train=False, key=None):
        apply = functools.partial(net.apply, train=True, key=key) if train else net.apply
        if not config.score.mixed:
            return score.score_fn(forward, apply, params, kind, data_rms=data_rms)
        active = jax.lax.stop_gradient(params[MIXING]["active"])

        def seen(params, x, log_snr, cond=None):
            return apply(params, x * active.reshape((1,) * (x.ndim - 1) + active.shape), log_snr, cond)

        return score.mixed(
            forward, score.score_fn(forward, seen, params, kind, data_rms=data_rms), params[MIXING]["logits"]
        )

    if net.apply is None:
        return (lambda params, **options: score.normal(forward)), None
    if (power := ENERGIES[config.score.energy]) is None:
        return of_network, None
    energy = lambda params, **options: score.energy_fn(forward, of_network(params, **options), power)
    return (lambda params, **options: score.constrained(energy(params, **options))), energy


def _networks(config, found: Source, within: latent.Space | None, law: families.Family) -> Network:
    """The network with everything that has parameters beside it."""
    chosen = make(LATENTS, config.latent)
    if chosen is not None and not chosen.prior:
        return only(LATENT, within.init)
    others = {
        DEQUANTISER: make(FLOWS, config.dequantiser),
        TERMINAL: law if law.init else None,
        MIXING: mixing(config.score.mixed_logit) if config.score.mixed else None,
        LATENT: within and Other(lambda key, x_shape: within.init(key)),
    }
    others = {name: part for name, part in others.items() if part is not None}
    return beside(model(config, found), **others) if others else model(config, found)


def _objective(config, found: Source, forward: sdes.Process, score_of: Callable, encode: Callable, within, grid):
    """What is minimised, without a terminal law's part."""
    if config.dequantiser.name != "none":
        return of_noise(config, forward, score_of, grid)
    on_score = of_score(config, forward, score_of, encode, found)
    if within is None:
        return on_score
    parts = latents.Parts(
        space=within,
        process=forward,
        score_of=score_of,
        t_min=config.t_min,
        weight=make(WEIGHTS, config.weight),
        law=make(TIMES, config.times),
        of_score=on_score,
    )
    return make(LATENTS, config.latent).objective(parts)


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
    within = space(config, found)
    shape = within.shape if within else found.shape
    check_shape(config, found, shape)
    grid = bins(config, found, within)
    encode = latents.encoder(within) if within else encoder(config, grid)
    law = family(config, found, encode)
    net = _networks(config, found, within, law)
    score_of, energy = _score(config, forward, net)
    objective = _objective(config, found, forward, score_of, encode, within, grid)
    if law.loss:
        objective = with_terminal(config, forward, objective, encode, law.loss)
    part = (lambda params: params[TERMINAL]) if law.init else (lambda params: None)
    sampler, per_device = _sampler(config, forward)
    if within:
        decode = lambda params, key, x: within.show(params[LATENT], key, x)
    else:
        decode = lambda params, key, x: dequantise.quantise(x, grid) if grid else x
    return experiment.Experiment(
        name=name,
        seed=config.seed,
        source=found,
        shape=shape,
        process=forward,
        t_min=config.t_min,
        terminal=lambda params: law.law(part(params), forward, forward.horizon),
        terminal_at=(lambda params, t: law.law(part(params), forward, t)) if law.anywhere else None,
        fits=_fits(config, found, forward, encode, within, law),
        network=net,
        conditional=config.data.conditional,
        score=score_of,
        energy=energy,
        latent=within,
        encode=encode,
        decode=decode,
        bins=grid,
        log_density=LOG_DENSITIES.get(config.data.name),
        objective=objective,
        sampler=sampler,
        per_device=per_device,
        config=config.to_dict(),
    )


def _fits(config, found: Source, forward: sdes.Process, encode: Callable, within, law: families.Family) -> dict:
    """`fits` of an `Experiment`."""
    rows, fits = found.train.x[:_FITTED], {}
    if law.fit:

        def fit_law(params, key):
            clean = lambda key: latents.in_batches(encode, params, key, rows)
            return law.fit(key, clean=clean, process=forward)

        fits[TERMINAL] = fit_law
    chosen = make(LATENTS, config.latent)
    if chosen is not None and chosen.drop_inactive:
        fits[MIXING] = functools.partial(latents.silence, within, rows)
    return fits


def _encoded(config, within: latent.Space) -> Callable:
    """(params, key, levels [N, ...]) -> Dequantised: latents, and what the bound of a VAE adds to their density.

    What is read of binary data is the same at every call, so that draws are of one example's posterior.
    """
    key_read, size = jax.random.fold_in(jax.random.key(config.seed), experiment.READ), config.eval.batch_size

    @parallel.jit
    def run(params, key, data):
        def one(inputs):
            key, x = inputs
            view = within.infer(params[LATENT], key, x[None])
            log_q = latent_losses.example_sums(view.top.log_q) + view.lower_kl.sum(1) + view.reconstruction
            return dequantise.Dequantised(view.top.z[0], log_q[0])

        x = within.levels.read(key_read, data)
        return jax.lax.map(one, (jax.random.split(key, len(x)), x), batch_size=min(size, len(x)))

    return run


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
    within = space(config, found)
    dequantiser = _encoded(config, within) if within else _dequantiser(config, found) if found.levels else None
    extractors = {
        "digits": lambda: digit_metrics.classifier(found.train, found.levels, cache_dir),
        "pixels": lambda: metrics.Extractor("pixels", metrics.pixels),
    }
    return EvalPlan(
        num_test=min(plan.num_test, len(found.test.x)),
        draws=plan.draws,
        batch_size=plan.batch_size if plan.likelihood else 0,
        dequantise=dequantiser,
        start=plan.t_min or config.t_min,
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
