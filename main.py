"""Trains, evaluates and samples score-based generative models.

python main.py --config=configs/vp_digits.py --mode=train
python main.py --config=configs/vp_digits.py --mode=eval
python main.py --config=configs/vp_digits.py --mode=sample --config.sampling.num=100
python main.py --config=configs/vp_digits.py --mode=plan
python main.py --config=configs/vp_cifar10.py --mode=stats
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file under configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name of the config> by default.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "sample", "plan", "stats"], "What to do.")


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong one ends in one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ValueError(f"{rest[1]} is not a flag; settings are given as --config.section.key=value")
        if not flags.FLAGS["config"].present:
            raise ValueError("--config is missing; try --config=configs/vp_digits.py")
        path = flags.FLAGS["config"].config_filename.partition(":")[0]
        if not Path(path).is_file():
            raise ValueError(f"--config={path}: there is no such file")
        return rest
    except Exception as error:  # absl and ml_collections raise many types here, all of them about the command line
        lines = str(error).strip().splitlines()
        _fail(f"{lines[0]} {lines[-1]}" if "Traceback" in str(error) else error, 2)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # jax and matplotlib tell of their searches for devices and fonts

    from scoreflow import configure as build
    from scoreflow import evaluators as evaluate
    from scoreflow import planner as plan
    from scoreflow import sample, train
    from scoreflow.runs import caches, parallel, workdir
    from scoreflow.runs.errors import RunError, UserError

    caches.enable_compilation_cache()
    config, name = _CONFIG.value, flags.FLAGS["config"].config_filename
    folder = Path(_WORKDIR.value or workdir.default(name))
    try:
        parallel.initialize()
        experiment = build.build(config, name)
        workdir.claim(folder, experiment.config, resume=_MODE.value == "train")
        if _MODE.value == "train":
            train.train(experiment, build.train_plan(config), folder)
        elif _MODE.value == "eval":
            evaluate.evaluate(experiment, build.eval_plan(config, experiment.source, caches.folder()), folder)
        elif _MODE.value == "stats":
            evaluate.prepare(experiment, build.eval_plan(config, experiment.source, caches.folder()))
        elif _MODE.value == "plan":
            plan.plan(experiment, build.planning(config), folder)
        else:
            sample.sample(experiment, build.sample_plan(config, experiment.source), folder)
    except UserError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
