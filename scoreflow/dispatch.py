"""How a training is done, and what it runs: batches on the devices, and compiled dispatches of several steps."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax

from scoreflow import data
from scoreflow.begin import WarmStart
from scoreflow.experiment import TRAIN, Experiment
from scoreflow.models import LATENT
from scoreflow.optimizers import optimizer as default_optimizer
from scoreflow.runs import parallel
from scoreflow.step import TrainState, compile_dispatch, make_train_step
from scoreflow.types import Check, Count, CountOrZero, Flag, Fraction, Params

Measure = Callable[[Params], float]
"""A number for averaged parameters, of which the lower is the better.

Where it also has `depends_on`, plain values by name, the best checkpoint of a run is chosen anew when they change.
"""

_MEASURES = ("validation", "frechet")
_BEST = "a tuple of measures: " + ", ".join(_MEASURES)


class TrainOptions(NamedTuple):
    """How to train. Intervals are in steps, and take effect at the end of a dispatch.

    Attributes:
      steps: Number of optimizer steps; 0 only fits what needs no steps.
      batch_size: Examples per step, over all devices and microbatches.
      grad_accum: Microbatches that a batch is cut into, to save memory.
      steps_per_dispatch: Steps inside one compiled program, which saves time where a step is short; all intervals
        must be multiples of it.
      fsdp: Each device holds a share of parameters, averages and moments; otherwise each holds all of them.
      ema_decay: Decay of the averaged parameters that evaluation and sampling use.
      skip: Steps in a row that may be skipped because they are not finite; 0 stops at the first.
      log_every: Steps between lines of metrics.jsonl; 0 for none but the last.
      validate_every: Steps between validations; 0 for none but the last.
      checkpoint_every: Steps between checkpoints; 0 for none but the last.
      sample_every: Steps between sample grids; 0 for none but the last.
      keep: Number of newest checkpoints that are kept.
      pictures: Draw samples, their paths and the loss by log-SNR when the run ends.
      best: Measures whose best checkpoint is kept as well: validation (the loss on test data), frechet (of samples).
      optimizer: the optax transformation; None for `optimizers.optimizer` at its defaults.
      flip: whether training images are mirrored at random.
      num_samples: images in a sample grid, which has at most 400.
      sample_batch: examples per sampling call.
      warm_start: the run that training begins with; None for fresh parameters.
      measures: by name, experiment -> a measure for `best`, besides `validation`.
    """

    steps: CountOrZero = 1000
    batch_size: Count = 128
    grad_accum: Count = 1
    steps_per_dispatch: Count = 1
    fsdp: Flag = False
    ema_decay: Fraction = 0.999
    skip: CountOrZero = 0
    log_every: CountOrZero = 20
    validate_every: CountOrZero = 200
    checkpoint_every: CountOrZero = 500
    sample_every: CountOrZero = 0
    keep: Count = 3
    pictures: Flag = True
    best: Annotated[tuple[str, ...], Check(tuple, lambda v: set(v) <= set(_MEASURES), _BEST)] = ()
    optimizer: optax.GradientTransformation | None = None
    flip: bool = False
    num_samples: int = 100
    sample_batch: int = 100
    warm_start: WarmStart | None = None
    measures: Mapping[str, Callable[[Experiment], Measure]] = {}


def dispatch_of(experiment: Experiment, options: TrainOptions, layout: object = None) -> Callable:
    """The jitted dispatch of an experiment; `layout` as in `compile_dispatch`."""
    optimizer = options.optimizer or default_optimizer(options.steps)
    keywords = {"ema_decay": options.ema_decay, "followed": (LATENT,)}
    keywords |= {"grad_accum": options.grad_accum, "skip": options.skip}
    step = make_train_step(experiment.objective, optimizer, experiment.key(TRAIN), **keywords)
    return compile_dispatch(step, options.steps_per_dispatch, layout)


def batches_of(experiment: Experiment, options: TrainOptions, start: int) -> Iterator[tuple[int, dict]]:
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
        options: TrainOptions,
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
