"""What the experiments share: flags, results kept in files, the cost of a training step, figures and reports."""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import evaluate, train
from scoreflow.dispatch import batches_of, dispatch_of
from scoreflow.evaluate import Evaluation
from scoreflow.experiment import INIT, Experiment
from scoreflow.runs import caches, parallel, report
from scoreflow.step import init_state
from scoreflow.types import Params

SMALL_MLP = {"name": "mlp", "width": 32, "depth": 2, "dropout": 0.0, "dtype": "float32"}
"""Settings of the network of a --fast run."""


def arguments(doc: str, name: str, **choices: tuple[str, ...]) -> argparse.Namespace:
    """--fast, --out (a folder, runs/experiments/<name> unless it is given) and a flag for each of `choices`."""
    caches.enable_compilation_cache()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="within a minute, to see that it runs; proves nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments") / name, help="folder for what it writes")
    for flag, values in choices.items():
        parser.add_argument(f"--{flag}", choices=values, default=values[0])
    return parser.parse_args()


def measure(
    experiment: Experiment, evaluation: Evaluation, params: Params, out: Path | None = None, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The metrics that `--mode=eval` would write, by section; pictures go to `out`.

    Args:
      experiment: the model and its data.
      evaluation: what is measured.
      params: averaged parameters.
      out: folder for pictures; None for none.
      only: names of the evaluators to run; () for all that the evaluation's options switch on.
    """
    context = evaluation.context(experiment, params, out)
    return evaluate.measure(context, evaluation.evaluators, only=only).metrics


class StepCost(NamedTuple):
    """Of one compiled training step: `operations` and `memory` (temporary, bytes) in XLA's count, median `seconds`."""

    operations: float
    memory: int
    seconds: float


def step_cost(experiment: Experiment, options: train.TrainOptions, repeats: int = 10) -> StepCost:
    """Compiles and times the step: gradient, optimizer and average."""
    options = options._replace(steps=repeats + 2, steps_per_dispatch=1)
    batches = (batch for _, batch in batches_of(experiment, options, 0))
    state, seconds = init_state(experiment.init, options.optimizer, experiment.key(INIT)), []
    compiled = dispatch_of(experiment, options).lower(state, next(batches)).compile()
    for batch in batches:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - began)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return StepCost(compiled.cost_analysis()["flops"], memory, float(np.median(seconds[1:])))


def with_error(values: list[float], digits: int = 3) -> str:
    """Mean of a number for each seed in `digits` digits, and its standard error where there is more than one."""
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1g}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}g}{error}"


def memo(path: Path, key: str, compute: Callable[[], Any]) -> Any:
    """compute(), or what it returned when it was first asked for under this key: a killed experiment goes on.

    Args:
      path: a JSON file of one object, key to value.
      key: of the result; must name everything that it depends on.
      compute: () -> something that JSON can hold.
    """
    records = json.loads(path.read_text()) if path.exists() else {}
    if key not in records:
        report.write_json(path, records | {key: compute()})
    return json.loads(path.read_text())[key]


def memo_params(path: Path, experiment: Experiment, compute: Callable[[], Params]) -> Params:
    """compute(), parameters of `experiment`, or what it returned when it was first asked for with this .npz file."""
    template = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(template)
    if not path.exists():
        computed = jax.tree.leaves(compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name("scratch.npz")
        np.savez(scratch, *computed)
        scratch.replace(path)
    with np.load(path) as content:
        return tree.unflatten([jnp.asarray(content[f"arr_{i}"]) for i in range(len(leaves))])


@contextlib.contextmanager
def panels(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    """The axes [rows, columns] of a figure of a size in inches, written to `path` when they are drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(rows, columns, squeeze=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def finish(out: Path, lines: list[str], name: str = "report.txt") -> None:
    """Prints a report and writes it to a file in `out`, with the versions behind it."""
    text = "\n".join([*lines, "", f"{parallel.describe()}, jax {jax.__version__}"])
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text + "\n")
    report.say(text)
    report.say(f"wrote {out}/")
