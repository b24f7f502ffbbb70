"""Refuses settings that are possible alone and impossible together, or with the data, each in one line."""

import numpy as np

from scoreflow.configure.catalogue import LOG_DENSITIES
from scoreflow.configure.overrides import Config
from scoreflow.data import Dataset
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError

CONVOLUTIONAL = ("unet", "ddpmpp", "ncsnpp", "adm")  # networks of images, which halve them once less than multipliers
UNFITTED = ("prior", "pushforward")  # terminal distributions without parameters


def _refuse(wrong: object, message: str) -> None:
    if wrong:
        raise UserError(message)


def check_together(config: Config) -> None:
    """Refuses values that are possible alone but not side by side.

    Raises:
      UserError: naming the settings, their values and what is allowed.
    """
    data, sampling = config.data, config.sampling
    missing = data.name in ("arrays", "folder") and not data.path
    _refuse(missing, f"data.path is empty: data.name = {data.name} needs the file or folder to read")
    for check in (_check_times, _check_training, _check_terminal, _check_latent, _check_evaluation):
        check(config)
    guided = f"sampling.guidance = {sampling.guidance} needs"
    _refuse(sampling.guidance != 1.0 and not data.conditional, f"{guided} data.conditional = True")
    unlabeled = f"{guided} a network that also knows unlabeled data: train it with training.label_dropout above 0"
    _refuse(sampling.guidance not in (0.0, 1.0) and not config.training.label_dropout, unlabeled)


def _check_times(config: Config) -> None:
    """The ends of the process, and the times within it."""
    process = config.process
    for name, least in (("variance", "above"), ("beta", "not be below"), ("sigma", "above")):
        low, high = process.get(f"{name}_min", 0.0), process.get(f"{name}_max", np.inf)
        words = f"must {'be ' if least == 'above' else ''}{least} process.{name}_min = {low}"
        _refuse(high < low or (high == low and least == "above"), f"process.{name}_max = {high} {words}")
    times = {"t_min": config.t_min, "sampling.t_min": config.sampling.t_min, "eval.t_min": config.eval.t_min}
    for name, t in times.items():
        _refuse(t >= process.horizon, f"{name} = {t} must be below process.horizon = {process.horizon}")
    _refuse(
        config.sample_times.name == "normal_unweighted" and process.name != "vp_linear",
        f"sample_times.name = normal_unweighted has a closed form for process.name = vp_linear alone, not for "
        f"{process.name}; choose normal_likelihood or variance_uniform",
    )


def _check_training(config: Config) -> None:
    """Steps, batches and the loss."""
    training, dispatch = config.training, config.training.steps_per_dispatch
    size, accum = training.batch_size, training.grad_accum
    _refuse(size % accum, f"training.grad_accum = {accum} must divide training.batch_size = {size}")
    for name in ("steps", "log_every", "validate_every", "checkpoint_every", "sample_every"):
        multiple = f"training.{name} = {training[name]} must be a multiple of training.steps_per_dispatch = {dispatch}"
        _refuse(training[name] % dispatch, multiple)
    _refuse(
        training.log_every and training.checkpoint_every % training.log_every,
        f"training.checkpoint_every = {training.checkpoint_every} must be a multiple of training.log_every = "
        f"{training.log_every}, or a resumed run would log other averages",
    )
    late = f"training.warmup = {training.warmup} must be below training.steps = {training.steps}"
    _refuse(training.warmup >= training.steps > 0, late)
    if config.loss.name == "high_order" and config.loss.method == "trace":
        words = f"loss.method = trace has no order {config.loss.order}; choose loss.order = 2, or projected"
        _refuse(config.loss.order != 2, words)
    unmeasured = "training.best = frechet measures samples: set eval.num_samples above 0"
    _refuse("frechet" in training.best and not config.eval.num_samples, unmeasured)


def _check_terminal(config: Config) -> None:
    """A terminal distribution, and a dequantizing flow, on a finished score model."""
    training, flow, name = config.training, config.dequantizer.name, config.terminal.name
    begins = f"dequantizer.name = {flow} is trained on a finished score model: set init_from to the folder of its run"
    _refuse(flow != "none" and not config.init_from, begins)
    needs = "eval.dequantization = variational needs a flow: choose dequantizer.name and train it"
    _refuse(config.eval.dequantization == "variational" and flow == "none", needs)
    both = f"terminal.name = {name} and dequantizer.name = {flow} need runs of their own; choose one"
    _refuse(flow != "none" and name not in UNFITTED, both)
    alone = training.learn == "terminal"
    source = "training.learn = terminal needs init_from, the folder of the score model's run"
    _refuse(alone and not config.init_from, source)
    _refuse(
        (alone and name != "glow") != (training.steps == 0),
        f"training.steps = {training.steps} must be 0 where training.learn = terminal and terminal.name = {name} is "
        "fitted without steps, and above 0 everywhere else",
    )
    no_density = "terminal.name = pushforward has samples but no density: set eval.likelihood = False"
    _refuse(name == "pushforward" and config.eval.likelihood, no_density)


def _check_evaluation(config: Config) -> None:
    """What is measured, of data for which that can be done."""
    options, horizon = config.eval, config.process.horizon
    for name in ("bound_times", "diagnose", "horizons"):
        _refuse(
            options[name] and options.dequantization == "truncated_normal",
            f"eval.{name} = {options[name]} needs data at t = 0, and eval.dequantization = truncated_normal makes them "
            f"at t_min; choose uniform, or leave eval.{name} out",
        )
    outside = f"eval.horizons = {options.horizons} must lie above t_min = {config.t_min} and not beyond process.horizon"
    _refuse(not all(config.t_min < t <= horizon for t in options.horizons), f"{outside} = {horizon}")
    known = f"needs data whose density under noise is known: {', '.join(LOG_DENSITIES)}; not {config.data.name}"
    unknown = options.score_error and config.data.name not in LOG_DENSITIES
    _refuse(unknown, f"eval.score_error = {options.score_error} {known}")


def _check_latent(config: Config) -> None:
    """A latent space needs a VAE with a decoder, and has no use for some other things."""
    data, latent, mixed = config.data, config.latent, config.score.mixed
    names = {name: config[name].name for name in ("latent", "vae", "decoder")}
    words = ", ".join(f"{key}.name = {name}" for key, name in names.items())
    partly = len({name == "none" for name in names.values()}) > 1
    _refuse(partly, f"{words}: choose all three for a model in latent space, or none of them")
    if latent.name == "none":
        for_decoder = "data.binarized and data.bits are for a decoder's data: choose latent.name, vae and decoder"
        _refuse(data.binarized or data.bits, for_decoder)
        return
    begins = f"latent.name = {latent.name} begins with a finished VAE: set init_from to the folder of its run"
    _refuse(latent.name in ("joint", "frozen") and not config.init_from, begins)
    for section, usual in (("loss", "first_order"), ("penalty", "none")):
        goes = f"{section}.name = {config[section].name} goes with latent.name = frozen, not {latent.name}"
        _refuse(latent.name != "frozen" and config[section].name != usual, goes)
    if latent.name == "joint":
        bound = f"weight.name = {config.weight.name}: latent.algorithm = 1 is the bound itself, for weight likelihood"
        _refuse(latent.algorithm == 1 and config.weight.name != "likelihood", bound)
        _refuse(data.conditional, "data.conditional = True goes with latent.name = frozen, not joint")
    for setting, value, usual in (
        ("dequantizer.name", config.dequantizer.name, "none"),
        ("sampling.inpaint", config.sampling.inpaint, "none"),
        ("data.dequantization", data.dequantization, "uniform"),
    ):
        _refuse(value != usual, f"{setting} = {value} is for data space, and latent.name = {latent.name}")
    _refuse(config.terminal.name == "pushforward", "terminal.name = pushforward is for data space")
    no_network = "score.mixed = True needs a score network, and latent.name = alone has none"
    _refuse(mixed and latent.name == "alone", no_network)
    needs = "latent.drop_inactive = True needs score.mixed = True, whose shares it sets"
    _refuse(latent.get("drop_inactive", False) and not mixed, needs)
    binary = "data.binarized = True goes with decoder.name = bernoulli and data.bits = 0"
    _refuse(data.binarized and (data.bits or config.decoder.name != "bernoulli"), binary)


def check_process(config: Config, process: Process) -> None:
    """Numbers that are possible each, of a process that is not."""
    last, name = float(process.log_snr(process.horizon)), config.process.name
    words = f"leaves {name} no signal: its log-SNR there is {last}; stop earlier"
    _refuse(not np.isfinite(last), f"process.horizon = {config.process.horizon} {words}")


def check_data(config: Config, data: Dataset) -> None:
    """Settings that do not go with the data set."""
    image, levels, options, size = len(data.shape) == 3, data.num_levels, config.eval, config.training.batch_size
    shape, label, features = f"examples of shape {data.shape}", config.sampling.label, config.eval.features
    _refuse(config.data.conditional and not data.num_classes, f"data.conditional = True, but {data.name} has no labels")
    _refuse(label >= max(data.num_classes, 0), f"sampling.label = {label}: {data.name} has {data.num_classes} classes")
    _refuse(config.data.flip and not image, f"data.flip = True needs images, and {data.name} has {shape}")
    inpaint = config.sampling.inpaint
    _refuse(inpaint != "none" and not image, f"sampling.inpaint = {inpaint} needs images, not {shape}")
    flow = config.dequantizer.name
    no_levels = f"dequantizer.name = {flow} needs images of integer levels, and {data.name} has none"
    _refuse(flow != "none" and not (image and levels), no_levels)
    if config.vae.name != "none":
        _check_decoder(config, data)
    _refuse(
        config.vae.name == "none" and levels and options.likelihood and options.dequantization in ("", "none"),
        f"eval.dequantization = {options.dequantization!r}: the density of integer data depends on it; choose uniform, "
        "truncated_normal or variational, or skip it with eval.likelihood = False",
    )
    unlabeled = f"eval.features = digits needs labeled images of integer levels, and {data.name} has none"
    _refuse(features == "digits" and options.num_samples and not (levels and data.num_classes), unlabeled)
    colored = image and levels and data.shape[-1] in (1, 3)
    channels = f"eval.features = inception needs images of 1 or 3 channels of levels, unlike {data.name}"
    _refuse(features == "inception" and options.num_samples and not colored, channels)
    _refuse(
        size > len(data.test.x) * config.training.grad_accum,
        f"training.batch_size / training.grad_accum = {size // config.training.grad_accum} must not exceed the "
        f"{len(data.test.x)} test examples of {data.name}, on which the loss is validated",
    )


def _check_decoder(config: Config, data: Dataset) -> None:
    """A VAE and a decoder that do not go with the data set."""
    vae, decoder, levels, name = config.vae, config.decoder.name, data.num_levels, data.name
    _refuse(not levels, f"vae.name = {vae.name} models integer levels, and {name} has none")
    _refuse(levels < 2**config.data.bits, f"data.bits = {config.data.bits} is more than the {levels} levels of {name}")
    two = f"decoder.name = bernoulli is for 2 levels, and {name} has {levels}: set data.binarized"
    _refuse(decoder == "bernoulli" and levels != 2 and not config.data.binarized, two)
    channels = f"decoder.name = logistic_mixture is for 1 or 3 channels, and {name} has {data.shape[-1]}"
    _refuse(decoder == "logistic_mixture" and data.shape[-1] not in (1, 3), channels)
    if vae.name == "mlp":
        return
    factor = 2 ** (len(vae.multipliers) - 1)
    sides = tuple(side + 2 * vae.get("pad", 0) for side in data.shape[:2])
    needs = f"{len(vae.multipliers)} resolutions needs images whose sides {factor} divides"
    odd = len(data.shape) != 3 or any(side % factor for side in sides)
    _refuse(odd, f"vae.name = {vae.name} with {needs}; {name} has examples of shape {data.shape}")
    square = "vae.name = hierarchical needs square images and as many vae.multipliers as vae.scales"
    _refuse(vae.name == "hierarchical" and (sides[0] != sides[1] or vae.scales > len(vae.multipliers)), square)


def check_shape(config: Config, data: Dataset, shape: tuple[int, ...]) -> None:
    """Networks that do not go with the shape of what is diffused."""
    image, whose = len(shape) == 3, data.name if shape == data.shape else f"the latent space of {data.name}"
    model, terminal = config.model, config.terminal

    def divides(factor: int, what: str) -> None:
        words = f"{what} needs images whose sides {factor} divides; {whose} has examples of shape {shape}"
        _refuse(not image or shape[0] % factor or shape[1] % factor, words)

    if terminal.name == "glow":
        divides(2**terminal.resolutions, f"terminal.resolutions = {terminal.resolutions}")
    if model.name not in CONVOLUTIONAL or config.latent.name == "alone":
        return
    resolutions = len(model.multipliers)
    divides(2 ** (resolutions - 1), f"model.name = {model.name} with {resolutions} resolutions")
    heads = "model.name = adm has heads of 64 channels, which must divide channels times each multiplier"
    _refuse(model.name == "adm" and any(model.channels * m % 64 for m in model.multipliers), heads)
    if model.name == "unet":
        words = f"model.num_heads = {model.num_heads} must divide model.channels times each multiplier"
        _refuse(any(model.channels * m % model.num_heads for m in model.multipliers), words)
