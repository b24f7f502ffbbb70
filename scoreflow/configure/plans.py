"""How to evaluate, to sample and to plan."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from scoreflow import dequantise, experiment, metrics
from scoreflow.configure.parts import bins, process, space
from scoreflow.configure.tables import (
    ADAPTIVE,
    DEQUANTISERS,
    DIVERGENCES,
    FLOWS,
    GRIDS,
    MASKS,
    PROCESSES,
    SAMPLERS,
    TRANSITIONS,
)
from scoreflow.configure.values import make
from scoreflow.data import Source
from scoreflow.data.fetch import default_dir
from scoreflow.evaluators import EvalPlan
from scoreflow.latent import space as latent
from scoreflow.metrics import digits as digit_metrics
from scoreflow.metrics import inception
from scoreflow.models import DEQUANTISER, LATENT
from scoreflow.objectives import latent as latent_losses
from scoreflow.planner import PlanPlan
from scoreflow.processes import sdes, transitions
from scoreflow.runs import parallel
from scoreflow.runs.partial import NONE
from scoreflow.sample import SamplePlan
from scoreflow.samplers import adaptive, grids, guide


def sampler(config, forward: sdes.Process) -> tuple[Callable, bool]:
    """`sampler` and `per_device` of an `Experiment`."""
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


def start_of(config) -> float:
    """Time at which the likelihood's ODE begins."""
    return config.eval.t_min or config.t_min


def _encoded(config, within: latent.Space) -> Callable:
    """(params, key, levels [N, ...]) -> Dequantised: latents, and what the bound of a VAE adds to their density.

    What is read of binary data is the same at every call, so that draws are of one example's posterior.
    """
    key_read = jax.random.fold_in(jax.random.key(config.seed), experiment.READ)

    def rule(params, key, x):
        view = within.infer(params[LATENT], key, x)
        log_q = latent_losses.example_sums(view.top.log_q) + view.lower_kl.sum(1) + view.reconstruction
        return dequantise.Dequantised(view.top.z, log_q)

    run = _one_by_one(rule, config.eval.batch_size)
    return lambda params, key, data: run(params, key, within.levels.read(key_read, data))


def _one_by_one(rule: Callable, size: int) -> Callable:
    """rule(params, key, x [1, ...]) over x [N, ...] with a key each, `size` at a time, which a network needs."""

    @parallel.jit
    def run(params, key, x):
        def one(inputs):
            key, x = inputs
            return jax.tree.map(lambda leaf: leaf[0], rule(params, key, x[None]))

        return jax.lax.map(one, (jax.random.split(key, len(x)), x), batch_size=min(size, len(x)))

    return run


def _dequantiser(config, found: Source) -> Callable:
    """(params, key, levels [N, ...]) -> Dequantised."""
    rule, grid = DEQUANTISERS[config.eval.dequantization], bins(config, found)
    if rule is dequantise.truncated_normal:  # at the time where the likelihood begins
        forward = process(config)
        alpha, sigma = (float(at(start_of(config))) for at in (forward.alpha, forward.sigma))
        rule = functools.partial(rule, alpha=alpha, sigma=sigma)
    if rule is not dequantise.variational:
        return lambda params, key, image: rule(key, image, grid)
    flow = make(FLOWS, config.dequantiser)

    def by_flow(params, key, image):
        return rule(key, image, grid, flow=functools.partial(flow.apply, params[DEQUANTISER]))

    return _one_by_one(by_flow, config.eval.batch_size)


def eval_plan(config, found: Source, cache_dir: Path) -> EvalPlan:
    """How to evaluate; `cache_dir` is where fitted feature networks are kept."""
    plan = config.eval
    within = space(config, found)
    dequantiser = _encoded(config, within) if within else _dequantiser(config, found) if found.levels else None
    return EvalPlan(
        best="" if config.checkpoint == "newest" else config.checkpoint,
        num_test=min(plan.num_test, len(found.test.x)),
        draws=plan.draws,
        batch_size=plan.batch_size if plan.likelihood else 0,
        dequantise=dequantiser,
        start=start_of(config),
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
        cache_dir=cache_dir,
        extractor=extractor(config, found, cache_dir),
        neighbors=plan.neighbors,
        pieces=NONE,
    )


def extractor(config, found: Source, cache_dir: Path) -> Callable:
    """() -> the feature function, which may have to be fitted first."""
    weights_dir = Path(config.data.dir).expanduser() if config.data.dir else default_dir()
    rows = {
        "digits": lambda: digit_metrics.classifier(found.train, found.levels, cache_dir),
        "pixels": lambda: metrics.Extractor("pixels", metrics.pixels),
        "inception": lambda: inception.extractor(weights_dir / "downloads", found.levels),
    }
    return rows[config.eval.features]


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
    best = "" if config.checkpoint == "newest" else config.checkpoint
    return SamplePlan(
        config.sampling.num, config.sampling.batch_size, best, config.sampling.label, mask, config.score.sigma_data
    )
