"""Refuses settings that are unknown, missing, impossible, or impossible together, each in one line."""

import difflib

import ml_collections
import numpy as np

from scoreflow.configure.sections import NAMED, SECTIONS, TOP
from scoreflow.configure.tables import BY_GRADIENT, CONVOLUTIONAL, LOG_DENSITIES, UNFITTED
from scoreflow.configure.values import TEXT, Check, one_of
from scoreflow.data import Source
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError


def _hint(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _check_value(name: str, value, check: Check) -> None:
    right = isinstance(value, check.kind) and not (check.kind is int and isinstance(value, bool))
    if check.kind is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    if not right or not check.holds(value):
        raise UserError(f"{name} = {value!r} must be {check.words}")


def _check_section(prefix: str, section, checks: dict[str, Check], *, complete: bool = True) -> None:
    for key in section:
        if key not in checks:
            raise UserError(f"{prefix}{key} is not a known setting: {_hint(key, checks)}")
    for key, check in checks.items():
        if key not in section:
            if not complete:
                continue
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
        _check_value(f"{name}.name", chosen, one_of(*rows))
        # What is left out of a small section has the default of the function that is chosen, so that one flag can
        # choose another: --config.sampler.name=predictor_corrector.
        checks = {"name": TEXT, **rows[chosen]}
        _check_section(f"{name}.", config[name], checks, complete=name in ("process", "model"))
    check_together(config)


def check_together(config) -> None:
    """Values that are possible alone but not side by side."""
    process, training = config.process, config.training
    if config.data.name in ("arrays", "folder") and not config.data.path:
        raise UserError(f"data.path is empty: data.name = {config.data.name} needs the file or folder to read")
    if "variance_max" in process and process.variance_max <= process.variance_min:
        raise UserError(
            f"process.variance_max = {process.variance_max} must be above process.variance_min = {process.variance_min}"
        )
    if "beta_max" in process and process.beta_max < process.beta_min:
        raise UserError(
            f"process.beta_max = {process.beta_max} must not be below process.beta_min = {process.beta_min}"
        )
    if "sigma_max" in process and process.sigma_max <= process.sigma_min:
        raise UserError(
            f"process.sigma_max = {process.sigma_max} must be above process.sigma_min = {process.sigma_min}"
        )
    for name, t in (
        ("t_min", config.t_min),
        ("sampling.t_min", config.sampling.t_min),
        ("eval.t_min", config.eval.t_min),
    ):
        if t >= process.horizon:
            raise UserError(f"{name} = {t} must be below process.horizon = {process.horizon}")
    if training.batch_size % training.grad_accum:
        raise UserError(
            f"training.grad_accum = {training.grad_accum} must divide training.batch_size = {training.batch_size}"
        )
    for name in ("steps", "log_every", "validate_every", "checkpoint_every", "sample_every"):
        if training[name] % training.steps_per_dispatch:
            raise UserError(
                f"training.{name} = {training[name]} must be a multiple of training.steps_per_dispatch = "
                f"{training.steps_per_dispatch}"
            )
    if training.log_every and training.checkpoint_every % training.log_every:
        raise UserError(
            f"training.checkpoint_every = {training.checkpoint_every} must be a multiple of training.log_every = "
            f"{training.log_every}, or a resumed run would log other averages"
        )
    if training.warmup >= training.steps > 0:
        raise UserError(f"training.warmup = {training.warmup} must be below training.steps = {training.steps}")
    flow = config.dequantiser.name != "none"
    if flow and not config.init_from:
        raise UserError(
            f"dequantiser.name = {config.dequantiser.name} is trained on a finished score model: set init_from to the "
            "folder of its run"
        )
    if config.eval.dequantization == "variational" and not flow:
        raise UserError("eval.dequantization = variational needs a flow: choose dequantiser.name and train it")
    if config.loss.name == "high_order" and config.loss.get("method") == "trace" and config.loss.get("order", 2) != 2:
        raise UserError(f"loss.method = trace has no order {config.loss.order}; choose loss.order = 2, or projected")
    for name in ("bound_times", "diagnose", "horizons"):
        if config.eval[name] and config.eval.dequantization == "truncated_normal":
            raise UserError(
                f"eval.{name} = {config.eval[name]} needs data at t = 0, and eval.dequantization = truncated_normal "
                f"makes them at t_min; choose uniform, or leave eval.{name} out"
            )
    _check_latent(config)
    fitted = config.terminal.name not in UNFITTED
    if flow and fitted:
        raise UserError(
            f"terminal.name = {config.terminal.name} and dequantiser.name = {config.dequantiser.name} need runs of "
            "their own; choose one"
        )
    if training.learn == "terminal" and not config.init_from:
        raise UserError("training.learn = terminal needs init_from, the folder of the score model's run")
    if (training.learn == "terminal" and config.terminal.name not in BY_GRADIENT) != (training.steps == 0):
        raise UserError(
            f"training.steps = {training.steps} must be 0 where training.learn = terminal and terminal.name = "
            f"{config.terminal.name} is fitted without steps, and above 0 everywhere else"
        )
    if config.terminal.name == "pushforward" and config.eval.likelihood:
        raise UserError("terminal.name = pushforward has samples but no density: set eval.likelihood = False")
    if not all(config.t_min < t <= process.horizon for t in config.eval.horizons):
        raise UserError(
            f"eval.horizons = {config.eval.horizons} must lie above t_min = {config.t_min} and not beyond "
            f"process.horizon = {process.horizon}"
        )
    if config.times.name == "normal_unweighted" and config.process.name != "vp_linear":
        raise UserError(
            f"times.name = normal_unweighted has a closed form for process.name = vp_linear alone, not for "
            f"{config.process.name}; choose normal_likelihood or variance_uniform"
        )
    if "frechet" in training.best and not config.eval.num_samples:
        raise UserError("training.best = frechet measures samples: set eval.num_samples above 0")
    if config.eval.score_error and config.data.name not in LOG_DENSITIES:
        raise UserError(
            f"eval.score_error = {config.eval.score_error} needs data whose density under noise is known: "
            f"{', '.join(LOG_DENSITIES)}; not {config.data.name}"
        )
    if config.sampling.guidance != 1.0 and not config.data.conditional:
        raise UserError(f"sampling.guidance = {config.sampling.guidance} needs data.conditional = True")
    if config.sampling.guidance not in (0.0, 1.0) and not training.label_dropout:
        raise UserError(
            f"sampling.guidance = {config.sampling.guidance} needs a network that also knows unlabeled data: train "
            "it with training.label_dropout above 0"
        )


def _check_latent(config) -> None:
    """A latent space needs a VAE with a decoder, and has no use for some other things."""
    names = {name: config[name].name for name in ("latent", "vae", "decoder")}
    if len({name == "none" for name in names.values()}) > 1:
        words = ", ".join(f"{key}.name = {name}" for key, name in names.items())
        raise UserError(f"{words}: choose all three for a model in latent space, or none of them")
    if names["latent"] == "none":
        if config.data.binarized or config.data.bits:
            raise UserError(
                "data.binarized and data.bits are for a decoder's data: choose latent.name, vae and decoder"
            )
        return
    if config.latent.name in ("joint", "frozen") and not config.init_from:
        raise UserError(
            f"latent.name = {config.latent.name} begins with a finished VAE: set init_from to the folder of its run"
        )
    if config.latent.name != "frozen":
        for section, usual in (("loss", "first_order"), ("penalty", "none")):
            if config[section].name != usual:
                raise UserError(
                    f"{section}.name = {config[section].name} goes with latent.name = frozen, not {config.latent.name}"
                )
    if config.latent.name == "joint":
        weight, algorithm = config.weight.name, config.latent.get("algorithm", 1)
        if algorithm == 1 and weight != "likelihood":
            raise UserError(f"weight.name = {weight}: latent.algorithm = 1 is the bound itself, for weight likelihood")
        if config.data.conditional:
            raise UserError("data.conditional = True goes with latent.name = frozen, not joint")
    for setting, value, usual in (
        ("dequantiser.name", config.dequantiser.name, "none"),
        ("sampling.inpaint", config.sampling.inpaint, "none"),
        ("data.dequantization", config.data.dequantization, "uniform"),
    ):
        if value != usual:
            raise UserError(f"{setting} = {value} is for data space, and latent.name = {config.latent.name}")
    if config.terminal.name == "pushforward":
        raise UserError("terminal.name = pushforward is for data space")
    if config.score.mixed and config.latent.name == "alone":
        raise UserError("score.mixed = True needs a score network, and latent.name = alone has none")
    if config.latent.get("drop_inactive", False) and not config.score.mixed:
        raise UserError("latent.drop_inactive = True needs score.mixed = True, whose shares it sets")
    if config.data.binarized and (config.data.bits or config.decoder.name != "bernoulli"):
        raise UserError("data.binarized = True goes with decoder.name = bernoulli and data.bits = 0")


def check_process(config, made: Process) -> None:
    """Numbers that are possible each, of a process that is not."""
    last = float(made.log_snr(made.horizon))
    if not np.isfinite(last):
        raise UserError(
            f"process.horizon = {config.process.horizon} leaves {config.process.name} no signal: its log-SNR there is "
            f"{last}; stop earlier"
        )


def check_source(config, found: Source) -> None:
    """Settings that do not go with the data set."""
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
    if config.dequantiser.name != "none" and not (image and found.levels):
        raise UserError(
            f"dequantiser.name = {config.dequantiser.name} needs images of integer levels, and {found.name} has none"
        )
    if config.vae.name != "none":
        _check_decoder(config, found)
    elif found.levels and config.eval.likelihood and config.eval.dequantization in ("", "none"):
        raise UserError(
            f"eval.dequantization = {config.eval.dequantization!r}: the density of integer data depends on it; choose "
            "uniform, truncated_normal or variational, or skip it with eval.likelihood = False"
        )
    if config.eval.features == "digits" and config.eval.num_samples and not (found.levels and found.num_classes):
        raise UserError(f"eval.features = digits needs labeled images of integer levels, and {found.name} has none")
    if config.eval.features == "inception" and config.eval.num_samples:
        if not (image and found.levels and found.shape[-1] in (1, 3)):
            raise UserError(f"eval.features = inception needs images of 1 or 3 channels of levels, unlike {found.name}")
    if config.training.batch_size > len(found.test.x) * config.training.grad_accum:
        raise UserError(
            f"training.batch_size / training.grad_accum = {config.training.batch_size // config.training.grad_accum} "
            f"must not exceed the {len(found.test.x)} test examples of {found.name}, on which the loss is validated"
        )


def _check_decoder(config, found: Source) -> None:
    """A VAE and a decoder that do not go with the data set."""
    vae, levels = config.vae, found.levels
    if not levels:
        raise UserError(f"vae.name = {vae.name} models integer levels, and {found.name} has none")
    if levels < 2**config.data.bits:
        raise UserError(f"data.bits = {config.data.bits} is more than the {levels} levels of {found.name}")
    if config.decoder.name == "bernoulli" and levels != 2 and not config.data.binarized:
        raise UserError(f"decoder.name = bernoulli is for 2 levels, and {found.name} has {levels}: set data.binarized")
    if config.decoder.name == "logistic_mixture" and found.shape[-1] not in (1, 3):
        raise UserError(
            f"decoder.name = logistic_mixture is for 1 or 3 channels, and {found.name} has {found.shape[-1]}"
        )
    if vae.name == "mlp":
        return
    halvings = len(vae.multipliers) - 1
    sides = tuple(side + 2 * vae.get("pad", 0) for side in found.shape[:2])
    if len(found.shape) != 3 or any(side % 2**halvings for side in sides):
        raise UserError(
            f"vae.name = {vae.name} with {halvings + 1} resolutions needs images whose sides {2**halvings} divides; "
            f"{found.name} has examples of shape {found.shape}"
        )
    if vae.name == "hierarchical" and (sides[0] != sides[1] or vae.get("scales", 1) > halvings + 1):
        raise UserError("vae.name = hierarchical needs square images and as many vae.multipliers as vae.scales")


def check_shape(config, found: Source, shape: tuple[int, ...]) -> None:
    """Networks that do not go with the shape of what is diffused."""
    image, whose = len(shape) == 3, found.name if shape == found.shape else f"the latent space of {found.name}"
    name = config.model.name
    if name in CONVOLUTIONAL:
        factor = 2 ** (len(config.model.multipliers) - 1)
        if not image or shape[0] % factor or shape[1] % factor:
            raise UserError(
                f"model.name = {name} with {len(config.model.multipliers)} resolutions needs images whose sides "
                f"{factor} divides; {whose} has examples of shape {shape}"
            )
        if name == "adm" and any(config.model.channels * m % 64 for m in config.model.multipliers):
            raise UserError(
                "model.name = adm has heads of 64 channels, which must divide channels times each multiplier"
            )
        if name == "unet" and any(config.model.channels * m % config.model.num_heads for m in config.model.multipliers):
            raise UserError(
                f"model.num_heads = {config.model.num_heads} must divide model.channels times each multiplier"
            )
    if config.terminal.name == "glow":
        sides = 2 ** config.terminal.get("levels", 2)
        if not image or shape[0] % sides or shape[1] % sides:
            raise UserError(
                f"terminal.levels = {config.terminal.get('levels', 2)} needs images whose sides {sides} divides; "
                f"{whose} has examples of shape {shape}"
            )
