"""Log-densities for evaluators: by the multistep rule, whose nodes a pilot chooses, or by the adaptive solver."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.data import UNREADABLE
from scoreflow.evaluators.context import Context, Examples
from scoreflow.likelihood import LogProb, multistep, nodes, ode
from scoreflow.likelihood import gaussian as gaussians
from scoreflow.likelihood.gaussian import Gaussian
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import files, parallel, report
from scoreflow.types import Key

_TIGHTER = 100.0  # how much smaller the tolerance of the adaptive solve is that measures another's error
_FITTED = 50_000  # examples that the Gaussian is fitted to, at most
_AT_A_TIME = 500
_VERSION = 1  # of how nodes are chosen, and of what is kept of them
_SEED = 2**20  # beyond the draws of test examples

LogDensity = Callable[..., LogProb]
"""solve(name, keys [N], x [N, ...], cond [N] or None, *, finer=False) -> LogProb of host arrays; results are kept by
name. With `finer` it is a solve whose own error is much smaller, to measure that of the other."""


class Method(NamedTuple):
    """How densities are computed.

    Attributes:
      solve: see `LogDensity`.
      pilot: evaluations that the pilot took, for all its examples together; 0 for none.
    """

    solve: LogDensity
    pilot: int = 0


def make_log_prob(context: Context) -> Method:
    """The solver of the options; the multistep rule is prepared here."""
    return _adaptive(context) if context.options.solver == "adaptive" else _multistep(context)


def _adaptive(context: Context) -> Method:
    model, options = context.experiment.model, context.options

    def solve(inputs, keys, x, cond):
        params, rtol, atol = inputs
        solution = ode.log_prob(
            model.process,
            model.score(params),
            model.terminal(params),
            keys,
            x,
            cond,
            t_min=context.start,
            divergence=options.divergence,
            rtol=rtol,
            atol=atol,
            max_steps=options.max_steps,
            in_log_snr=options.clock == "log_snr",
        )
        return solution._replace(last=None)

    run = context.in_batches(solve)

    def at_tolerance(name: str, keys: Key, x: Any, cond: Any = None, *, finer: bool = False) -> LogProb:
        tolerances = (jnp.float32(each / (_TIGHTER if finer else 1.0)) for each in (options.rtol, options.atol))
        return run(name, (context.params, *tolerances), keys, x, cond)

    return Method(at_tolerance)


class Chosen(NamedTuple):
    """What a pilot has chosen, as arrays.

    Attributes:
      t: nodes, [K + 1].
      order: of the rule, [].
      pilot: evaluations that the pilot took, [].
    """

    t: np.ndarray
    order: np.ndarray
    pilot: np.ndarray


def _multistep(context: Context) -> Method:
    model = context.experiment.model

    def solve(inputs, keys, x, cond):
        params, gaussian, rule = inputs
        score, terminal, divergence = model.score(params), model.terminal(params), context.options.divergence
        solution = multistep.log_prob(
            model.process, score, terminal, keys, x, cond, gaussian=gaussian, rule=rule, divergence=divergence
        )
        return solution._replace(last=None)

    gaussian, chosen = _kept(context, lambda: _choose(context, solve))
    run = context.in_batches(solve)
    rules = {finer: _rule(context, chosen, finer=finer) for finer in (False, True)}

    def by_rule(name: str, keys: Key, x: Any, cond: Any = None, *, finer: bool = False) -> LogProb:
        return run(name, (context.params, gaussian, rules[finer]), keys, x, cond)

    return Method(by_rule, int(chosen.pilot))


def _rule(context: Context, chosen: Chosen, *, finer: bool) -> multistep.Rule:
    process = context.experiment.model.process
    t = nodes.refined(process, chosen.t) if finer else chosen.t
    return multistep.rule_at(process, t, multistep.ORDER if finer else int(chosen.order))


def _kept(context: Context, make: Callable[[], tuple[Gaussian, Chosen]]) -> tuple[Gaussian, Chosen]:
    """What was chosen in this evaluation's folder before; where several processes evaluate, all choose again."""
    path = None if context.folder is None or parallel.processes()[0] > 1 else context.folder / "nodes.npz"
    if path is not None and path.is_file():
        try:
            with np.load(path) as held:
                gaussian, chosen = ([held[name] for name in kind._fields] for kind in (Gaussian, Chosen))
                if held["version"] == _VERSION:
                    return Gaussian(*map(jnp.asarray, gaussian)), Chosen(*chosen)
        except (KeyError, *UNREADABLE):
            report.warn(f"{path} is damaged: the nodes are chosen again")
    gaussian, chosen = make()
    if path is not None:
        content: dict[str, Any] = {"version": _VERSION, **gaussian._asdict(), **chosen._asdict()}
        with files.replacing(path) as scratch, open(scratch, "wb") as file:
            np.savez(file, **content)
    return gaussian, chosen


def fit_gaussian(context: Context) -> Gaussian:
    """The Gaussian of x_0, from training data as a density sees them."""
    experiment, train = context.experiment, context.experiment.data.train
    count, d = min(len(train.x), _FITTED), int(np.prod(experiment.space.shape))
    classes = experiment.data.num_classes if experiment.model.conditional else 1

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for i in range(0, count, _AT_A_TIME):
            batch = context.points(train, np.arange(i, min(i + _AT_A_TIME, count)), _SEED + i)
            yield batch.x.reshape(len(batch.x), -1), batch.cond

    process, start = experiment.model.process, context.start
    fitted = gaussians.fit(rows, d, classes=classes)
    return gaussians.undiffused(fitted, process.alpha(start), process.sigma(start))


def _choose(context: Context, solve: Callable) -> tuple[Gaussian, Chosen]:
    """Fits the Gaussian and lets a pilot of training examples choose the nodes for the error that is asked for."""
    model, options = context.experiment.model, context.options
    process, gaussian, examples = model.process, fit_gaussian(context), _pilot_examples(context)
    count, size = len(examples.x), parallel.rounded_up(len(examples.x))
    t = nodes.even(process, context.start, float(process.horizon))

    def follow(inputs, keys, x, cond):
        params, gaussian, rule = inputs
        probe, score = ode.probes(keys, x), model.score(params)
        path = multistep.follow(
            process, score, gaussian, rule, x, cond, probe=probe, divergence=options.divergence, keep=True
        )
        logp = multistep.density_of(path, model.terminal(params), gaussian.of(cond, len(x)), rule).logp
        return logp, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), path.nodes)

    def rule_at(t: np.ndarray, order: int) -> tuple:
        return context.params, gaussian, multistep.rule_at(process, t, order)

    data = examples.keys, examples.x, examples.cond
    truth, met = context.in_batches(follow, size)("pilot", rule_at(t, multistep.ORDER), *data)
    finite = np.isfinite(truth)
    met = jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1)[:, finite], met)
    asked = options.error * float(np.std(truth[finite])) / np.sqrt(context.num_test)
    run = context.in_batches(solve, size)

    def measure(path: np.ndarray, order: int) -> Estimate:
        inputs = rule_at(nodes.padded(t[path]), order)
        logp = run(f"pilot-{order}-{len(path)}", inputs, *data).logp
        return mean_estimate((np.asarray(logp, np.float64) - truth)[finite])

    choice = nodes.choose(multistep.q_at(process, t), met, measure, asked)
    if np.isnan(choice.error.value):
        most = f"no {max(nodes.COUNTS)} nodes were good enough on {count} training examples, so {len(t)} are used"
        report.warn(f"{most}; raise eval.error or eval.pilot, or set eval.solver = adaptive")
    evaluations = (len(t) + choice.evaluations) * count
    return gaussian, Chosen(t[choice.nodes], np.asarray(choice.order), np.asarray(evaluations))


def _pilot_examples(context: Context) -> Examples:
    train = context.experiment.data.train
    count = min(context.options.pilot, len(train.x))
    return context.points(train, np.linspace(0, len(train.x) - 1, count).astype(int), _SEED - 1)
