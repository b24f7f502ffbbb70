"""A VAE in which everything is known: the bound with a score prior against the exact likelihood.

    python -m experiments.latent_linear          half a minute on 2 CPU cores

z ~ N(a, diag(b)) and x = W z + noise with orthogonal columns in W, so that p(x), the posterior and the score of the
diffused prior have closed forms. First, with the exact posterior and score: the bound less -log p(x), by the ODE that
evaluation uses and by the estimator that training uses, for cut-offs t_min. Second, an encoder that is linear in x
learns by the bound, through the score's input alone: with the likelihood weight it finds the posterior; with weight 1
on its cross entropy, as a prior may be trained but an encoder may not, it does not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from experiments import common
from scoreflow import divergence, likelihood, score, terminal
from scoreflow.objectives import cross_entropy, times
from scoreflow.objectives.weights import Weight, likelihood_weight, noise_weight
from scoreflow.processes import sdes
from scoreflow.runs import report

CENTER, SPREAD, NOISE = np.array([0.4, -0.2]), np.array([0.6, 1.4]), 0.5
LOADINGS = np.array([[1.0, 0.3], [0.5, -0.6], [0.0, 0.5]])  # orthogonal columns
CUTOFFS = (1e-1, 1e-2, 1e-3, 1e-4)


def prior_score(process: sdes.Process) -> score.Score:
    """Of diffused N(CENTER, diag(SPREAD))."""

    def exact(x, t, cond=None):
        alpha, variance = sdes.expand(process.alpha(t), x), sdes.expand(process.variance(t), x)
        return -(x - alpha * jnp.asarray(CENTER)[None]) / (alpha**2 * jnp.asarray(SPREAD)[None] + variance)

    return exact


def posterior(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [n, 2] and standard deviations [2] of z given x [n, 3]."""
    precision = 1 / SPREAD + (LOADINGS**2).sum(0) / NOISE**2
    return (CENTER / SPREAD + x @ LOADINGS / NOISE**2) / precision, precision**-0.5


def normal_log_prob(x: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Log-density of N(mean, diag(std^2)), which runs along the last axis."""
    return jnp.sum(-0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * np.log(2 * np.pi), axis=-1)


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x [n, 3] and the exact log p(x)."""
    rng = np.random.default_rng(seed)
    x = (CENTER + np.sqrt(SPREAD) * rng.standard_normal((n, 2))) @ LOADINGS.T + NOISE * rng.standard_normal((n, 3))
    covariance = LOADINGS @ np.diag(SPREAD) @ LOADINGS.T + NOISE**2 * np.eye(3)
    centered = x - LOADINGS @ CENTER
    square = np.sum(centered * np.linalg.solve(covariance, centered.T).T, axis=1)
    return x, -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def bounds(n: int) -> list[tuple[str, ...]]:
    """The first table."""
    process = sdes.vp_linear()
    exact = prior_score(process)
    x, log_p = data(n)
    mean, std = posterior(x)
    z = jnp.asarray(mean + std * np.random.default_rng(1).standard_normal((n, 2)))
    # -log p(x|z) + log q(z|x)
    rest = normal_log_prob(z, mean, std) - normal_log_prob(jnp.asarray(x), z @ LOADINGS.T, NOISE)
    rows = [("t_min", "ODE bound - (-log p)", "largest", "nfe", "training bound - (-log p)")]
    for t_min in CUTOFFS:
        options = {"t_min": t_min, "divergence": divergence.exact, "rtol": 1e-6, "atol": 1e-6}
        solve = functools.partial(likelihood.log_prob, process, exact, terminal.prior(process), **options)
        solution = jax.jit(lambda z, solve=solve: solve(jax.random.key(0), z))(z[:200])
        by_ode = np.asarray(rest[:200] - solution.logp) + log_p[:200]
        t, inv_density = times.normal_likelihood(process, jax.random.key(1), n, t_min=t_min)
        entropy = cross_entropy.cross_entropy(process, exact, jax.random.key(2), z, t, inv_density, t_min=t_min)
        by_training = np.asarray(rest + entropy.total) + log_p
        cells = [f"{v.mean():.5f} ± {v.std() / np.sqrt(len(v)):.1g}" for v in (by_ode, by_training)]
        largest, nfe = f"{np.abs(by_ode).max():.1g}", f"{solution.nfe.mean():.0f}"
        rows.append((f"{t_min:g}", cells[0], largest, nfe, cells[1]))
    return rows


def train_encoder(weight: Weight, steps: int, batch: int = 512) -> tuple[np.ndarray, float]:
    """The standard deviations that an encoder learns, and its mean divergence from the posterior in nats."""
    process, t_min = sdes.vp_linear(), 1e-3
    exact = prior_score(process)
    x, _ = data(20_000, seed=2)
    on_device = jnp.asarray(x)
    start = {"matrix": jnp.zeros((3, 2)), "bias": jnp.zeros(2), "log_std": jnp.zeros(2)}
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(params, key):
        key_x, key_z, key_t, key_noise = jax.random.split(key, 4)
        rows = on_device[jax.random.randint(key_x, (batch,), 0, len(on_device))]
        mean, std = rows @ params["matrix"] + params["bias"], jnp.exp(params["log_std"])
        z = mean + std * jax.random.normal(key_z, mean.shape)
        reconstruction = -normal_log_prob(rows, z @ LOADINGS.T, NOISE)
        t, inv_density = times.normal_likelihood(process, key_t, batch, t_min=t_min)
        error = cross_entropy.squared_error(process, exact, key_noise, z, t)
        entropy = -jnp.sum(params["log_std"])
        return jnp.mean(reconstruction + entropy + 0.5 * inv_density * weight(process, t) * error)

    def step(state, key):
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(3), steps)
    (params, _), _ = jax.jit(lambda keys: jax.lax.scan(step, (start, optimizer.init(start)), keys))(keys)
    mean, std = posterior(x)
    learned_std = np.exp(params["log_std"])
    learned_mean = x @ np.asarray(params["matrix"]) + np.asarray(params["bias"])
    kl = np.log(std / learned_std) + (learned_std**2 + (learned_mean - mean) ** 2) / (2 * std**2) - 0.5
    return learned_std, float(kl.sum(1).mean())


def main() -> None:
    args = common.arguments(__doc__, "latent_linear")
    steps, n = (500, 4000) if args.fast else (10_000, 100_000)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    lines = ["exact posterior and score: bound less -log p(x), nats", report.table(bounds(n)), ""]
    rows = [("encoder learns by", "std of z1, z2", "KL from the posterior, nats")]
    for name, weight in (("likelihood weight", likelihood_weight), ("weight 1", noise_weight)):
        std, kl = train_encoder(weight, steps)
        rows.append((name, f"{std[0]:.4f}, {std[1]:.4f}", f"{kl:.1e}"))
    std = posterior(np.zeros((1, 3)))[1]
    rows.append(("exact", f"{std[0]:.4f}, {std[1]:.4f}", "0"))
    common.finish(args.out, [*lines, report.table(rows)])


if __name__ == "__main__":
    main()
