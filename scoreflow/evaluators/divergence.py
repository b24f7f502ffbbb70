"""The terms of the ODE's divergence from the data (`likelihood.diagnostics`)."""

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import divergence as divergences
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.likelihood import diagnostics
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.theory.exact import score_of
from scoreflow.types import CountOrZero


def divergence(context: Context, *, diagnose: CountOrZero = 0) -> Results | None:
    """`j_gap` always; the other terms where the density of the data under noise is known.

    Args:
      context: the model and how it is evaluated.
      diagnose: Test examples for the terms of the ODE's divergence; 0 skips them.
    """
    if not (context.options.likelihood and diagnose):
        return None
    metrics = divergence_metrics(context, diagnose)
    return Results({"divergence": metrics}, (table_of(f"terms of the ODE's divergence, {context.unit}", metrics),))


def divergence_metrics(context: Context, count: int) -> dict[str, Estimate]:
    """The terms in bits/dim of integer data or nats.

    Where the density is known these are `j_sm`, `j_diff`, their sum `j_ode`, `j_f`, the divergence at T (`kl_end`) and
    with it that at t_min (`kl_from_parts`), which is of noised data.
    """
    model, options, known = context.model, context.options, context.experiment.data.log_density
    process, data = model.process, context.examples(0, count)
    true_score = None if known is None else score_of(process, known)
    keywords = {"t_min": model.t_min, "true_score": true_score, "exact": options.divergence is divergences.exact}
    keywords |= {"rtol": options.rtol, "atol": options.atol, "max_steps": options.max_steps}

    def solve(params, keys, x, cond):
        key_terms, key_end = jax.random.split(keys[0])
        score, terminal = model.score(params), model.terminal(params)
        terms = diagnostics.kl_terms(process, score, terminal, key_terms, x, cond, **keywords)
        if known is None:
            return terms, None
        horizon = jnp.full(len(x), process.horizon, x.dtype)
        end = process.perturb(key_end, x, horizon).xt
        log_q = jax.vmap(known)(end, process.alpha(horizon), process.sigma(horizon))
        return terms, log_q - terminal.log_prob(end)

    terms, end = context.in_batches(solve)("divergence", context.params, data.keys, data.x, data.cond)
    values = {name: value for name, value in terms._asdict().items() if value is not None}
    if end is not None:
        j_ode = values["j_sm"] + values["j_diff"]
        values |= {"j_ode": j_ode, "kl_end": end, "kl_from_parts": end + j_ode}
    return {name: mean_estimate(value[np.isfinite(value)] / context.scale) for name, value in values.items()}
