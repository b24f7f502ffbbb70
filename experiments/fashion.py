"""All five lines of work on Fashion-MNIST, and compositions of them: trained, evaluated and compared on one page.

    apt-get install dataset-fashion-mnist
    python -m experiments.fashion                            # hours on a CPU; the same command goes on
    python -m experiments.fashion --only base mixture qc     # some of the runs, and those that they begin with
    python -m experiments.fashion --budget=15 --seeds=3

Every run is a config of `configs/fashion_*.py`, trained and evaluated by the commands that a person would give, in the
folder runs/experiments/fashion/<name>. With `--budget` a run is trained for as many steps as fit into so many minutes
on this machine, at most those of its config. `--seeds` repeats every run with other seeds; a run begins with the one of
its own seed. `--full` takes the variants for a GPU. Further settings, such as `--config.eval.num_test=500`, go to every
run. In the end `--mode=compare` writes compare.html, compare.md and compare.json. `--keep=FOLDER` copies what that mode
reads of each run, without checkpoints and pictures: docs/results/fashion was made so, and can be compared with runs of
your own.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import common
from experiments.keep import keep
from scoreflow import configure
from scoreflow.cli import load_config, take_settings
from scoreflow.runs import caches, report, workdir

_ROOT = Path(__file__).resolve().parent.parent


class Run(NamedTuple):
    """A config file with its variant, and the run whose parameters it begins with."""

    config: str
    begins: str = ""


RUNS = {
    "base": Run("fashion_vp"),
    "sub_vp": Run("fashion_processes:sub_vp_linear"),
    "ve": Run("fashion_processes:ve_geometric"),
    "edm": Run("fashion_processes:edm"),
    "straight": Run("fashion_processes:straight"),
    "order_1": Run("fashion_orders:1", "base"),
    "order_2": Run("fashion_orders:2", "base"),
    "order_3": Run("fashion_orders:3", "base"),
    "u": Run("fashion_conservative:u", "base"),
    "qc": Run("fashion_conservative:qc", "base"),
    "c": Run("fashion_conservative:c"),
    "short": Run("fashion_bridge:prior", "base"),
    "mixture": Run("fashion_bridge:mixture", "base"),
    "glow": Run("fashion_bridge:glow", "base"),
    "dequantizer": Run("fashion_dequantizer", "base"),
    "vae": Run("fashion_vae"),
    "latent": Run("fashion_latent:frozen", "vae"),
    "joint": Run("fashion_latent:joint", "vae"),
    "qc_order_2_mixture": Run("fashion_compositions:short", "base"),
    "latent_mixture": Run("fashion_latent:bridge", "vae"),
    "edm_order_3": Run("fashion_compositions:edm", "edm"),
}
_FAST = {
    "data.name": "digits",
    "training.steps": 4,
    "training.warmup": 1,
    "training.batch_size": 8,
    "eval.num_test": 20,
    "eval.draws": 1,
    "eval.solver": "adaptive",
    "eval.num_samples": 100,
    "eval.features": "pixels",
}


def needed(only: list[str]) -> list[str]:
    """The runs of these names and those that they begin with, in the order of `RUNS`; all where there is no name."""
    names = set(only or RUNS)
    for name in reversed(RUNS):
        if name in names and RUNS[name].begins:
            names.add(RUNS[name].begins)
    return [name for name in RUNS if name in names]


class Size(NamedTuple):
    """How large the runs of a study are.

    Attributes:
      full: whether they are those for a GPU.
      fast: whether they are tiny, and on other data.
      more: settings of all of them, by dotted name.
    """

    full: bool = False
    fast: bool = False
    more: Mapping[str, str] = MappingProxyType({})


def settings(name: str, seed: int, out: Path, size: Size) -> dict[str, object]:
    """What is set on the command line of a run, by name."""
    values: dict[str, object] = {"seed": seed} if seed else {}
    if RUNS[name].begins:
        values["init_from"] = folder_of(RUNS[name].begins, seed, out)
    if size.fast:
        config = config_of(name)
        values |= _FAST | ({"training.steps": 0, "training.warmup": 0} if config.training.steps == 0 else {})
        if config.latent.name != "alone":
            values |= {"model.name": "mlp", "model.width": 8, "model.depth": 1}
    return values | dict(size.more)


def folder_of(name: str, seed: int, out: Path) -> Path:
    """The folder of a run."""
    return out / (f"{name}-seed{seed}" if seed else name)


def path_of(name: str, full: bool = False) -> str:
    """The file of a run's config, and its variant."""
    file, _, variant = RUNS[name].config.partition(":")
    variant = "-".join(filter(None, (variant, "full" if full else "")))
    return f"{_ROOT / 'configs' / file}.py" + (f":{variant}" if variant else "")


def config_of(name: str, full: bool = False, **values: object) -> ConfigDict:
    """The config of a run, with settings by dotted name."""
    return configure.resolve(load_config(path_of(name, full)), {key: str(value) for key, value in values.items()})


def affordable(config: ConfigDict, name: str, minutes: float) -> int:
    """Steps of a run that fit into so many minutes here, at most those of its config."""
    experiment = configure.experiment(config, name)
    seconds = common.step_cost(experiment, configure.train_options(config, experiment)).seconds
    return max(1, min(config.training.steps, int(60.0 * minutes / seconds)))


def command(*flags: str) -> None:
    """Runs scoreflow's command line; what it prints goes to the terminal.

    Raises:
      SystemExit: if it fails, with its exit code.
    """
    code = subprocess.run([sys.executable, "-m", "scoreflow", *flags], cwd=_ROOT).returncode
    if code:
        sys.exit(code)


def run(name: str, seed: int, out: Path, size: Size, budget: float) -> Path:
    """Trains and evaluates, or goes on where that was interrupted; returns the folder."""
    folder, values = folder_of(name, seed, out), settings(name, seed, out, size)
    config = config_of(name, size.full, **values)
    stored = workdir.stored_settings(folder)
    if stored:
        values["training.steps"] = stored["training.steps"]
    elif budget and config.training.steps:
        values["training.steps"] = steps = affordable(config, name, budget)
        values["training.warmup"] = min(config.training.warmup, steps // 4)
    if stored and (folder / "eval" / str(stored["training.steps"]) / "metrics.json").is_file():
        report.say(f"{folder} is trained and evaluated already")
        return folder
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    where = f"--config={path_of(name, size.full)}", f"--workdir={folder}"
    command(*where, "--mode=train", *flags)
    command(*where, "--mode=eval", *(flag for flag in flags if flag.startswith(("--config.eval.", "--config.sampl"))))
    return folder


def main() -> None:
    caches.enable_compilation_cache()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/fashion"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--budget", type=float, default=0.0, help="minutes of training for each run; 0 for its steps")
    parser.add_argument("--seeds", type=int, default=1, help="how often each run is repeated")
    parser.add_argument("--keep", type=Path, help="a folder for the results of the runs")
    parser.add_argument("--full", action="store_true", help="the size for a GPU")
    parser.add_argument("--fast", action="store_true", help="tiny networks on 8x8 digits, to see that it runs")
    rest, more = take_settings(sys.argv[1:])
    args = parser.parse_args(rest)
    out, names, size = args.out.resolve(), needed(args.only), Size(args.full, args.fast, more)
    cases = [(name, seed) for seed in range(args.seeds) for name in names]
    folders = []
    for number, (name, seed) in enumerate(cases, 1):
        report.say(f"--- {name}, seed {seed}: run {number} of {len(cases)}")
        folders.append(run(name, seed, out, size, args.budget))
    if args.keep:
        keep(folders, args.keep)
    command("--mode=compare", f"--runs={','.join(map(str, folders))}")


if __name__ == "__main__":
    main()
