"""What training minimizes: (params, key, batch, *, train, step=None) -> (scalar, {name: scalar})."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import dequantise, likelihood, terminal
from scoreflow.configure.tables import DEQUANTISERS, FLOWS, LOSSES, PENALTIES, TIMES, WEIGHTS
from scoreflow.configure.values import make
from scoreflow.data import Source
from scoreflow.models import DEQUANTISER, TERMINAL
from scoreflow.processes import sdes


def encoder(config, grid: dequantise.Bins | None) -> Callable:
    """(params, key, data as stored) -> x as the model sees them, where there is no latent space."""
    if grid is None:
        return lambda params, key, x: jnp.asarray(x, jnp.float32)
    rule = DEQUANTISERS[config.data.dequantization]
    return lambda params, key, x: rule(key, x, grid).x


def of_noise(config, forward: sdes.Process, score_of: Callable, grid: dequantise.Bins) -> Callable:
    """Bits/dim of the SDE model's bound at one time for each example: what the flow of the noise can lower."""
    flow, law, t_min = make(FLOWS, config.dequantiser), terminal.prior(forward), config.t_min

    def objective(params, key, batch, *, train, step=None):
        del step
        key_noise, key_bound = jax.random.split(key)
        sample_flow = functools.partial(flow.apply, params[DEQUANTISER])
        x, log_q = dequantise.variational(key_noise, batch["x"], grid, flow=sample_flow)
        score, cond = score_of(jax.lax.stop_gradient(params)), batch["label"] if config.data.conditional else None
        found = likelihood.bound(forward, score, law, key_bound, x, cond, t_min=t_min, num_times=1)
        size = x[0].size
        bits = jnp.mean(dequantise.bits_per_dim(-found.total, log_q, size, grid))
        return bits, {"loss": bits, "noise": jnp.mean(log_q) / (size * np.log(2.0))}

    return objective


def of_score(config, forward: sdes.Process, score_of: Callable, encode: Callable, found: Source) -> Callable:
    """The loss of the score, with its weight, law of t and penalty."""
    loss_at, weight, law = make(LOSSES, config.loss), make(WEIGHTS, config.weight), make(TIMES, config.times)
    penalty_at = make(PENALTIES, config.penalty)
    conditional, label_dropout, t_min = config.data.conditional, config.training.label_dropout, config.t_min

    def objective(params, key, batch, *, train, step=None):
        key_x, key_t, key_noise, key_label, key_network = jax.random.split(key, 5)
        x0 = jax.lax.stop_gradient(encode(params, key_x, batch["x"]))
        cond = None
        if conditional:
            cond = batch["label"]
            if train and label_dropout:
                dropped = jax.random.bernoulli(key_label, label_dropout, cond.shape)
                cond = jnp.where(dropped, found.num_classes, cond)
        t, inv_density = law(forward, key_t, x0.shape[0], t_min=t_min)
        network_score = score_of(params, train=train, key=key_network)
        also = penalty_at(step)
        terms = loss_at(step)(forward, network_score, key_noise, x0, t, cond, weight=weight, also=also)
        means = {name: jnp.mean(inv_density * term) for name, term in terms.items()}
        loss = sum(means.values())
        return loss, {"loss": loss, **means}

    return objective


def with_terminal(config, forward: sdes.Process, objective: Callable, encode: Callable, loss: Callable) -> Callable:
    """`objective` and nats per dimension of a terminal law on draws of x_T; they share no parameters."""
    alone = config.training.learn == "terminal"

    def both(params, key, batch, *, train, step=None):
        key_score, key_x, key_noise = jax.random.split(key, 3)
        x0 = jax.lax.stop_gradient(encode(params, key_x, batch["x"]))
        xt = forward.perturb(key_noise, x0, jnp.full(x0.shape[0], forward.horizon, x0.dtype)).xt
        nats = jnp.mean(loss(params[TERMINAL], xt)) / x0[0].size
        if alone:
            return nats, {"loss": nats, "terminal": nats}
        total, terms = objective(params, key_score, batch, train=train, step=step)
        return total + nats, {**terms, "loss": total + nats, "terminal": nats}

    return both
