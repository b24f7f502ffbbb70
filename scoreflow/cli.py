"""The command line: flags, modes and exit codes.

    scoreflow --config=vp_digits --mode=train
    scoreflow --config=my_config.py --mode=eval --config.eval.draws=1

`--config` is a file, or the name of a config that comes with the package (`vp_digits`, `digits_orders:3`); what follows
a colon goes to the file's `get_config`. Every setting is a flag, --config.section.setting=value.
"""

import importlib.util
import inspect
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

_CONFIG = flags.DEFINE_string("config", None, "The experiment: a file, or the name of a shipped config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name of the config> by default.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "sample", "plan", "stats", "show"], "What to do.")
_SETTING = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)

_overrides: dict[str, str] = {}


def _fail(message: object, code: int) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def take_settings(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command line without its settings, and the settings: dotted name -> word.

    As with other flags, --config.a.b=value and --config.a.b value are the same, and a flag without a value is True.
    """
    rest: list[str] = []
    settings: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if (match := _SETTING.fullmatch(word)) is None:
            rest.append(word)
            continue
        name, value = match.groups()
        if value is None:
            value = words.pop(0) if words and not words[0].startswith("--") else "True"
        settings[name] = value
    return rest, settings


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong one ends in one line and exit code 2."""
    try:
        rest, settings = take_settings(argv)
        _overrides.update(settings)
        rest = flags.FLAGS(rest)
        if len(rest) > 1:
            raise ValueError(f"{rest[1]} is not a flag; settings are given as --config.section.key=value")
        if not _CONFIG.value:
            raise ValueError("--config is missing; try --config=configs/vp_digits.py, or --config=vp_digits")
        return rest
    except (flags.Error, ValueError) as error:
        advice = (
            "; settings are given as --config.section.key=value" if "Unknown command line flag" in str(error) else ""
        )
        _fail(f"{error}{advice}", 2)


def shipped() -> Path:
    """The folder of the configs that come with the package, or with the checkout it is run from."""
    package = Path(__file__).parent
    installed, checkout = package / "configs", package.parent / "configs"
    return installed if installed.is_dir() else checkout


def find(name: str) -> Path:
    """The file of a config, given as a path or as the name of a shipped one.

    Raises:
      UserError: if there is neither; it lists the shipped ones.
    """
    from scoreflow.runs.errors import UserError

    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name == path.stem and (shipped() / f"{name}.py").is_file():
        return shipped() / f"{name}.py"
    if path.suffix == ".py" or len(path.parts) > 1:
        raise UserError(f"--config={name}: there is no such file" + (", only a folder" if path.is_dir() else ""))
    known = ", ".join(sorted(file.stem for file in shipped().glob("*.py") if file.stem not in ("default", "__init__")))
    raise UserError(f"--config={name}: there is no such file, and no shipped config of that name; these are: {known}")


def load_config(argument: str) -> Any:
    """What `get_config` of a config file returns, for `<file or name>` or `<file or name>:<variant>`.

    Config files import each other as `configs.<name>`: the shipped ones, then those of their own folder.

    Raises:
      UserError: if there is no such file or variant, or the file fails; it names the file and what went wrong.
    """
    from scoreflow.runs.errors import UserError

    name, colon, variant = argument.partition(":")
    path = find(name)
    package = types.ModuleType("configs")
    package.__path__ = list(dict.fromkeys([str(shipped()), str(path.parent.resolve())]))
    sys.modules["configs"] = package
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={name}: it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if colon and not inspect.signature(module.get_config).parameters:
            raise UserError(f"{path.name} has no variants")
        config = module.get_config(variant) if colon else module.get_config()
    except Exception as error:  # whatever a file of the user's raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines and not isinstance(error, UserError) else ""
        words = str(error.args[0]).replace("\n", ". ") if error.args else type(error).__name__
        raise UserError(f"--config={argument}{where}: {words}") from error
    if not callable(getattr(config, "to_dict", None)):
        raise UserError(f"--config={argument}: get_config returns {type(config).__name__}; it must return the config")
    return config


def _show(config: Any) -> None:
    """Prints every setting, one a line: a mark where it differs from the default, its value and its meaning."""
    from scoreflow.configure.overrides import flatten, known
    from scoreflow.runs import report

    values = flatten(config.to_dict())
    names = {name.removesuffix(".name"): value for name, value in values.items() if name.endswith(".name")}
    rows = [
        ("*" if values[name] != row.default else "", f"{name} = {values[name]!r}", row.meaning)
        for name, row in known(names).items()
    ]
    report.say(report.table(rows))
    report.say("* differs from the default")


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # jax and matplotlib report their searches for devices and fonts

    from scoreflow import configure, evaluate, planner, sample, train
    from scoreflow.runs import caches, parallel, workdir
    from scoreflow.runs.errors import RunError, UserError

    caches.enable_compilation_cache()
    name, mode = str(_CONFIG.value), _MODE.value
    folder = Path(_WORKDIR.value).expanduser() if _WORKDIR.value else workdir.default(name)
    try:
        config = configure.resolve(load_config(name), _overrides)
        if mode == "show":
            _show(configure.check(config))
            return
        parallel.initialize()
        experiment = configure.experiment(config, name)
        workdir.claim(folder, experiment.config, resume=mode == "train", defaults=configure.flat_defaults(config))
        if mode == "train":
            train.train(experiment, configure.train_options(config), folder)
        elif mode == "eval":
            evaluate.evaluate(experiment, configure.evaluation(config), folder)
        elif mode == "stats":
            evaluate.prepare(experiment, configure.evaluation(config), config["eval"]["features"])
        elif mode == "plan":
            planner.plan(experiment, configure.planner_options(config), folder)
        else:
            sample.sample(experiment, configure.sample_options(config), folder)
    except UserError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)


def run(doc: str | None = None) -> None:
    """Parses the command line and runs a mode; `doc` is what --help begins with."""
    sys.modules["__main__"].__doc__ = doc or __doc__
    app.run(_main, flags_parser=_parse)


def command() -> None:
    """The `scoreflow` command of an installed package."""
    run()


if __name__ == "__main__":
    run()
