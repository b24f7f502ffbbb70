"""Score-based generative models: trains, evaluates, samples and plans them from a config.

    scoreflow --config=vp_digits                      trains, or goes on; into runs/vp_digits
    scoreflow --workdir=runs/vp_digits --mode=eval    bits/dim and sample metrics
    scoreflow --workdir=runs/vp_digits --mode=sample  samples, as an array and a picture
    scoreflow --config=my_config.py --mode=show       every setting with its value and meaning
    scoreflow --config=vp_digits --mode=plan          how many steps which process needs
    scoreflow --config=vp_digits --mode=stats         features of the training data
    scoreflow --mode=compare --runs=runs/a,runs/b     runs next to each other, on one page

`--config` is a file, or the name of a config that comes with the package (`vp_digits`,
`digits_orders:3`); what follows a colon goes to the file's `get_config`. `--workdir` is the folder
of the run. Every setting is a flag: `--config.section.setting=value`. `--mode=compare` takes
`--runs` instead: folders of runs with commas between them, or one folder that holds runs. The exit
code is 2 for input that cannot work, 1 for a run that cannot go on, and 130 after an interruption;
the reason is one line.
"""

import importlib.util
import inspect
import os
import re
import shutil
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

_CONFIG = flags.DEFINE_string("config", None, "The experiment: a file, or the name of a shipped config.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name of the config> by default.")
_MODES = ["train", "eval", "sample", "plan", "stats", "show", "compare"]
_MODE = flags.DEFINE_enum("mode", "train", _MODES, "What to do.")
_RUNS = flags.DEFINE_string("runs", None, "For --mode=compare: folders of runs, or one folder that holds runs.")
_SETTING = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)

COMMON = """
The settings that are changed most often, each with an example:

    --config.seed=1                                   another seed
    --config=own_images --config.data.path=~/photos   your own images
    --config.process.name=edm                         another forward process
    --config.training.steps=5000                      longer, also if it has ended
    --config.training.grad_accum=4                    less memory for the same batch
    --config.sampler.name=heun --config.sampling.steps=20   other samples, in 20 steps
    --config.sampling.label=3                         one class, where the network knows classes
    --config.eval.num_test=100 --config.eval.num_samples=0  a quick likelihood
    --config.eval.features=classifier                 the features of the Frechet distance
"""
_HELP = {"--help", "-help", "--helpfull", "-helpfull", "--helpshort", "-h", "-?", "-helpshort"}
_SMALLER = "smaller images, a smaller batch, more training.grad_accum or a smaller model may fit"

_INTERRUPTED = 130  # the exit code

_overrides: dict[str, str] = {}


def _fail(message: object, code: int) -> NoReturn:
    kind = "" if code == _INTERRUPTED else "error: "
    print(f"{kind}{' '.join(str(message).split())}", file=sys.stderr)
    saving = any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate())
    # A failed save would wait for minutes, and a computation may crash where it is cut off.
    if saving or code == _INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
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
        if _MODE.value == "compare":
            if _RUNS.value is None:
                raise ValueError("--runs is missing; --mode=compare takes --runs=runs/a,runs/b or a folder of runs")
            if _CONFIG.value or settings:
                raise ValueError("--mode=compare takes --runs, and no --config: runs are shown with their own settings")
        elif _RUNS.value is not None:
            raise ValueError(f"--runs goes with --mode=compare, not with --mode={_MODE.value}")
        elif not (_CONFIG.value or _WORKDIR.value):
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
    from scoreflow.runs import files
    from scoreflow.runs.errors import UserError

    path = files.local(name, "--config")
    if path.is_file():
        return path
    if name == path.stem and (shipped() / f"{name}.py").is_file():
        return shipped() / f"{name}.py"
    if path.suffix == ".py" or len(path.parts) > 1:
        more = ", only a folder" if path.is_dir() else ""
        if (shipped() / f"{path.stem}.py").is_file():
            more = f"; the shipped one is --config={path.stem}"
        raise UserError(f"--config={name}: there is no such file{more}")
    if path.with_suffix(".py").is_file():
        raise UserError(f"--config={name}: there is no such file; did you mean {name}.py?")
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
    beside = str(path.parent.resolve())  # files of its folder can be imported by their own names, too
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"{path.name} has no function get_config")
        if colon and not inspect.signature(module.get_config).parameters:
            raise UserError(f"{path.name} has no variants")
        config = module.get_config(variant) if colon else module.get_config()
    except Exception as error:  # whatever a file of the user's raises
        same = lambda frame: Path(frame.filename).resolve() == path.resolve()
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if same(frame)]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        where = f" (line {lines[-1]})" if lines else ""
        words = str(error.args[0]).replace("\n", ". ") if error.args else type(error).__name__
        words = words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
        raise UserError(f"--config={argument}{where}: {words}") from error
    finally:
        sys.path.remove(beside)
    if not callable(getattr(config, "to_dict", None)):
        raise UserError(f"--config={argument}: get_config returns {type(config).__name__}; it must return the config")
    return config


def _show(config: Any) -> None:
    """Prints every setting: a mark where it differs from the default, its value and its meaning, by section.

    One a line, wrapped where a person's terminal is narrower.
    """
    from scoreflow.configure.overrides import flatten, known
    from scoreflow.runs import report

    values = flatten(config.to_dict())
    names = {name.removesuffix(".name"): value for name, value in values.items() if name.endswith(".name")}
    sections: dict[str, list[tuple[str, ...]]] = {}
    for name, row in known(names).items():
        mark = "*" if values[name] != row.default else " "
        rows = sections.setdefault(name.rpartition(".")[0], [])
        rows.append((mark, f"{name} = {values[name]!r}", row.meaning))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    report.say("\n\n".join(report.table(rows, columns) for rows in sections.values()))
    report.say("\n* differs from the default")


def _config(mode: str) -> tuple[str, Path, Any]:
    """The config's name, the folder of the run, and the complete config.

    A run is used with the settings that it was made with. A config file counts where it says how a run is used, and the
    command line always.
    """
    from scoreflow import configure
    from scoreflow.runs import files, report, workdir
    from scoreflow.runs.errors import UserError

    name = _CONFIG.value
    folder = files.local(_WORKDIR.value, "--workdir") if _WORKDIR.value else workdir.default(str(name))
    if folder.is_file():
        raise UserError(f"--workdir={folder} is a file; it must be a folder, or a new name")
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={str(folder)!r}: checkpoints need a path in UTF-8; choose another name") from None
    stored = workdir.stored_settings(folder)
    if name and not (stored and mode in ("eval", "sample")):
        return name, folder, configure.resolve(load_config(name), _overrides)
    if not stored and workdir.checkpoints(folder).is_dir():
        raise UserError(f"--workdir={folder} has no config.json; give the --config that it was trained with")
    if not stored:
        raise UserError(f"--workdir={folder} holds no trained run yet; to train one there, give --config")
    config, apart = configure.of_run(stored, _overrides, load_config(name) if name else None)
    if apart:
        more = f" and {len(apart) - 3} more" if apart[3:] else ""
        report.warn(f"the settings of the run in {folder} are used where {name} differs: {'; '.join(apart[:3])}{more}")
    return workdir.stored_name(folder), folder, config


def _complete(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run by dotted name, those that it leaves out at their defaults; without unknown ones."""
    from scoreflow import configure
    from scoreflow.runs import workdir

    return workdir.flatten(configure.of_run(stored)[0].to_dict())


def _open(folder: Path) -> Any:
    """The experiment of the run in a folder."""
    from scoreflow import configure
    from scoreflow.runs import workdir

    config, _ = configure.of_run(workdir.stored_settings(folder))
    return configure.experiment(config, workdir.stored_name(folder), workdir.stored_data(folder))


def _compare() -> None:
    """`--mode=compare`, whose runs have settings of their own."""
    from scoreflow import compare
    from scoreflow.comparison import read
    from scoreflow.runs import files

    folders = read.folders(_RUNS.value or "")
    given = files.local(_WORKDIR.value, "--workdir") if _WORKDIR.value else None
    compare.compare(folders, compare.place(folders, given), complete=_complete, open_run=_open)


def _way_on(mode: str, folder: Path | None) -> str:
    """What the same command would do after it was interrupted."""
    from scoreflow.runs import checkpoint, workdir

    if mode == "eval":
        return "the same command goes on after the last batch that was finished"
    if mode != "train":
        return "nothing is lost but this command's own work"
    step = None if folder is None else checkpoint.latest(workdir.checkpoints(folder))
    return "no step is saved yet" if step is None else f"step {step} is saved, from which the same command goes on"


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # jax and matplotlib report their searches for devices and fonts

    import jax

    from scoreflow import configure, data, evaluate, own, planner, sample, train
    from scoreflow.runs import caches, files, parallel, watch, workdir
    from scoreflow.runs.errors import RunError, UserError

    caches.enable_compilation_cache()
    mode, folder = _MODE.value, None
    try:
        if mode == "show":
            _show(configure.check(_config(mode)[2]))
            return
        if mode == "compare":
            _compare()
            return
        parallel.initialize()
        name, folder, config = _config(mode)
        watch.begin()
        if mode == "plan":  # which needs no features, so those of the config need not fit the data
            config = configure.resolve(config, {"eval.features": "pixels"})
        if mode == "train" and config.data.name == "folder":
            files.apart(folder, config.data.path)
        alone = mode == "sample" and config.sampling.inpaint == "none"  # then the data may be elsewhere
        experiment = configure.experiment(config, name, workdir.stored_data(folder) if alone else {})
        facts = {"defaults": configure.flat_defaults(config), "data": data.describe(experiment.data)}
        workdir.check(folder, experiment.config, resume=mode == "train", **facts)
        if mode == "train":
            train.train(experiment, configure.train_options(config, experiment), folder)
        elif mode == "eval":
            evaluate.evaluate(experiment, configure.evaluation(config), folder)
        elif mode == "stats":
            evaluate.prepare(experiment, configure.evaluation(config), folder)
        elif mode == "plan":
            planner.plan(experiment, configure.planner_options(config), folder)
        else:
            sample.sample(experiment, configure.sample_options(config), folder)
        watch.finished()
    except UserError as error:
        _fail(error, 2)
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except MemoryError as error:
        _fail(f"out of memory ({error or 'no more can be had'}); {_SMALLER}", 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail(f"out of memory ({str(error).splitlines()[0]}); {_SMALLER}", 1)
    except Exception as error:
        if words := own.blame(error):
            _fail(words, 2)
        raise
    except KeyboardInterrupt:
        _fail(f"interrupted; {_way_on(mode, folder)}", _INTERRUPTED)


def run(doc: str | None = None) -> None:
    """Parses the command line and runs a mode; `doc` is what --help begins with."""
    sys.modules["__main__"].__doc__ = (doc or __doc__ or "") + COMMON
    try:
        app.run(_main, flags_parser=_parse)
    except SystemExit as end:  # absl ends with 1 after it has printed what was asked for
        raise SystemExit(0 if _HELP.intersection(sys.argv[1:]) else end.code) from None


def command() -> None:
    """The `scoreflow` command of an installed package."""
    run()


if __name__ == "__main__":
    run()
