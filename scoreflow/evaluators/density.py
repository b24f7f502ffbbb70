"""Log-densities for evaluators: by the multistep rule, whose nodes a pilot chooses, or by the adaptive solver."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from scoreflow import gaussian as gaussians
from scoreflow.data import UNREADABLE
from scoreflow.divergence import Divergence, hutchinson
from scoreflow.evaluators.context import Context, EvalOptions, Examples
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import LogProb, multistep, nodes, ode, pilot
from scoreflow.runs import files, parallel, report
from scoreflow.types import Key

_SETTINGS = {"adaptive": ("rtol", "atol", "max_steps", "clock"), "multistep": ("error", "pilot")}
_TIGHTER = 100.0  # how much smaller the tolerance of the adaptive solve is that measures another's error
_FITTED = 50_000  # examples that the Gaussian is fitted to, at most
_ENCODED = 5_000  # of them in the latent space of a VAE, which has fewer dimensions, and whose encoder takes its time
_AT_A_TIME = 500
_MEASURED = 120  # examples on which nodes are measured: a batch, but two to four times as many as the pilot has
_PILOTED = 16  # examples of the pilot at a time, each with a gradient
_VERSION = 4  # of how nodes are chosen, and of what is kept of them
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
    """The solver of the options; the multistep rule is prepared here. Settings of the other solver are named."""
    solver = context.options.solver
    for other, names in _SETTINGS.items():
        values = {name: getattr(context.options, name) for name in names if other != solver}
        unused = [f"eval.{name} = {v}" for name, v in values.items() if v != EvalOptions._field_defaults[name]]
        if unused:
            report.warn(f"not used: {', '.join(unused)}; they are settings of eval.solver = {other}")
    return _adaptive(context) if solver == "adaptive" else _multistep(context)


def _adaptive(context: Context) -> Method:
    model, options = context.model, context.options

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


def _runner(context: Context, divergence: Divergence) -> Callable:
    """run(name, (params, Gaussian, rule), keys, x, cond) -> LogProb, in batches."""
    model = context.model

    def solve(inputs, keys, x, cond):
        params, gaussian, rule = inputs
        score, terminal = model.score(params), model.terminal(params)
        known = {"gaussian": gaussian, "rule": rule, "divergence": divergence}
        return multistep.log_prob(model.process, score, terminal, keys, x, cond, **known)._replace(last=None)

    return context.in_batches(solve)


def _multistep(context: Context) -> Method:
    run = _runner(context, context.options.divergence)
    gaussian, chosen = choose(context, run if context.options.divergence is hutchinson else None)
    rules = {finer: _rule(context, chosen, finer=finer) for finer in (False, True)}

    def by_rule(name: str, keys: Key, x: Any, cond: Any = None, *, finer: bool = False) -> LogProb:
        return run(name, (context.params, gaussian, rules[finer]), keys, x, cond)

    return Method(by_rule, int(chosen.pilot))


def _rule(context: Context, chosen: Chosen, *, finer: bool) -> multistep.Rule:
    process = context.model.process
    t = nodes.refined(process, chosen.t) if finer else chosen.t
    return multistep.padded(multistep.rule_at(process, t, multistep.ORDER if finer else int(chosen.order)))


def choose(context: Context, run: Callable | None = None) -> tuple[Gaussian, Chosen]:
    """The Gaussian of the data, and nodes for the error that the options ask for.

    What was chosen in this evaluation's folder before is taken again; where several processes evaluate, all choose.

    Args:
      context: the model and how it is evaluated.
      run: densities by random probes, if they are compiled already. The pilot never takes the exact divergence: its
        gradient would need the memory of d networks.
    """
    gaussian = fit_gaussian(context)
    return gaussian, _kept(
        context, "nodes", Chosen, lambda: _choose(context, gaussian, run or _runner(context, hutchinson))
    )


def _kept(context: Context, name: str, kind: Any, make: Callable[[], Any]) -> Any:
    """A NamedTuple of arrays, as it was kept in this evaluation's folder before, or made now."""
    path = None if context.folder is None or parallel.processes()[1] > 1 else context.folder / f"{name}.npz"
    if path is not None and path.is_file():
        try:
            with np.load(path) as held:
                if held["version"] == _VERSION:
                    return kind(*(held[field] for field in kind._fields))
        except (KeyError, *UNREADABLE):
            report.warn(f"{path} is damaged: it is made again")
    made = make()
    if path is not None:
        content: dict[str, Any] = {"version": _VERSION, **made._asdict()}
        with files.replacing(path) as scratch, open(scratch, "wb") as file:
            np.savez(file, **content)
    return made


def fit_gaussian(context: Context) -> Gaussian:
    """The Gaussian of x_0, from training data as a density sees them; kept in this evaluation's folder."""
    return Gaussian(*map(jnp.asarray, _kept(context, "gaussian", Gaussian, lambda: _fit_gaussian(context))))


def _fit_gaussian(context: Context) -> Gaussian:
    experiment, train = context.experiment, context.experiment.data.train
    most = _FITTED if experiment.space.latent is None else _ENCODED
    count, d = min(len(train.x), most), int(np.prod(experiment.space.shape))
    classes = experiment.data.num_classes if experiment.model.conditional else 1

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for i in range(0, count, _AT_A_TIME):
            batch = context.points(train, np.arange(i, min(i + _AT_A_TIME, count)), _SEED + i)
            yield batch.x.reshape(len(batch.x), -1), batch.cond

    process, start = experiment.model.process, context.start
    fitted = gaussians.fit(rows, d, classes=classes)
    return gaussians.undiffused(fitted, process.alpha(start), process.sigma(start))


def _choose(context: Context, gaussian: Gaussian, run: Callable) -> Chosen:
    """Lets a pilot of training examples choose the nodes for the error that is asked for."""
    model, options = context.model, context.options
    process = model.process
    least = min(max(_MEASURED, 2 * options.pilot), 4 * options.pilot)
    few, many = pilot_examples(context), pilot_examples(context, least)
    t = nodes.even(process, context.start, float(process.horizon))

    def met(rule: multistep.Rule) -> multistep.Nodes:
        follow = context.in_batches(pilot.follower(process, model.score), _PILOTED)
        return pilot.nodes_first(follow("pilot", (context.params, gaussian, rule), few.keys, few.x, few.cond))

    def solve(name: str, rule: multistep.Rule) -> np.ndarray:
        return run(f"pilot-{name}", (context.params, gaussian, rule), many.keys, many.x, many.cond).logp

    asked = lambda logp: options.error * float(np.nanstd(logp)) / np.sqrt(context.num_test)
    words = f"choosing the solver's steps on {len(few.x)} training examples; as a rule this takes about a minute"
    with report.waiting(words):
        chosen = pilot.choose(process, t, met, solve, asked)
    if np.isnan(chosen.error.value):
        most, used = max(nodes.COUNTS), len(chosen.t)
        said = f"{most} nodes miss the error asked for, on {len(many.x)} training examples; {used} are used"
        report.warn(f"{said}; raise eval.error or eval.pilot, or set eval.solver = adaptive")
    return Chosen(chosen.t, np.asarray(chosen.order), np.asarray(chosen.evaluations))


def pilot_examples(context: Context, least: int = 0) -> Examples:
    """The pilot's training examples, at least as many as said where there are so many, evenly spread over the split."""
    train = context.experiment.data.train
    count = min(max(context.options.pilot, least), len(train.x))
    return context.points(train, np.linspace(0, len(train.x) - 1, count).astype(int), _SEED - 1)
