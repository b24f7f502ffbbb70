"""The error of the score where the exact score is known (`likelihood.diagnostics.score_error`)."""

from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.likelihood import diagnostics
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.types import CountOrZero


def score_error(context: Context, *, score_error: CountOrZero = 0) -> Results | None:
    """Half the squared error of the score, for data whose density under noise is known.

    Args:
      context: the model and how it is evaluated.
      score_error: Test examples for the error against the exact score, of data where that is known; 0 skips it.
    """
    if not (context.options.likelihood and score_error):
        return None
    metrics = score_error_metrics(context, score_error)
    rows = [(name, in_words(value)) for name, value in metrics.items()]
    return Results({"score_error": metrics}, (Table("half the squared error of the score, over ten times", rows),))


def score_error_metrics(context: Context, count: int) -> dict[str, Estimate]:
    """Means over examples and times."""
    model, data = context.model, context.examples(0, count)
    log_density = context.experiment.data.log_density
    assert log_density is not None

    def solve(params, keys, x, cond):
        score = model.score(params)
        return diagnostics.score_error(model.process, score, log_density, keys[0], x, cond, t_min=model.t_min)

    values = context.in_batches(solve)("score_error", context.params, data.keys, data.x, data.cond)._asdict()
    return {name: mean_estimate(value.mean(1)) for name, value in values.items()}
