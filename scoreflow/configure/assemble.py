"""From a complete config to an experiment and to the options of each mode: every line here picks and passes on."""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoreflow import begin, fits, likelihood, planner, sample, space, terminal, train
from scoreflow.configure import checks
from scoreflow.configure.catalogue import CATALOGUES, EVALUATORS
from scoreflow.configure.overrides import Config, flat_defaults, resolve
from scoreflow.data import Dataset, load, placeholder
from scoreflow.data.fetch import default_dir
from scoreflow.evaluate import Evaluation
from scoreflow.evaluators.context import EvalOptions
from scoreflow.evaluators.features import distance
from scoreflow.experiment import Experiment, Model, ScoreOptions, parameters
from scoreflow.latent.space import latent_space
from scoreflow.models import LATENT, MIXING, TERMINAL, layers, network
from scoreflow.models.dequantiser import NoiseFlow, dequantiser
from scoreflow.models.vae import vae
from scoreflow.objectives import score_matching
from scoreflow.objectives.dequantiser import variational_bound
from scoreflow.objectives.protocols import Objective
from scoreflow.objectives.terminal import with_terminal
from scoreflow.optimizers import OptimizerOptions, VaeRates, grouped
from scoreflow.processes import transitions
from scoreflow.processes.sdes import Process
from scoreflow.runs import caches, files
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids
from scoreflow.samplers.sampler import Sampler, sampler
from scoreflow.settings import values
from scoreflow.terminal.families import Family
from scoreflow.theory.known import LOG_DENSITIES

# What must be the same in the run that training begins with; the horizon may be shorter there, see `WarmStart`.
_SAME_VAE = ("vae.", "decoder.", "data.name", "data.binarized", "data.bits", "data.num_levels")
_SAME_SCORE = (*_SAME_VAE, "process.", "score.", "model.", "t_min", "data.centered", "data.conditional", "augment.")
_NOTHING: Mapping[str, Any] = {}


def _build(config: Config, section: str, **offered: Any) -> Any:
    return CATALOGUES[section].build(config[section], **offered)


def _options(kind: Any, section: Config, **others: Any) -> Any:
    """A NamedTuple of options from a section of the config, and what is no setting."""
    return kind(**values(kind, section), **others)


def _data_dir(config: Config) -> Path:
    return files.local(config.data.dir, "data.dir") if config.data.dir else default_dir()


def check(config: Config) -> Config:
    """The complete config, checked as far as that can be done without the data.

    Raises:
      UserError: for anything in it that cannot work.
    """
    config = resolve(config)
    checks.refuse(checks.together(config))
    _process(config)
    return config


def process(config: Config) -> Process:
    """The forward SDE.

    Raises:
      UserError: where its horizon leaves no signal.
    """
    return _process(resolve(config))


def _process(config: Config) -> Process:
    try:
        built = _build(config, "process")
    except UserError as error:
        raise UserError(f"process.{error}") from None
    checks.refuse(checks.with_process(config, built))
    return built


def dataset(config: Config, known: Mapping[str, Any] = _NOTHING) -> Dataset:
    """The data set, read from where it is, or as far as a run has `known` it where it is not (`placeholder`).

    Raises:
      UserError: where it is missing or damaged, or does not go with the rest of the config.
    """
    config = resolve(config)
    data = placeholder.load_or_placeholder(known, **values(load.load, config.data))
    checks.refuse(checks.with_data(config, data))
    return data._replace(log_density=LOG_DENSITIES.get(config.data.name))


def _loops(config: Config) -> bool:
    """Whether gradients are taken inside a compiled loop, where convolutions get the lowering that is fast there."""
    return config.training.steps_per_dispatch > 1 or config.training.grad_accum > 1


def _space(config: Config, data: Dataset) -> space.Space:
    if config.vae.name == "none":
        return space.pixels(data.shape, data.num_levels, **values(space.pixels, config.data))
    quantiser = space.quantiser(data.num_levels, **values(space.quantiser, config.data))
    decoder = _build(config, "decoder", num_levels=quantiser.count)
    module = _build(config, "vae", outputs=decoder.outputs(data.shape[-1]), shape=data.shape)
    return space.latents(latent_space(vae(module), decoder, quantiser, data.shape))


def _family(config: Config, data: Dataset, where: space.Space) -> Family:
    def read(path: str) -> Any:
        return fits.encoded(where, load.samples(path, data.shape, data.num_levels), config.seed)

    return _build(config, "terminal", read=read, conv=layers.convolution(_loops(config)))


def _flow(config: Config) -> NoiseFlow | None:
    module = _build(config, "dequantizer")
    return None if module is None else dequantiser(module)


def _module(config: Config, data: Dataset, augmentation: Any) -> Any:
    """The score network as a Linen module; None where a VAE is trained alone."""
    if config.latent.name == "alone":
        return None
    conv = layers.convolution(_loops(config) or config.score.energy_power != 0)
    classes = data.num_classes if config.data.conditional else 0
    return _build(config, "model", num_classes=classes, augment_labels=getattr(augmentation, "labels", 0), conv=conv)


def _objective(config: Config, data: Dataset, where: space.Space, model: Model, augmentation: Any) -> Objective:
    labels = score_matching.UNLABELED
    if config.data.conditional:
        labels = score_matching.labels(data.num_classes, **values(score_matching.labels, config.training))
    process, t_min = model.process, config.t_min
    if (flow := _flow(config)) is not None and where.bins is not None:
        bound = likelihood.one_time_bound(process, terminal.prior(process), t_min)
        return variational_bound(bound, model.score, flow, where.bins, labels=labels)
    offered = {"latent": where.latent, "process": process, "score_of": model.score, "t_min": t_min, "labels": labels}
    offered |= {"encode": where.encode, "augmentation": augmentation}
    offered |= {name: _build(config, name) for name in ("weight", "sample_times", "loss", "penalty")}
    objective = _build(config, "latent", **offered)
    if model.family.loss is None:
        return objective
    alone = config.training.learn == "terminal"
    return with_terminal(process, where.encode, model.family.loss, None if alone else objective)


def _sampler(config: Config, process: Process, **offered: Any) -> Sampler:
    usual = CATALOGUES["process"].settings(config.process.name)["horizon"].default
    method, grid, options = _build(config, "sampler"), _build(config, "grid"), values(sampler, config.sampling)
    return sampler(method, process, grid, usual_horizon=usual, denoise=config.sampler.denoise, **options, **offered)


def experiment(config: Config, name: str, known: Mapping[str, Any] = _NOTHING) -> Experiment:
    """Checks a config and makes the experiment.

    Args:
      config: what a config file says; settings it leaves out have their defaults.
      name: the config file as given to the command, for messages.
      known: what the run knows of its data, where samples alone are wanted and these may be missing; see `placeholder`.

    Raises:
      UserError: for anything in it that cannot work, data included.
    """
    config = check(config)
    forward, data = _process(config), dataset(config, known)
    where = _space(config, data)
    for section in (config.score, config.weight):
        if section.get("sigma_data") == "auto":
            section.sigma_data = fits.sigma_data(where, data)
    augmentation = _build(config, "augment", shape=where.shape, bins=where.bins)
    module = _module(config, data, augmentation)
    checks.refuse(checks.with_shape(config, data, where.shape, module))
    family = _family(config, data, where)
    rows, fitted = data.train.x, {}
    if family.fit is not None:
        fitted[TERMINAL] = fits.terminal(family, where, forward, rows)
    if config.latent.get("drop_inactive", False):
        fitted[MIXING] = fits.mask_inactive(where, rows)
    net = parameters(
        None if module is None else network(module),
        mixed_logit=config.score.mixed_logit if config.score.mixed else None,
        family=family,
        flow=_flow(config),
        latent=where.latent,
    )
    options, conditional = _options(ScoreOptions, config.score), config.data.conditional
    model = Model(forward, net, config.t_min, options, family, conditional, fits=fitted)
    return Experiment(
        name=name,
        seed=config.seed,
        data=data,
        space=where,
        model=model,
        objective=_objective(config, data, where, model, augmentation),
        sampler=_sampler(config, forward, gaussian=lambda: fits.gaussian(where, data, conditional)),
        config=config.to_dict(),
    )


def _same(config: Config) -> tuple[str, ...]:
    """Settings that this run must share with the one it begins with."""
    if config.init_parts == "vae":
        return _SAME_VAE
    on_a_score = config.training.learn == "terminal" or config.dequantizer.name != "none"
    if on_a_score or config.terminal.name not in checks.UNFITTED:
        return _SAME_SCORE
    return _SAME_VAE if config.latent.name != "none" else ()


def train_options(config: Config, experiment: Experiment) -> train.TrainOptions:
    """How to train an experiment of this config."""
    config, model = resolve(config), experiment.model
    warm_start = None
    if config.init_from:
        parts = (LATENT,) if config.init_parts == "vae" else ()
        folder, same = files.local(config.init_from, "init_from"), _same(config)
        warm_start = begin.WarmStart(folder, same, flat_defaults(config), parts)
    rates = _options(VaeRates, config.latent) if config.latent.name == "joint" else None
    options = _options(OptimizerOptions, config.training)
    rule = grouped(config.training.steps, options, groups=model.network.groups, family=model.family, rates=rates)
    batch, measured, folders = config.sampling.batch_size, config.eval, (caches.folder(), _data_dir(config))
    frechet = distance(measured.features, measured.num_samples, batch, *folders, measured.reference)
    return _options(
        train.TrainOptions,
        config.training,
        optimizer=rule,
        flip=config.data.flip,
        num_samples=config.sampling.num,
        sample_batch=batch,
        warm_start=warm_start,
        measures={"frechet": frechet},
    )


def evaluation(config: Config, cache_dir: Path | None = None) -> Evaluation:
    """What to evaluate; `cache_dir` is where fitted feature networks are kept, by default the user's cache folder."""
    config = resolve(config)
    offered = {"sample_batch": config.sampling.batch_size, "horizon_times": config.eval.bound_times}
    evaluators = {}
    for name, source in EVALUATORS.items():
        others = {key: value for key, value in offered.items() if key in inspect.signature(source).parameters}
        evaluators[name] = functools.partial(source, **values(source, config.eval), **others)
    return Evaluation(
        options=_options(EvalOptions, config.eval, flow=_flow(config)),
        evaluators=evaluators,
        best=config.checkpoint.removeprefix("newest"),
        cache_dir=cache_dir,
        data_dir=_data_dir(config),
    )


def sample_options(config: Config) -> sample.SampleOptions:
    """What `--mode=sample` makes."""
    config = resolve(config)
    return _options(sample.SampleOptions, config.sampling, best=config.checkpoint.removeprefix("newest"))


def planner_options(config: Config) -> planner.PlannerOptions:
    """What `--mode=plan` compares: the configured process with every named one at its defaults."""
    config = resolve(config)
    predictor = config.sampler.get("predictor", config.sampler.name)
    return _options(
        planner.PlannerOptions,
        config.plan,
        configured=config.process.name.rpartition("/")[2],
        grids={"uniform": grids.uniform, config.grid.name: _build(config, "grid")},
        rule=transitions.TRANSITIONS.get(predictor, transitions.exponential_sde),
        sampler=config.sampler.name,
        t_min=config.sampling.t_min,
    )
