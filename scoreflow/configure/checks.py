"""Refuses settings that are possible alone and impossible together, or with the data: pairs (is it wrong, one line)."""

import math
from collections.abc import Iterator
from typing import Any

from scoreflow.configure.overrides import Config
from scoreflow.data import Dataset, facts
from scoreflow.processes import linear
from scoreflow.processes.sdes import Process
from scoreflow.runs.errors import UserError
from scoreflow.theory.known import LOG_DENSITIES

UNFITTED = ("prior", "pushforward")  # terminal distributions without parameters
Rows = Iterator[tuple[object, str]]


def refuse(rows: Rows) -> None:
    """Raises the first line that applies, as a UserError."""
    for wrong, message in rows:
        if wrong:
            raise UserError(message)


def together(config: Config) -> Rows:
    """Values that are possible alone but not side by side."""
    data, guidance = config.data, f"sampling.guidance = {config.sampling.guidance} needs"
    missing = data.name in ("arrays", "folder") and not data.path
    yield missing, f"data.path is empty: data.name = {data.name} needs the file or folder to read"
    unread = data.path and data.name not in ("arrays", "folder")
    yield unread, f"data.path = {data.path} is not read by data.name = {data.name}; set data.name = folder or arrays"
    alone = config.init_parts == "vae" and not (config.init_from and config.latent.name != "none")
    yield alone, "init_parts = vae goes with init_from and a VAE: choose latent.name"
    for rows in (_times, _training, _terminal, _latent, _evaluation):
        yield from rows(config)
    yield config.sampling.guidance != 1.0 and not data.conditional, f"{guidance} data.conditional = True"
    unlabeled = config.sampling.guidance not in (0.0, 1.0) and not config.training.label_dropout
    words = "a network that also knows unlabeled data: train it with training.label_dropout above 0"
    yield unlabeled, f"{guidance} {words}"


def _times(config: Config) -> Rows:
    horizon, process = config.process.horizon, config.process.name
    times = {"t_min": config.t_min, "sampling.t_min": config.sampling.t_min, "eval.t_min": config.eval.t_min}
    for name, t in times.items():
        yield t >= horizon, f"{name} = {t} must be below process.horizon = {horizon}"
    words = "has a closed form for process.name = vp_linear alone"
    wrong = config.sample_times.name == "normal_unweighted" and process != "vp_linear"
    yield wrong, f"sample_times.name = normal_unweighted {words}, not for {process}; choose normal_likelihood"
    flat = config.sample_times.name == "normal_unweighted" and config.process.beta_max == config.process.beta_min
    yield flat, "sample_times.name = normal_unweighted needs process.beta_max above process.beta_min"


def with_process(config: Config, process: Process) -> Rows:
    """Times at which float32 has no signal left, or no noise yet."""
    horizon, name = config.process.horizon, config.process.name
    yield not isinstance(process, Process), f"process.name = {name} gives {type(process).__name__}, not a process"
    last = float(process.log_snr(horizon))
    words = f"leaves {name} no signal: its log-SNR there is {last}; stop earlier"
    yield not math.isfinite(last), f"process.horizon = {horizon} {words}"
    try:
        linear.check(process)
    except ValueError as error:
        yield True, f"process.name = {name}: {error}"
    times = {"t_min": config.t_min, "sampling.t_min": config.sampling.t_min, "eval.t_min": config.eval.t_min}
    for setting, t in times.items():
        early = (t > 0 or setting != "eval.t_min") and not math.isfinite(float(process.log_snr(t)))
        yield early, f"{setting} = {t} is so small that {name} has no noise there in float32; choose a later time"


def _training(config: Config) -> Rows:
    training, dispatch = config.training, config.training.steps_per_dispatch
    size, accum, steps, log_every = training.batch_size, training.grad_accum, training.steps, training.log_every
    yield size % accum, f"training.grad_accum = {accum} must divide training.batch_size = {size}"
    for name in ("log_every", "validate_every", "checkpoint_every", "sample_every"):
        words = f"must be a multiple of training.steps_per_dispatch = {dispatch}"
        yield training[name] % dispatch, f"training.{name} = {training[name]} {words}"
    words = f"must be a multiple of training.log_every = {log_every}, or a resumed run would log other averages"
    uneven = log_every and training.checkpoint_every % log_every
    yield uneven, f"training.checkpoint_every = {training.checkpoint_every} {words}"
    late = training.warmup >= steps > 0
    yield late, f"training.warmup = {training.warmup} must be below training.steps = {steps}: set both"
    if config.loss.name == "high_order" and config.loss.method == "trace":
        words = f"loss.method = trace has no order {config.loss.order}; choose loss.order = 2, or projected"
        yield config.loss.order != 2, words
    unmeasured = "frechet" in training.best and not config.eval.num_samples
    yield unmeasured, "training.best = frechet measures samples: set eval.num_samples above 0"


def _terminal(config: Config) -> Rows:
    flow, name, steps = config.dequantizer.name, config.terminal.name, config.training.steps
    alone, begins, variational = (
        config.training.learn == "terminal",
        config.init_from,
        "eval.dequantization = variational",
    )
    words = f"dequantizer.name = {flow} is trained on a finished score model: set init_from to the folder of its run"
    yield flow != "none" and not begins, words
    undone = config.eval.dequantization == "variational" and flow == "none"
    yield undone, f"{variational} needs a flow: choose dequantizer.name and train it"
    words = f"terminal.name = {name} and dequantizer.name = {flow} need runs of their own; choose one"
    yield flow != "none" and name not in UNFITTED, words
    yield alone and not begins, "training.learn = terminal needs init_from, the folder of the score model's run"
    fitted = alone and name != "glow"
    words = f"must be 0: training.learn = terminal, and terminal.name = {name} is fitted without steps"
    yield fitted and steps > 0, f"training.steps = {steps} {words}"
    yield steps == 0 and not fitted, "training.steps = 0 must be above 0: this model is trained by gradient descent"
    words = "terminal.name = pushforward has samples but no density: set eval.likelihood = False"
    yield name == "pushforward" and config.eval.likelihood, words


def _evaluation(config: Config) -> Rows:
    options, horizon, data = config.eval, config.process.horizon, config.data.name
    for name in ("bound_times", "diagnose", "horizons"):
        words = (
            "needs data at t = 0, and eval.dequantization = truncated_normal makes them at t_min; choose uniform, or"
        )
        wrong = options[name] and options.dequantization == "truncated_normal"
        yield wrong, f"eval.{name} = {options[name]} {words} leave eval.{name} out"
    words = f"must lie above t_min = {config.t_min} and not beyond process.horizon = {horizon}"
    outside = not all(config.t_min < t <= horizon for t in options.horizons)
    yield outside, f"eval.horizons = {options.horizons} {words}"
    words = f"needs data whose density under noise is known: {', '.join(LOG_DENSITIES)}; not {data}"
    yield options.score_error and data not in LOG_DENSITIES, f"eval.score_error = {options.score_error} {words}"


def _latent(config: Config) -> Rows:
    data, latent, mixed, weight = config.data, config.latent, config.score.mixed, config.weight.name
    names = {name: config[name].name for name in ("latent", "vae", "decoder")}
    words = ", ".join(f"{key}.name = {name}" for key, name in names.items())
    partly = len({name == "none" for name in names.values()}) > 1
    yield partly, f"{words}: choose all three for a model in latent space, or none of them"
    if latent.name == "none":
        words = "data.binarized and data.bits are for a decoder's data: choose latent.name, vae and decoder"
        yield data.binarized or data.bits, words
        return
    words = f"latent.name = {latent.name} begins with a finished VAE: set init_from to the folder of its run"
    yield latent.name in ("joint", "frozen") and not config.init_from, words
    for section, usual in (("loss", "first_order"), ("penalty", "none")):
        words = f"{section}.name = {config[section].name} goes with latent.name = frozen, not {latent.name}"
        yield latent.name != "frozen" and config[section].name != usual, words
    if latent.name == "joint":
        words = f"weight.name = {weight}: latent.algorithm = 1 is the bound itself, for weight likelihood"
        yield latent.algorithm == 1 and weight != "likelihood", words
        yield data.conditional, "data.conditional = True goes with latent.name = frozen, not joint"
    dequantizer, inpaint = config.dequantizer.name, config.sampling.inpaint
    words = f"is for data space, and latent.name = {latent.name}"
    yield dequantizer != "none", f"dequantizer.name = {dequantizer} {words}"
    yield config.augment.name != "none", f"augment.name = {config.augment.name} {words}"
    yield inpaint != "none", f"sampling.inpaint = {inpaint} {words}"
    yield data.dequantization != "uniform", f"data.dequantization = {data.dequantization} {words}"
    yield config.terminal.name == "pushforward", "terminal.name = pushforward is for data space"
    alone = mixed and latent.name == "alone"
    yield alone, "score.mixed = True needs a score network, and latent.name = alone has none"
    unmixed = latent.get("drop_inactive", False) and not mixed
    yield unmixed, "latent.drop_inactive = True needs score.mixed = True, whose shares it sets"
    binary = data.binarized and (data.bits or config.decoder.name != "bernoulli")
    yield binary, "data.binarized = True goes with decoder.name = bernoulli and data.bits = 0"


def with_data(config: Config, data: Dataset) -> Rows:
    """Settings that do not go with the data set."""
    image, levels, classes, options = len(data.shape) == 3, data.num_levels, data.num_classes, config.eval
    label, inpaint, flow = config.sampling.label, config.sampling.inpaint, config.dequantizer.name
    measured, name, shape = options.num_samples or options.samples, data.name, f"examples of shape {data.shape}"
    yield config.data.conditional and not classes, f"data.conditional = True, but {name} has no labels"
    bare = config.data.conditional and data.test.label is None
    yield bare, f"data.conditional = True, but the test examples of {name} have no labels"
    yield label >= max(classes, 0), f"sampling.label = {label}: {name} has {facts.numbered(data)}"
    ignored = label >= 0 and not config.data.conditional
    yield ignored, f"sampling.label = {label}: the network knows no classes; train it with data.conditional = True"
    yield config.data.flip and not image, f"data.flip = True needs images, and {name} has {shape}"
    yield inpaint != "none" and not image, f"sampling.inpaint = {inpaint} needs images, not {shape}"
    words = f"needs images of integer levels, and {name} has none"
    yield flow != "none" and not (image and levels), f"dequantizer.name = {flow} {words}"
    if config.vae.name != "none":
        yield from _decoder(config, data)
    elif levels and options.likelihood:
        words = "the density of integer data depends on it; choose uniform, truncated_normal or variational, or skip it"
        rule = f"eval.dequantization = {options.dequantization!r}: {words} with eval.likelihood = False"
        yield options.dequantization in ("", "none"), rule
    words = f"needs labeled images of integer levels, unlike {name}: set eval.features=pixels"
    for features, fits in (("digits", levels and classes), ("classifier", image and levels and classes)):
        yield measured and options.features == features and not fits, f"eval.features = {features} {words}"
    colored = image and levels and data.shape[-1] in (1, 3)
    words = f"eval.features = inception needs images of 1 or 3 channels of levels, unlike {name}"
    yield measured and options.features == "inception" and not colored, words


def _decoder(config: Config, data: Dataset) -> Rows:
    vae, decoder, levels, name, bits = config.vae, config.decoder.name, data.num_levels, data.name, config.data.bits
    yield not levels, f"vae.name = {vae.name} models integer levels, and {name} has none"
    yield levels < 2**bits, f"data.bits = {bits} is more than the {levels} levels of {name}"
    gray = decoder == "bernoulli" and levels != 2 and not config.data.binarized
    yield gray, f"decoder.name = bernoulli is for 2 levels, and {name} has {levels}: set data.binarized"
    channels = decoder == "logistic_mixture" and data.shape[-1] not in (1, 3)
    yield channels, f"decoder.name = logistic_mixture is for 1 or 3 channels, and {name} has {data.shape[-1]}"
    if vae.name == "mlp":
        return
    factor, sides = 2 ** (len(vae.multipliers) - 1), tuple(side + 2 * vae.get("pad", 0) for side in data.shape[:2])
    odd = len(data.shape) != 3 or any(side % factor for side in sides)
    words = f"{len(vae.multipliers)} resolutions needs images whose sides {factor} divides"
    yield odd, f"vae.name = {vae.name} with {words}; {name} has examples of shape {data.shape}"
    wrong = vae.name == "hierarchical" and (sides[0] != sides[1] or vae.scales > len(vae.multipliers))
    yield wrong, "vae.name = hierarchical needs square images and as many vae.multipliers as vae.scales"


def with_shape(config: Config, data: Dataset, shape: tuple[int, ...], module: Any) -> Rows:
    """Networks that do not go with the shape of what is diffused; `module` is the score network, or None."""
    image, whose = len(shape) == 3, data.name if shape == data.shape else f"the latent space of {data.name}"
    model, resolutions, sizes = config.model, config.terminal.get("resolutions", 0), {}
    untold = config.augment.name != "none" and not hasattr(module, "augment_labels")
    yield untold, f"augment.name = {config.augment.name} needs model.name = ddpmpp, ncsnpp or adm, not {model.name}"
    if resolutions:
        sizes[f"terminal.resolutions = {resolutions}"] = 2**resolutions
    if factor := getattr(module, "sides_factor", 0):
        sizes[f"model.name = {model.name} with {len(model.multipliers)} resolutions"] = factor
    for what, factor in sizes.items():
        odd = not image or shape[0] % factor or shape[1] % factor
        yield odd, f"{what} needs images whose sides {factor} divides; {whose} has examples of shape {shape}"
    width, heads = getattr(module, "head_width", 0), getattr(module, "num_heads", 1)
    words = f"model.name = {model.name} has heads of {width} channels, which" if width else f"model.num_heads = {heads}"
    uneven = any(model.channels * m % (width or heads) for m in model.get("multipliers", ()))
    channels, multipliers = model.get("channels"), model.get("multipliers")
    yield uneven, f"{words} must divide model.channels = {channels} times each of model.multipliers = {multipliers}"
