"""What the experiments share: flags, short training runs without a folder, and tables written as they are printed."""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import train
from scoreflow.experiment import Experiment
from scoreflow.runs import caches, parallel, report


def arguments(doc: str, name: str, **choices: tuple[str, ...]) -> argparse.Namespace:
    """--fast, --out (a folder, runs/experiments/<name> unless it is given) and a flag for each of `choices`."""
    caches.enable_compilation_cache()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="within a minute, to see that it runs; proves nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments") / name, help="folder for what it writes")
    for flag, words in choices.items():
        parser.add_argument(f"--{flag}", choices=words, default=words[0])
    return parser.parse_args()


def fit(experiment: Experiment, plan: train.TrainPlan, params=None):
    """Trains to `plan.steps` in memory, from `params` or from scratch; the averaged parameters. Writes nothing."""
    state = init_state(experiment.init, plan.optimizer, experiment.key(INIT))
    if params is not None:
        state = state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))
    dispatch, skipped = train.dispatch_of(experiment, plan), 0
    for first, batches in train.batches_of(experiment, plan, 0):
        state, metrics = dispatch(state, batches)
        skipped = step.check_finite(parallel.gather(metrics), first, allowed=plan.skip, before=skipped)
    return state.ema_params


class StepCost(NamedTuple):
    """Of one compiled training step: `operations` and `memory` (temporary, bytes) in XLA's count, median `seconds`."""

    operations: float
    memory: int
    seconds: float


def step_cost(experiment: Experiment, plan: train.TrainPlan, repeats: int = 10) -> StepCost:
    """Compiles and times the step: gradient, optimizer and average."""
    plan = plan._replace(steps=repeats + 2, steps_per_dispatch=1)
    batches = (batch for _, batch in train.batches_of(experiment, plan, 0))
    state, seconds = init_state(experiment.init, plan.optimizer, experiment.key(INIT)), []
    compiled = train.dispatch_of(experiment, plan).lower(state, next(batches)).compile()
    for batch in batches:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - began)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return StepCost(compiled.cost_analysis()["flops"], memory, float(np.median(seconds[1:])))


def with_error(values, digits: int = 3) -> str:
    """Mean of a number for each seed in `digits` digits, and its standard error where there is more than one."""
    values = np.asarray(values)
    error = f" +- {values.std(ddof=1) / np.sqrt(len(values)):.1g}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}g}{error}"


def memo(path: Path, key: str, compute):
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


def kept(path: Path, experiment: Experiment, compute):
    """compute(), parameters of `experiment`, or what it returned when it was first asked for with this .npz file."""
    template = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(template)
    if not path.exists():
        found = jax.tree.leaves(compute())
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name("scratch.npz")
        np.savez(scratch, *found)
        scratch.replace(path)
    with np.load(path) as content:
        return tree.unflatten([jnp.asarray(content[f"arr_{i}"]) for i in range(len(leaves))])


def finish(out: Path, lines: list[str], name: str = "report.txt") -> None:
    """Prints a report and writes it to a file in `out`, with the versions behind it."""
    text = "\n".join([*lines, "", f"{parallel.describe()}, jax {jax.__version__}"])
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text + "\n")
    report.say(text)
    report.say(f"wrote {out}/")
