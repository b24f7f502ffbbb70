"""What a training runs: batches on the devices, and compiled dispatches of several steps."""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scoreflow import data
from scoreflow.experiment import TRAIN, Experiment
from scoreflow.models import LATENT
from scoreflow.optimizers import optimizer as default_optimizer
from scoreflow.runs import parallel
from scoreflow.step import TrainState, compile_dispatch, make_train_step

if TYPE_CHECKING:
    from scoreflow.train import TrainOptions


def dispatch_of(experiment: Experiment, options: "TrainOptions", layout: object = None) -> Callable:
    """The jitted dispatch of an experiment; `layout` as in `compile_dispatch`."""
    optimizer = options.optimizer or default_optimizer(options.steps)
    keywords = {"ema_decay": options.ema_decay, "followed": (LATENT,)}
    keywords |= {"grad_accum": options.grad_accum, "skip": options.skip}
    step = make_train_step(experiment.objective, optimizer, experiment.key(TRAIN), **keywords)
    return compile_dispatch(step, options.steps_per_dispatch, layout)


def batches_of(experiment: Experiment, options: "TrainOptions", start: int) -> Iterator[tuple[int, dict]]:
    """(first step, batches of one dispatch on the devices), for every dispatch from `start` on.

    Dispatches end at multiples of `steps_per_dispatch`, and the last one at the last step; so the first and the last
    may have fewer steps. Each process reads its own share of the examples.
    """
    split, keywords = experiment.data.train, {"flip": options.flip}

    def make(first: int, count: int, rows: slice) -> dict:
        numbers = range(first, first + count)
        few = [data.batch(split, experiment.seed, i, options.batch_size, rows=rows, **keywords) for i in numbers]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *few)

    step, most = start, options.steps_per_dispatch
    while step < options.steps:
        size = min(most - step % most, options.steps - step)
        yield step, parallel.shard_rows(functools.partial(make, step, size), options.batch_size, axis=1)
        step += size


class Dispatcher:
    """(state, batches of one dispatch) -> (state, metrics), compiled for every number of steps that comes.

    Args:
      experiment, options, layout: as for `dispatch_of`.
      say: is told the memory of the first program.
    """

    def __init__(
        self,
        experiment: Experiment,
        options: "TrainOptions",
        layout: object = None,
        say: Callable[[str], None] = lambda words: None,
    ):
        self._of = lambda **changes: dispatch_of(experiment, options._replace(**changes), layout)
        self._accumulates, self._say = options.grad_accum > 1, say
        self._functions: dict[int, Any] = {}
        self._compiled: dict[int, Callable] = {}
        self.memory: parallel.Memory | None = None  # of the first program

    def _function(self, size: int) -> Any:
        if size not in self._functions:
            self._functions[size] = self._of(steps_per_dispatch=size)
        return self._functions[size]

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        if (size := len(batch["x"])) not in self._compiled:
            if self.memory is None:
                self._say("compiling the training step")
            self._compiled[size], memory = parallel.compile_for(self._function(size), state, batch)
            if self.memory is None:
                self.memory = memory
                self._say(f"memory of each device: {memory}")
        return self._compiled[size](state, batch)

    def operations(self, state: TrainState, batch: dict) -> float | None:
        """Of one step on a whole batch, in XLA's count; None where the platform does not count. Takes no step.

        XLA counts a loop as one pass, so that several steps in a dispatch count as one. Microbatches would, too.
        """
        if not self._accumulates:
            return parallel.operations(self._function(len(batch["x"])), state, batch)
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), batch)
        return parallel.operations(self._of(steps_per_dispatch=1, grad_accum=1), state, one)
