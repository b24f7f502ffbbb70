"""A small network trained up to T, with and without a bridge, judged by quadrature.

    python -m experiments.bridge_on_the_line          about 2 minutes on 2 CPU cores

The toy of the line of work, 0.3 N(1, 0.1^2) + 0.7 N(3, 0.5^2) under VP cut off at T: a network of two hidden layers of
8 that predicts the noise from (x, log-SNR / 4), trained with log-SNR uniform, 2,000 steps of Adam, batches of 64, 8
seeds for each T. Nats:

    gap                  G = 1/2 int E |predicted - exact noise|^2 d(-log-SNR) from t = 0.001 to T
    with N(0, 1)         gap + KL(p_T || N(0, 1)): what the bound loses on the entropy
    with a bridge        gap + KL(p_T || the Gaussian with its mean and variance)

Medians over the seeds with the least and the most: single runs end badly now and then, so a mean would say little.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from scoreflow.processes import sdes
from scoreflow.runs import report
from scoreflow.theory import horizon as hz
from scoreflow.types import Params

HORIZONS, SEEDS, STEPS, BATCH = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), 8, 2000, 64
PROCESS, T_MIN = sdes.vp_linear(), 1e-3
DATA = hz.TWO_PEAKS


class Net(nn.Module):
    """(x [B], log_snr [B]) -> the noise in x, [B]."""

    @nn.compact
    def __call__(self, x, log_snr):
        h = jnp.stack([x, log_snr / 4], axis=-1)
        for _ in range(2):
            h = nn.selu(nn.Dense(8)(h))
        return nn.Dense(1)(h)[:, 0]


NET = Net()


@functools.partial(jax.jit, static_argnames="steps")
def train(key: jax.Array, log_snr_end: jax.Array, steps: int) -> Params:
    """Parameters after training from log-SNR at t = 0.001 down to `log_snr_end`."""
    rate = optax.cosine_decay_schedule(1e-2, steps)
    optimizer, log_snr_start = optax.adam(rate), PROCESS.log_snr(T_MIN)
    weights, means, deviations = (jnp.asarray(a, jnp.float32) for a in (DATA.weights, DATA.means, DATA.variances**0.5))

    def loss(params, key):
        key_k, key_x, key_t, key_noise = jax.random.split(key, 4)
        k = jax.random.choice(key_k, len(weights), (BATCH,), p=weights)
        x0 = means[k] + deviations[k] * jax.random.normal(key_x, (BATCH,))
        log_snr = log_snr_end + (log_snr_start - log_snr_end) * jax.random.uniform(key_t, (BATCH,))
        t, noise = PROCESS.inverse_log_snr(log_snr), jax.random.normal(key_noise, (BATCH,))
        predicted: Any = NET.apply(params, PROCESS.alpha(t) * x0 + PROCESS.sigma(t) * noise, log_snr)
        return jnp.mean((predicted - noise) ** 2)

    def step(i, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(key, i)), state)
        return optax.apply_updates(params, updates), state

    params = NET.init(key, jnp.zeros(1), jnp.zeros(1))
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


predict = jax.jit(NET.apply)


def gap(params: Params, t: float, num_points: int = 100) -> float:
    """G of a network up to t, by quadrature over log-SNR and x."""
    log_snr_points = np.linspace(float(PROCESS.log_snr(t)), float(PROCESS.log_snr(T_MIN)), num_points)
    values = []
    for log_snr in log_snr_points:
        s = float(PROCESS.inverse_log_snr(jnp.float32(log_snr)))
        weights, means, variances = noised = DATA.at(PROCESS, s)
        x = noised.points()[::10]
        terms = np.log(weights) - 0.5 * (x[:, None] - means) ** 2 / variances - 0.5 * np.log(variances)
        posterior = np.exp(terms - np.logaddexp.reduce(terms, axis=1)[:, None])  # of the components, given x
        score = (posterior * (means - x[:, None]) / variances).sum(1)
        true = -float(PROCESS.sigma(s)) * score
        predicted = predict(params, jnp.asarray(x, jnp.float32), jnp.full(len(x), log_snr, jnp.float32))
        density = np.exp(noised.log_density(x))
        values.append(np.trapezoid(density * (np.asarray(predicted, np.float64) - true) ** 2, x))
    return float(0.5 * np.trapezoid(values, log_snr_points))


def run(t: float, seed: int, steps: int) -> float:
    """Trains and measures the gap."""
    return gap(train(jax.random.key(seed), PROCESS.log_snr(t), steps), t)


def main() -> None:
    args = common.arguments(__doc__, "bridge_on_the_line")
    horizons, seeds, steps = ((0.2, 1.0), 2, 50) if args.fast else (HORIZONS, SEEDS, STEPS)
    rows, losses = [("T", "gap", "least", "most", "with N(0, 1)", "with a bridge")], []
    cases = [(t, seed) for t in horizons for seed in range(seeds)]
    gaps = {t: [] for t in horizons}
    for t, seed in report.progress(cases, total=len(cases), unit="run"):
        key = f"T = {t}, seed {seed}, {steps} steps"
        gaps[t].append(common.memo(args.out / "runs.json", key, functools.partial(run, t, seed, steps)))
    for t, values in gaps.items():
        end, median = DATA.at(PROCESS, t), float(np.median(values))
        prior, bridge = hz.line_kl(end, hz.STANDARD), hz.line_kl(end, end.matched())
        numbers = (median, min(values), max(values), median + prior, median + bridge)
        rows.append((f"{t:g}", *(f"{number:.3f}" for number in numbers)))
        losses.append((t, median + prior, median + bridge))
    draw(args.out / "loss.png", np.array(losses).T)
    common.finish(args.out, [f"medians of {seeds} seeds, nats lost on the entropy", "", report.table(rows)])


def draw(path: Path, losses: np.ndarray) -> None:
    """What is lost, without and with a bridge, against T; [3, number of T]."""
    with common.panels(path, 1, 1, (5, 3.6)) as axes_of:
        axes = axes_of[0, 0]
        for values, label in zip(losses[1:], ("N(0, 1)", "Gaussian bridge")):
            axes.semilogy(losses[0], values, marker="o", label=label)
        axes.set(xlabel="T", ylabel="entropy minus bound, nats")
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
