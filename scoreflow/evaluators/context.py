"""What every evaluator is given, and what it gives back.

An evaluator is a function of a `Context` whose options are keyword-only settings: it measures one thing about a trained
model and returns `Results`, or None where its options switch it off. A new measurement is one file here and one row of
the catalogue.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import dequantise, divergence
from scoreflow.data import Split
from scoreflow.data.fetch import default_dir
from scoreflow.divergence import Estimator
from scoreflow.evaluators.examples import Rule, rule_of
from scoreflow.evaluators.features import FeatureName
from scoreflow.experiment import EVALUATE, Experiment, Model
from scoreflow.metrics import Estimate
from scoreflow.models.dequantiser import NoiseFlow
from scoreflow.runs import parallel
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Check, Count, CountOrZero, Flag, Key, NonNegative, Params, Positive, Text


class EvalOptions(NamedTuple):
    """What several evaluators share.

    Attributes:
      likelihood: Evaluate densities at all; otherwise samples alone.
      t_min: Time at which the likelihood's ODE begins; 0 for that of training.
      dequantization: How integer test data are dequantized; must be chosen for them, since the density depends on it.
      num_test: Test examples that are scored; 0 for all.
      batch_size: Examples per call, over all devices.
      divergence: Divergence of the probability flow: hutchinson (one random probe) or exact (few dimensions).
      solver: Of the probability flow: multistep, with nodes that are chosen for `error`, or adaptive, to a tolerance.
      error: The multistep solver's own error that is asked for, in standard errors of the mean over the test examples.
      pilot: Training examples on which the multistep solver's nodes are chosen.
      rtol: Relative tolerance of the adaptive solver, whose own error is printed with the standard error.
      atol: Absolute tolerance of the adaptive solver.
      max_steps: Steps after which the solver gives an example up.
      clock: The adaptive solver's own time.
      features: Feature function of sample metrics: pixels (as numbers from 0 to 1), classifier (a small
        convolutional one, fitted to the training split), digits (a perceptron, likewise), or inception (the network of
        the FID, whose weights must lie in downloads/ of the data folder; without them these metrics are left out).
      neighbors: Number of neighbors of precision and recall.
      reference: An `.npz` file of mu and sigma, as pytorch-fid, clean-fid and EDM write it, to which the Frechet
        distance is taken; empty for the training data.
      samples: Samples made elsewhere, in a folder of images, an `.npy` or an `.npz` file, which are measured instead of
        the model; empty for the model.
      flow: the flow for variational dequantization, whose parameters are params[DEQUANTISER].
    """

    likelihood: Flag = True
    t_min: NonNegative = 0.0
    dequantization: Literal["", "uniform", "truncated_normal", "variational", "none"] = ""
    num_test: CountOrZero = 0
    batch_size: Count = 120
    divergence: Estimator = divergence.hutchinson
    solver: Literal["multistep", "adaptive"] = "multistep"
    error: Positive = 0.1
    pilot: Annotated[int, Check(int, lambda v: v >= 2, "a whole number, 2 or above")] = 32
    rtol: Positive = 1e-3
    atol: Positive = 1e-3
    max_steps: Count = 1000
    clock: Literal["time", "log_snr"] = "time"
    features: FeatureName = "pixels"
    neighbors: Count = 3
    reference: Text = ""
    samples: Text = ""
    flow: NoiseFlow | None = None


class Table(NamedTuple):
    """A table of a report: a title, rows of words (the first is the head where there are three columns), and notes."""

    title: str
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


class Results(NamedTuple):
    """What an evaluator found.

    Attributes:
      metrics: for `metrics.json`, by section: {section: {name: Estimate, number or list}}.
      tables: what is printed.
      examples: for `examples.npz`, by name: a number for each of the test examples that are scored, [N] float64; NaN
        where there is none.
    """

    metrics: dict[str, Any]
    tables: tuple[Table, ...] = ()
    examples: Mapping[str, np.ndarray] = {}


class Examples(NamedTuple):
    """Examples as a density sees them: a key for each, continuous `x`, `log_q` of the dequantization noise, labels."""

    keys: jax.Array
    x: np.ndarray
    log_q: np.ndarray
    cond: np.ndarray | None

    def first(self, count: int) -> "Examples":
        """The first `count` of them."""
        cond = None if self.cond is None else self.cond[:count]
        return Examples(self.keys[:count], self.x[:count], self.log_q[:count], cond)


class Context(NamedTuple):
    """A trained model and how it is evaluated.

    Attributes:
      experiment: the model and its data.
      params: averaged parameters.
      options: what evaluators share.
      folder: where pictures go; None for none.
      cache_dir: where statistics of the training data's features are kept.
      data_dir: where the weights of published feature networks are looked for.
      rule: (params, key, data [N, ...] as stored) -> Dequantised; None where the data are continuous.
      partial: where finished batches are kept until all is done.
    """

    experiment: Experiment
    params: Params
    options: EvalOptions
    folder: Path | None
    cache_dir: Path
    data_dir: Path
    rule: Rule | None
    partial: PartialResults = NONE

    @property
    def model(self) -> Model:
        """The model for densities, whose network computes in float32: bfloat16 alone would be off by 0.01 bits/dim."""
        return self.experiment.model.in_float32()

    @property
    def start(self) -> float:
        """The time at which the likelihood's ODE begins."""
        return self.options.t_min or self.experiment.model.t_min

    @property
    def num_test(self) -> int:
        """Test examples that are scored."""
        total = len(self.experiment.data.test.x)
        return min(self.options.num_test, total) or total

    @property
    def unit(self) -> str:
        """Of densities: bits/dim of integer data, nats of continuous and of binary data."""
        return "bits/dim" if self.experiment.space.bins else "nats"

    @property
    def scale(self) -> float:
        """Nats in one unit."""
        size = int(np.prod(self.experiment.data.shape))
        return float(size * np.log(2.0)) if self.experiment.space.bins else 1.0

    def in_unit(self, logp: Any, log_q: Any) -> np.ndarray:
        """Negative log-densities in the unit, [N] float64, from log p and log q in nats."""
        logp, bins = np.asarray(logp, np.float64), self.experiment.space.bins
        size = int(np.prod(self.experiment.data.shape))
        return np.asarray(dequantise.bits_per_dim(logp, log_q, size, bins) if bins else log_q - logp)

    def examples(self, draw: int = 0, count: int = 0) -> Examples:
        """Test examples in the given draw of dequantization noise, or of latents; the first `count`, or 0 for all."""
        examples = self.points(self.experiment.data.test, slice(self.num_test), draw)
        return examples.first(count) if count else examples

    def points(self, split: Split, rows: Any, draw: int) -> Examples:
        """Rows of a split in the given draw."""
        key_noise, key_probe = jax.random.split(jax.random.fold_in(self.experiment.key(EVALUATE), draw))
        x, labeled = np.asarray(split.x[rows]), self.experiment.model.conditional
        keys = jax.random.split(key_probe, len(x))
        cond = split.label[rows] if labeled and split.label is not None else None
        if self.rule is None:
            return Examples(keys, x, np.zeros(len(x)), cond)
        point = self.rule(self.params, key_noise, jnp.asarray(x))
        return Examples(keys, np.asarray(point.x), np.asarray(point.log_q), cond)

    def in_batches(self, solve: Callable, size: int = 0) -> Callable:
        """run(name, params, keys [N], x [N, ...], cond [N] or None) -> what solve(params, ...) gives, as host arrays.

        In batches of `size`, or of the options' size, or the next that the devices divide; those that are among the
        partial results of this name are not solved again.
        """
        size = parallel.rounded_up(size or self.options.batch_size)
        mapped = parallel.map_devices(solve, broadcast=(0,))

        def run(name: str, params: Any, keys: Key, x: Any, cond: Any = None) -> Any:
            def batch(i):
                inputs = jax.tree.map(lambda leaf: leaf[i : i + size], (keys, x, cond))
                count = len(inputs[1])
                padded = jax.tree.map(lambda leaf: leaf[np.arange(size) % count], inputs)

                def make():
                    result = parallel.gather(mapped(params, *parallel.shard(padded)))
                    return jax.tree.map(lambda leaf: leaf[:count], result)

                return self.partial.get(f"{name}-{i}", lambda: jax.eval_shape(solve, params, *padded), make)

            batches = [batch(i) for i in range(0, len(x), size)]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)

        return run


def context(
    experiment: Experiment,
    params: Params,
    options: EvalOptions,
    cache_dir: Path,
    *,
    folder: Path | None = None,
    data_dir: Path | None = None,
    partial: PartialResults = NONE,
) -> Context:
    """A context for evaluators; see `Context` for the arguments."""
    start = options.t_min or experiment.model.t_min
    rule = rule_of(experiment, options.dequantization, start, options.flow, options.batch_size)
    return Context(experiment, params, options, folder, cache_dir, data_dir or default_dir(), rule, partial)


class Evaluator(Protocol):
    """Measures one thing; its options are bound."""

    def __call__(self, context: Context) -> Results | None: ...


Evaluators = Mapping[str, Evaluator]
"""By name, in the order in which they run."""


def in_words(value: Any) -> str:
    """A number, an estimate with its standard error, or a word."""
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{value.value:.4g} ± {value.stderr:.2g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_of(title: str, metrics: Mapping[str, Any], *notes: str) -> Table:
    """A table of two columns: names and values."""
    return Table(title, [(name.replace("_", " "), in_words(value)) for name, value in metrics.items()], notes)
