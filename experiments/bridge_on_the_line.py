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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from scoreflow.processes import sdes
from scoreflow.runs import report
from scoreflow.theory import horizon as hz

HORIZONS, SEEDS, STEPS, BATCH = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), 8, 2000, 64
PROCESS, FIRST = sdes.vp_linear(), 1e-3
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
def train(key: jax.Array, last: jax.Array, steps: int):
    """Parameters after training from log-SNR at t = 0.001 down to `last`."""
    rate = optax.cosine_decay_schedule(1e-2, steps)
    optimizer, top = optax.adam(rate), PROCESS.log_snr(FIRST)
    weights, means, deviations = (jnp.asarray(a, jnp.float32) for a in (DATA.weights, DATA.means, DATA.variances**0.5))

    def loss(params, key):
        key_k, key_x, key_t, key_noise = jax.random.split(key, 4)
        k = jax.random.choice(key_k, len(weights), (BATCH,), p=weights)
        x0 = means[k] + deviations[k] * jax.random.normal(key_x, (BATCH,))
        log_snr = last + (top - last) * jax.random.uniform(key_t, (BATCH,))
        t, noise = PROCESS.inverse_log_snr(log_snr), jax.random.normal(key_noise, (BATCH,))
        found = NET.apply(params, PROCESS.alpha(t) * x0 + PROCESS.sigma(t) * noise, log_snr)
        return jnp.mean((found - noise) ** 2)

    def step(i, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(key, i)), state)
        return optax.apply_updates(params, updates), state

    params = NET.init(key, jnp.zeros(1), jnp.zeros(1))
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def gap(params, t: float, levels: int = 100) -> float:
    """G of a network up to t, by quadrature over log-SNR and x."""
    log_snr = np.linspace(float(PROCESS.log_snr(t)), float(PROCESS.log_snr(FIRST)), levels)
    values = []
    for level in log_snr:
        when = float(PROCESS.inverse_log_snr(jnp.float32(level)))
        law = DATA.at(PROCESS, when)
        x = law.points()[::10]
        log_p = law.log_density(x)
        parts = np.log(law.weights) - 0.5 * (x[:, None] - law.means) ** 2 / law.variances - 0.5 * np.log(law.variances)
        shares = np.exp(parts - np.logaddexp.reduce(parts, axis=1)[:, None])
        score = (shares * (law.means - x[:, None]) / law.variances).sum(1)
        true = -float(PROCESS.sigma(when)) * score
        found = predict(params, jnp.asarray(x, jnp.float32), jnp.full(len(x), level, jnp.float32))
        values.append(np.trapezoid(np.exp(log_p) * (np.asarray(found, np.float64) - true) ** 2, x))
    return float(0.5 * np.trapezoid(values, log_snr))


predict = jax.jit(NET.apply)


def run(t: float, seed: int, steps: int) -> float:
    """Trains and measures the gap."""
    return gap(train(jax.random.key(seed), PROCESS.log_snr(t), steps), t)


def main() -> None:
    args = common.arguments(__doc__, "bridge_on_the_line")
    horizons, seeds, steps = ((0.2, 1.0), 2, 50) if args.fast else (HORIZONS, SEEDS, STEPS)
    rows, lines = [("T", "gap", "least", "most", "with N(0, 1)", "with a bridge")], []
    cases = [(t, seed) for t in horizons for seed in range(seeds)]
    found = {t: [] for t in horizons}
    for t, seed in report.progress(cases, total=len(cases), unit="run"):
        key = f"T = {t}, seed {seed}, {steps} steps"
        found[t].append(common.memo(args.out / "runs.json", key, functools.partial(run, t, seed, steps)))
    for t, gaps in found.items():
        last, middle = DATA.at(PROCESS, t), float(np.median(gaps))
        prior, bridge = hz.line_kl(last, hz.STANDARD), hz.line_kl(last, last.matched())
        words = (f"{value:.3f}" for value in (middle, min(gaps), max(gaps), middle + prior, middle + bridge))
        rows.append((f"{t:g}", *words))
        lines.append((t, middle + prior, middle + bridge))
    draw(args.out / "loss.png", np.array(lines).T)
    common.finish(args.out, [f"medians of {seeds} seeds, nats lost on the entropy", "", report.table(rows)])


def draw(path, lines: np.ndarray) -> None:
    """What is lost against T."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for values, name in zip(lines[1:], ("N(0, 1)", "Gaussian bridge")):
        axes.semilogy(lines[0], values, marker="o", label=name)
    axes.set(xlabel="T", ylabel="entropy minus bound, nats")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
