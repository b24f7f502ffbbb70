"""From a config to the parts of an experiment. The only reader of ConfigDict, and where every value is checked.

Each kind of part has one literal table: name -> what makes it, and the parameters it takes with what they must be. A new
method is a new row.
"""

import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from scoreflow import dequantise, divergence, experiment, metrics, score, sdes, terminal, times, transitions
from scoreflow.data import Source, load
from scoreflow.data.archives import ARCHIVES
from scoreflow.data.fetch import default_dir
from scoreflow.errors import UserError
from scoreflow.evaluate import EvalPlan
from scoreflow.losses import dsm
from scoreflow.metrics import digits as digit_metrics
from scoreflow.models import Network, layers, network
from scoreflow.models.mlp import ResidualMLP
from scoreflow.models.unet import UNet
from scoreflow.sample import SamplePlan
from scoreflow.samplers import adaptive, affine, grids, guide, ode
from scoreflow.train import TrainPlan

# ----------------------------------------------------------------------------------------------------------------------
# What a value must be.


class Check(NamedTuple):
    """A type, a condition and the condition in words."""

    kind: type
    holds: Callable[[Any], bool]
    words: str


def _one_of(*choices: str) -> Check:
    return Check(str, lambda v: v in choices, "one of " + ", ".join(choices))


POSITIVE = Check(float, lambda v: v > 0, "a number above 0")
NON_NEGATIVE = Check(float, lambda v: v >= 0, "a number, 0 or above")
ANY_NUMBER = Check(float, lambda v: True, "a finite number")
FRACTION = Check(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")
COUNT = Check(int, lambda v: v >= 1, "a whole number, 1 or above")
COUNT_OR_0 = Check(int, lambda v: v >= 0, "a whole number, 0 or above")
INDEX = Check(int, lambda v: v >= -1, "a whole number, 0 or above, or -1")
FLAG = Check(bool, lambda v: True, "True or False")
TEXT = Check(str, lambda v: True, "text")
COUNTS = Check(tuple, lambda v: all(isinstance(x, int) and x > 0 for x in v), "a tuple of whole numbers above 0")
DTYPE = _one_of("float32", "bfloat16")


class Choice(NamedTuple):
    """A row of a table: what makes the part, and its parameters."""

    make: Callable
    parameters: dict[str, Check] = {}


# ----------------------------------------------------------------------------------------------------------------------
# Tables.

_BETAS = {"beta_min": POSITIVE, "beta_max": POSITIVE, "horizon": POSITIVE}
PROCESSES = {
    "vp_linear": Choice(sdes.vp_linear, _BETAS),
    "sub_vp_linear": Choice(sdes.sub_vp_linear, _BETAS),
    "ve_geometric": Choice(sdes.ve_geometric, {"sigma_min": POSITIVE, "sigma_max": POSITIVE, "horizon": POSITIVE}),
}
_NET = {"dropout": FRACTION, "dtype": DTYPE}
MODELS = {
    "mlp": Choice(ResidualMLP, {"width": COUNT, "depth": COUNT, **_NET}),
    "unet": Choice(
        UNet,
        {
            "channels": COUNT,
            "multipliers": COUNTS,
            "blocks": COUNT,
            "attention": COUNTS,
            "num_heads": COUNT,
            **_NET,
        },
    ),
}
PARAMETERISATIONS = {
    "noise": score.NOISE,
    "x0": score.X0,
    "v": score.V,
    "score": score.SCORE,
    "edm": score.EDM,
}
WEIGHTS = {
    "noise": Choice(lambda: dsm.noise_weight),
    "likelihood": Choice(lambda: dsm.likelihood_weight),
    "edm": Choice(dsm.edm_weight, {"data_rms": POSITIVE}),
    # on the noise error: min(snr, gamma) / snr (Hang et al. 2023), and a sigmoid (Kingma, Gao 2023)
    "min_snr": Choice(
        lambda gamma: dsm.snr_weight(lambda s: jnp.minimum(1.0, gamma * jnp.exp(-s))), {"gamma": POSITIVE}
    ),
    "sigmoid": Choice(lambda bias: dsm.snr_weight(lambda s: jax.nn.sigmoid(bias - s)), {"bias": ANY_NUMBER}),
}
TIMES = {
    "uniform": Choice(lambda: times.uniform),
    "stratified": Choice(lambda: times.stratified),
    "importance": Choice(lambda: times.importance),
    "log_normal": Choice(
        lambda mean, std: functools.partial(times.log_normal, mean=mean, std=std), {"mean": ANY_NUMBER, "std": POSITIVE}
    ),
}
GRIDS = {
    "uniform": Choice(lambda: grids.uniform),
    "log_snr": Choice(lambda: grids.log_snr),
    "karras": Choice(lambda rho: functools.partial(grids.karras, rho=rho), {"rho": POSITIVE}),
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
        lambda predictor, **options: functools.partial(
            affine.predictor_corrector, transition=TRANSITIONS[predictor], **options
        ),
        {"predictor": _one_of(*TRANSITIONS), "corrector_steps": COUNT_OR_0, "snr": POSITIVE, **_DENOISE},
    ),
    "heun": Choice(functools.partial(functools.partial, ode.heun), _DENOISE),
    "dpm_solver_pp_2m": Choice(functools.partial(functools.partial, ode.dpm_solver_pp_2m), _DENOISE),
}
ADAPTIVE = {"adaptive": {"rtol": POSITIVE, "atol": POSITIVE, "max_steps": COUNT, **_DENOISE}}
DEQUANTISERS = {"uniform": dequantise.uniform, "none": dequantise.centre}
DIVERGENCES = {"hutchinson": divergence.hutchinson, "exact": divergence.exact}
FEATURES = ("digits", "pixels")
OPTIMISERS = {
    "adam": lambda rate, plan: optax.adam(rate, b1=plan.beta1, b2=plan.beta2),
    "adamw": lambda rate, plan: optax.adamw(rate, b1=plan.beta1, b2=plan.beta2, weight_decay=plan.weight_decay),
}
MASKS = {
    "none": None,
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "right": (0.0, 1.0, 0.5, 1.0),
    "centre": (0.25, 0.75, 0.25, 0.75),
}

# Sections without a name of their own: every key, and what it must be.
SECTIONS = {
    "data": {
        "name": _one_of("digits", "arrays", "folder", *load.TOYS, *ARCHIVES),
        "dir": TEXT,
        "path": TEXT,
        "levels": Check(int, lambda v: 2 <= v <= 256, "a whole number from 2 to 256"),
        "image_size": COUNT_OR_0,
        "test_fraction": Check(float, lambda v: 0 < v < 1, "a number between 0 and 1"),
        "flip": FLAG,
        "dequantisation": _one_of(*DEQUANTISERS),
        "conditional": FLAG,
    },
    "score": {"kind": _one_of(*PARAMETERISATIONS), "data_rms": POSITIVE},
    "training": {
        "steps": COUNT,
        "batch_size": COUNT,
        "accumulate": COUNT,
        "steps_per_dispatch": COUNT,
        "optimiser": _one_of(*OPTIMISERS),
        "learning_rate": POSITIVE,
        "schedule": _one_of("cosine", "constant"),
        "warmup": COUNT_OR_0,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "weight_decay": NON_NEGATIVE,
        "clip": NON_NEGATIVE,
        "ema_decay": FRACTION,
        "label_dropout": FRACTION,
        "log_every": COUNT_OR_0,
        "validate_every": COUNT_OR_0,
        "checkpoint_every": COUNT_OR_0,
        "sample_every": COUNT_OR_0,
        "keep": COUNT,
    },
    "sampling": {
        "num": COUNT,
        "batch_size": COUNT,
        "t_min": POSITIVE,
        "steps": COUNT,
        "guidance": NON_NEGATIVE,
        "label": INDEX,
        "inpaint": _one_of(*MASKS),
    },
    "eval": {
        "likelihood": FLAG,
        "dequantisation": _one_of("", *DEQUANTISERS),
        "draws": COUNT,
        "num_test": COUNT_OR_0,
        "batch_size": COUNT,
        "divergence": _one_of(*DIVERGENCES),
        "rtol": POSITIVE,
        "atol": POSITIVE,
        "max_steps": COUNT,
        "check": COUNT,
        "baseline": FLAG,
        "num_samples": COUNT_OR_0,
        "features": _one_of(*FEATURES),
        "neighbours": COUNT,
    },
}
NAMED = {
    "process": {name: choice.parameters for name, choice in PROCESSES.items()},
    "model": {name: choice.parameters for name, choice in MODELS.items()},
    "weight": {name: choice.parameters for name, choice in WEIGHTS.items()},
    "times": {name: choice.parameters for name, choice in TIMES.items()},
    "grid": {name: choice.parameters for name, choice in GRIDS.items()},
    "sampler": {name: choice.parameters for name, choice in SAMPLERS.items()} | ADAPTIVE,
}
TOP = {"seed": COUNT_OR_0, "t_min": POSITIVE}

# ----------------------------------------------------------------------------------------------------------------------
# Checks.


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _check_value(name: str, value, check: Check) -> None:
    right = isinstance(value, check.kind) and not (check.kind is int and isinstance(value, bool))
    if check.kind is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    if not right or not check.holds(value):
        raise UserError(f"{name} = {value!r} must be {check.words}")


def _check_section(prefix: str, section, checks: dict[str, Check]) -> None:
    for key in section:
        if key not in checks:
            raise UserError(f"{prefix}{key} is not a known setting: {_hint(key, checks)}")
    for key, check in checks.items():
        if key not in section:
            raise UserError(f"{prefix}{key} is missing: it must be {check.words}")
        _check_value(prefix + key, section[key], check)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses unknown, missing and impossible settings.

    Raises:
      UserError: naming the setting, its value and what is allowed.
    """
    known = (*TOP, *SECTIONS, *NAMED)
    for key in config:
        if key not in known:
            raise UserError(f"{key} is not a known setting: {_hint(key, known)}")
    for key in (*SECTIONS, *NAMED):
        if not isinstance(config.get(key), ml_collections.ConfigDict):
            raise UserError(f"{key} = {config.get(key)!r} must be a section of settings")
    _check_section("", {key: config[key] for key in config if key in TOP}, TOP)
    for name, checks in SECTIONS.items():
        _check_section(f"{name}.", config[name], checks)
    for name, rows in NAMED.items():
        chosen = config[name].get("name")
        _check_value(f"{name}.name", chosen, _one_of(*rows))
        _check_section(f"{name}.", config[name], {"name": TEXT, **rows[chosen]})
    _check_together(config)


def _check_together(config) -> None:
    """Values that are possible alone but not side by side."""
    process, training = config.process, config.training
    if "beta_max" in process and process.beta_max < process.beta_min:
        raise UserError(
            f"process.beta_max = {process.beta_max} must not be below process.beta_min = {process.beta_min}"
        )
    if "sigma_max" in process and process.sigma_max <= process.sigma_min:
        raise UserError(
            f"process.sigma_max = {process.sigma_max} must be above process.sigma_min = {process.sigma_min}"
        )
    for name, t in (("t_min", config.t_min), ("sampling.t_min", config.sampling.t_min)):
        if t >= process.horizon:
            raise UserError(f"{name} = {t} must be below process.horizon = {process.horizon}")
    if training.batch_size % training.accumulate:
        raise UserError(
            f"training.accumulate = {training.accumulate} must divide training.batch_size = {training.batch_size}"
        )
    for name in ("steps", "log_every", "validate_every", "checkpoint_every", "sample_every"):
        if training[name] % training.steps_per_dispatch:
            raise UserError(
                f"training.{name} = {training[name]} must be a multiple of training.steps_per_dispatch = "
                f"{training.steps_per_dispatch}"
            )
    if training.warmup >= training.steps:
        raise UserError(f"training.warmup = {training.warmup} must be below training.steps = {training.steps}")
    if config.sampling.guidance != 1.0 and not config.data.conditional:
        raise UserError(f"sampling.guidance = {config.sampling.guidance} needs data.conditional = True")
    if config.sampling.guidance not in (0.0, 1.0) and not training.label_dropout:
        raise UserError(
            f"sampling.guidance = {config.sampling.guidance} needs a network that also knows the unlabelled data: train "
            "with training.label_dropout above 0"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Parts.


def _make(table: dict[str, Choice], section):
    options = {key: value for key, value in section.items() if key != "name"}
    return table[section.name].make(**options)


def source(config) -> Source:
    """The data set, read from where it is.

    Raises:
      UserError: where it is missing or damaged, or does not go with the rest of the config.
    """
    data = config.data
    if data.name in ("arrays", "folder") and not data.path:
        raise UserError(f"data.path is empty: data.name = {data.name} needs the file or folder to read")
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
    _check_source(config, found)
    return found


def _check_source(config, found: Source) -> None:
    image = len(found.shape) == 3
    if config.data.conditional and not found.num_classes:
        raise UserError(f"data.conditional = True, but {found.name} has no labels")
    if config.sampling.label >= max(found.num_classes, 0):
        raise UserError(f"sampling.label = {config.sampling.label}: {found.name} has {found.num_classes} classes")
    if config.data.flip and not image:
        raise UserError(f"data.flip = True needs images, and {found.name} has examples of shape {found.shape}")
    if config.sampling.inpaint != "none" and not image:
        raise UserError(
            f"sampling.inpaint = {config.sampling.inpaint} needs images, not examples of shape {found.shape}"
        )
    if config.model.name == "unet":
        factor = 2 ** (len(config.model.multipliers) - 1)
        if not image or found.shape[0] % factor or found.shape[1] % factor:
            raise UserError(
                f"model.name = unet with {len(config.model.multipliers)} resolutions needs images whose sides {factor} "
                f"divides; {found.name} has examples of shape {found.shape}"
            )
        if any(config.model.channels * m % config.model.num_heads for m in config.model.multipliers):
            raise UserError(
                f"model.num_heads = {config.model.num_heads} must divide model.channels times each multiplier"
            )
    if found.levels and config.eval.likelihood and config.eval.dequantisation in ("", "none"):
        raise UserError(
            f"eval.dequantisation = {config.eval.dequantisation!r}: the density of integer data depends on it; choose "
            "uniform, or skip it with eval.likelihood = False"
        )
    if config.eval.features == "digits" and config.eval.num_samples and not (found.levels and found.num_classes):
        raise UserError(f"eval.features = digits needs labelled images of integer levels, and {found.name} has none")
    if config.training.batch_size > len(found.test.x) * config.training.accumulate:
        raise UserError(
            f"training.batch_size / training.accumulate = {config.training.batch_size // config.training.accumulate} must "
            f"not exceed the {len(found.test.x)} test examples of {found.name}, on which the loss is validated"
        )


def process(config) -> sdes.Process:
    """The forward SDE."""
    return _make(PROCESSES, config.process)


def model(config, found: Source) -> Network:
    """The network. Convolutions inside a compiled training loop get the lowering that is fast there."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "dtype")}
    options["dtype"] = jnp.bfloat16 if config.model.dtype == "bfloat16" else None
    options["num_classes"] = found.num_classes if config.data.conditional else 0
    if config.model.name == "unet" and (config.training.steps_per_dispatch > 1 or config.training.accumulate > 1):
        options["conv"] = layers.conv3x3_in_loop
    return network(MODELS[config.model.name].make(**options))


def _encode(config, found: Source) -> Callable:
    if not found.levels:
        return lambda key, x: jnp.asarray(x, jnp.float32)
    rule = DEQUANTISERS[config.data.dequantisation]
    return lambda key, x: rule(key, x, found.levels).x


def _objective(config, forward: sdes.Process, score_of: Callable, encode: Callable, found: Source) -> Callable:
    weight, law = _make(WEIGHTS, config.weight), _make(TIMES, config.times)
    conditional, label_dropout, t_min = config.data.conditional, config.training.label_dropout, config.t_min

    def objective(params, key, batch, *, train):
        key_x, key_t, key_noise, key_label, key_network = jax.random.split(key, 5)
        x0 = encode(key_x, batch["x"])
        cond = None
        if conditional:
            cond = batch["label"]
            if train and label_dropout:
                dropped = jax.random.bernoulli(key_label, label_dropout, cond.shape)
                cond = jnp.where(dropped, found.num_classes, cond)
        t, inv_density = law(forward, key_t, x0.shape[0], t_min=t_min)
        network_score = score_of(params, train=train, key=key_network)
        terms = dsm.dsm(forward, network_score, key_noise, x0, t, cond, weight=weight)
        means = {name: jnp.mean(inv_density * term) for name, term in terms.items()}
        loss = sum(means.values())
        return loss, {"loss": loss, **means}

    return objective


def _sampler(config, forward: sdes.Process) -> tuple[Callable, bool]:
    options, guidance = config.sampler, config.sampling.guidance

    def guided(score_fn):
        return score_fn if guidance == 1.0 else guide.classifier_free(score_fn, guidance)

    if options.name in ADAPTIVE:
        chosen = {key: value for key, value in options.items() if key != "name"}

        def solve(score_fn, key, x_init, cond, *, trajectory=False):
            return adaptive.adaptive_ode(forward, guided(score_fn), x_init, cond, t_min=config.sampling.t_min, **chosen)

        return solve, True
    run, make_grid = _make(SAMPLERS, options), _make(GRIDS, config.grid)
    grid = make_grid(forward, config.sampling.steps, t_min=config.sampling.t_min)

    def draw(score_fn, key, x_init, cond, *, trajectory=False):
        return run(forward, guided(score_fn), key, x_init, grid, cond, trajectory=trajectory)

    return draw, False


def build(config: ml_collections.ConfigDict, name: str) -> experiment.Experiment:
    """Checks a config and makes the experiment.

    Args:
      config: see `configs/default.py` for every setting.
      name: for messages and folders.

    Raises:
      UserError: for anything in it that cannot work, data included.
    """
    check(config)
    found, forward = source(config), process(config)
    net = model(config, found)
    kind, data_rms = PARAMETERISATIONS[config.score.kind], config.score.data_rms

    def score_of(params, *, train=False, key=None):
        apply = functools.partial(net.apply, train=True, key=key) if train else net.apply
        return score.score_fn(forward, apply, params, kind, data_rms=data_rms)

    encode = _encode(config, found)
    sampler, per_device = _sampler(config, forward)
    return experiment.Experiment(
        name=name,
        seed=config.seed,
        source=found,
        process=forward,
        t_min=config.t_min,
        terminal=terminal.prior(forward),
        network=net,
        conditional=config.data.conditional,
        score=score_of,
        encode=encode,
        decode=functools.partial(dequantise.quantise, levels=found.levels) if found.levels else lambda x: x,
        objective=_objective(config, forward, score_of, encode, found),
        sampler=sampler,
        per_device=per_device,
        config=config.to_dict(),
    )


def optimiser(config) -> optax.GradientTransformation:
    """Clipping by global norm, warm-up, then a cosine to 0 or a constant rate."""
    plan = config.training
    rate = plan.learning_rate
    if plan.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0 if plan.warmup else rate, rate, plan.warmup, plan.steps)
    else:
        schedule = optax.linear_schedule(0.0, rate, plan.warmup) if plan.warmup else rate
    clip = optax.clip_by_global_norm(plan.clip) if plan.clip else optax.identity()
    return optax.chain(clip, OPTIMISERS[plan.optimiser](schedule, plan))


def train_plan(config) -> TrainPlan:
    """How to train."""
    plan = config.training
    return TrainPlan(
        steps=plan.steps,
        batch_size=plan.batch_size,
        accumulate=plan.accumulate,
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


def eval_plan(config, found: Source, cache_dir: Path) -> EvalPlan:
    """How to evaluate; `cache_dir` is where fitted feature networks are kept."""
    plan = config.eval
    rule = DEQUANTISERS.get(plan.dequantisation)
    extractors = {
        "digits": lambda: digit_metrics.classifier(found.train, found.levels, cache_dir),
        "pixels": lambda: metrics.Extractor("pixels", metrics.pixels),
    }
    return EvalPlan(
        num_test=min(plan.num_test, len(found.test.x)),
        draws=plan.draws,
        batch_size=plan.batch_size if plan.likelihood else 0,
        dequantise=functools.partial(rule, levels=found.levels) if found.levels else None,
        divergence=DIVERGENCES[plan.divergence],
        rtol=plan.rtol,
        atol=plan.atol,
        max_steps=plan.max_steps,
        conditional=config.data.conditional,
        check=plan.check,
        baseline=plan.baseline,
        num_samples=plan.num_samples,
        sample_batch=config.sampling.batch_size,
        extractor=extractors[plan.features],
        neighbours=plan.neighbours,
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
