"""Features of labeled images: a small classifier, trained once on the training split alone and cached."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow.data import Split, batch, digest
from scoreflow.metrics import Extractor, Features
from scoreflow.runs import files
from scoreflow.types import Params

SIZE = 64  # numbers in a feature vector
_STEPS, _BATCH, _SEED, _VERSION = 1500, 128, 0, 2


class DigitClassifier(nn.Module):
    """8x8 levels -> (features [B, 64], logits [B, classes])."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        h = x.reshape(x.shape[0], -1)
        h = nn.Dropout(0.2, deterministic=not train)(nn.gelu(nn.Dense(256)(h)))
        h = nn.gelu(nn.Dense(SIZE)(h))
        return h, nn.Dense(self.classes)(nn.Dropout(0.2, deterministic=not train)(h))


class ImageClassifier(nn.Module):
    """Levels [B, H, W, C] -> (features [B, 64], logits [B, classes]), by three convolutions."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        for channels in (16, 32, 64):
            x = nn.gelu(nn.GroupNorm(8)(nn.Conv(channels, (3, 3), strides=2)(x)))
        h = nn.Dropout(0.2, deterministic=not train)(x.reshape(x.shape[0], -1))
        h = nn.gelu(nn.Dense(SIZE)(h))
        return h, nn.Dense(self.classes)(nn.Dropout(0.2, deterministic=not train)(h))


_MODULES = {"digits": DigitClassifier, "classifier": ImageClassifier}
Kind = Literal["digits", "classifier"]


def _train(model: nn.Module, split: Split, num_levels: int) -> Params:
    params = model.init(jax.random.key(_SEED), jnp.zeros((1, *split.x.shape[1:])), False)
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, _STEPS), weight_decay=1e-2)

    def loss(params, key, x, label):
        # Noise of up to half a level: the classifier should not tell samples from data by their rounding.
        x = (x.astype(jnp.float32) + jax.random.uniform(key, x.shape) - 0.5) / (num_levels - 1)
        outputs: Any = model.apply(params, x, True, rngs={"dropout": jax.random.fold_in(key, 1)})
        return optax.softmax_cross_entropy_with_integer_labels(outputs[1], label).mean()

    @jax.jit
    def step(params, state, key, x, label):
        updates, state = optimizer.update(jax.grad(loss)(params, key, x, label), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(_STEPS):
        data = batch(split, _SEED, i, _BATCH)
        params, state = step(params, state, jax.random.fold_in(jax.random.key(_SEED), i), data["x"], data["label"])
    return params


def classifier(split: Split, num_levels: int, cache_dir: Path, kind: Kind = "classifier") -> Extractor:
    """Penultimate activations and class probabilities of a classifier of `split`, which is fitted within a minute.

    Args:
      split: labeled training images of integer levels; a seeded classifier is fitted to them.
      num_levels: number of gray levels.
      cache_dir: where the fitted parameters are kept; their file name contains a digest of all
        that they depend on.
      kind: `digits`, a perceptron that suits images of some 8x8 pixels, or `classifier`, three convolutions.
    """
    assert split.label is not None
    classes = int(split.label.max()) + 1
    of = "" if kind == "digits" else f"{kind} "
    key = digest(split.x, split.label.astype(np.int64), begin=f"{_VERSION} {of}{num_levels} {classes} ")[:24]
    path = cache_dir / f"classifier-{key}.msgpack"
    model = _MODULES[kind](classes)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *split.x.shape[1:])), False))
    params = _load(path, template)
    if params is None:
        params = _train(model, split, num_levels)
        with files.replacing(path) as scratch:
            content = flax.serialization.to_bytes(params)
            scratch.write_bytes(hashlib.sha256(content).digest() + content)
    name = "digits classifier" if kind == "digits" else "image classifier"
    return Extractor(name, _extractor(model, params, num_levels), key=key, classes=True)


def _load(path: Path, template: Params) -> Params | None:
    """The cached parameters, or None where there are none that are whole and fit."""
    try:
        stored = path.read_bytes()
        seal, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != seal:
            return None
        params = flax.serialization.from_bytes(template, content)
    except (OSError, ValueError, KeyError):
        return None
    fits = jax.tree.map(lambda a, b: np.shape(a) == b.shape, params, template)
    return params if all(jax.tree.leaves(fits)) else None


def _extractor(model: nn.Module, params: Params, num_levels: int) -> Callable[[np.ndarray], Features]:
    forward = jax.jit(lambda x: model.apply(params, x.astype(jnp.float32) / (num_levels - 1), False))

    def extract(x):
        pool, logits = forward(x)
        return Features(np.asarray(pool, np.float64), np.asarray(jax.nn.softmax(logits), np.float64))

    return extract
