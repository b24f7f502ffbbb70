"""The network of the Frechet Inception distance, of 2015-12-05, from its published weights.

It is Inception v3 as TensorFlow had it then: pooling does not count its padding, the last block pools by maximum, and
images are resized to 299 x 299 by TensorFlow 1's bilinear rule, pixel i at i * (old / new), without antialiasing.
Batch norms use their running statistics, folded into the convolutions when the weights are read. Features are the input
of the last layer, averaged over pixels (2,048 numbers); class probabilities leave the last layer's bias out, as the
Inception score always has.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.data import DataError
from scoreflow.data.fetch import digest
from scoreflow.metrics import Extractor, Features
from scoreflow.metrics.weights import read_tensors
from scoreflow.runs import parallel

_DIGEST = "6726825d"  # the first digits of the published file's sha256, which its name contains
NAME = f"pt_inception-2015-12-05-{_DIGEST}.pth"
_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
_NORM = ("weight", "bias", "running_mean", "running_var")
SIZE = 2048  # numbers in a feature vector
_SIDE, _EPSILON = 299, 1e-3

Layers = dict[str, tuple[jax.Array, jax.Array]]
"""Kernels [h, w, in, out] and biases [out] by the layer's name."""


def fold(tensors: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels [h, w, in, out] and biases [out] by layer, of weights named as in the published file.

    Raises:
      KeyError: if one is missing.
    """
    layers = {}
    for weight in tensors:
        if not weight.endswith(".conv.weight"):
            continue
        layer = weight.removesuffix(".conv.weight")
        norm = {name: np.asarray(tensors[f"{layer}.bn.{name}"], np.float64) for name in _NORM}
        scale = norm["weight"] / np.sqrt(norm["running_var"] + _EPSILON)
        kernel = np.transpose(np.asarray(tensors[weight], np.float64), (2, 3, 1, 0)) * scale
        bias = norm["bias"] - norm["running_mean"] * scale
        layers[layer] = (kernel.astype(np.float32), bias.astype(np.float32))
    layers["fc"] = (np.asarray(tensors["fc.weight"], np.float32).T, np.asarray(tensors["fc.bias"], np.float32))
    return layers


def resize(x: jax.Array, side: int = _SIDE) -> jax.Array:
    """[B, H, W, C] -> [B, side, side, C] by TensorFlow 1's bilinear rule."""

    def along(x, axis):
        size = x.shape[axis]
        at = np.arange(side) * (size / side)
        low = np.floor(at).astype(int)
        high, fraction = np.minimum(low + 1, size - 1), at - low
        fraction = jnp.asarray(fraction.reshape([-1 if i == axis else 1 for i in range(x.ndim)]), x.dtype)
        return jnp.take(x, low, axis) * (1 - fraction) + jnp.take(x, high, axis) * fraction

    return along(along(x, 1), 2)


def _pool(x: jax.Array, reduce: Callable, initial: float, stride: int, padding: str) -> jax.Array:
    return jax.lax.reduce_window(x, initial, reduce, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _max(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return _pool(x, jax.lax.max, -jnp.inf, stride, padding)


def _mean(x: jax.Array) -> jax.Array:
    """Means of 3x3 cells, over the pixels inside the image."""
    return _pool(x, jax.lax.add, 0.0, 1, "SAME") / _pool(jnp.ones_like(x[:1, :, :, :1]), jax.lax.add, 0.0, 1, "SAME")


def _conv(layers: Layers, x: jax.Array, name: str, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """Convolution with its folded norm, and ReLU."""
    kernel, bias = layers[name]
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
    return jax.nn.relu(y + bias[None, None, None])


def _chain(layers: Layers, x: jax.Array, branch: str, ends: tuple[str, ...] = ("",), stride: int = 1) -> jax.Array:
    """Convolutions in a row, named by a branch and an end each; the last may stride, then without padding."""
    for i, end in enumerate(ends):
        last = stride > 1 and i == len(ends) - 1
        x = _conv(layers, x, branch + end, stride if last else 1, "VALID" if last else "SAME")
    return x


def _ends(count: int) -> tuple[str, ...]:
    return tuple(f"_{i + 1}" for i in range(count))


def _stem(layers: Layers, x: jax.Array) -> jax.Array:
    x = _conv(layers, x, "Conv2d_1a_3x3", 2, "VALID")
    x = _conv(layers, _conv(layers, x, "Conv2d_2a_3x3", 1, "VALID"), "Conv2d_2b_3x3")
    return _max(_conv(layers, _conv(layers, _max(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", 1, "VALID"))


def _wide(layers: Layers, x: jax.Array, name: str, branches: dict[str, int]) -> jax.Array:
    """A 1x1 branch, some of several convolutions each, and one of averages."""
    outputs = [_chain(layers, x, f"{name}.branch1x1")]
    outputs += [_chain(layers, x, f"{name}.{branch}", _ends(count)) for branch, count in branches.items()]
    return jnp.concatenate([*outputs, _chain(layers, _mean(x), f"{name}.branch_pool")], axis=-1)


def _narrowing(layers: Layers, x: jax.Array, name: str, branches: dict[str, tuple[str, ...]]) -> jax.Array:
    """Branches that halve the sides, and the maximum."""
    outputs = [_chain(layers, x, f"{name}.{branch}", ends, stride=2) for branch, ends in branches.items()]
    return jnp.concatenate([*outputs, _max(x)], axis=-1)


def _forked(layers: Layers, x: jax.Array, name: str, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Branches that end in two convolutions side by side, one along rows and one along columns."""
    single = _chain(layers, x, f"{name}.branch3x3_1")
    double = _chain(layers, x, f"{name}.branch3x3dbl", _ends(2))
    outputs = [
        _chain(layers, x, f"{name}.branch1x1"),
        *(_chain(layers, single, f"{name}.branch3x3_{end}") for end in ("2a", "2b")),
        *(_chain(layers, double, f"{name}.branch3x3dbl_{end}") for end in ("3a", "3b")),
        _chain(layers, pool(x), f"{name}.branch_pool"),
    ]
    return jnp.concatenate(outputs, axis=-1)


def features(layers: Layers, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pool [B, 2048], logits [B, 1008] without bias) of images [B, H, W, 3] in 0 ... 255."""
    x = _stem(layers, (resize(x) - 128.0) / 128.0)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _wide(layers, x, name, {"branch5x5": 2, "branch3x3dbl": 3})
    x = _narrowing(layers, x, "Mixed_6a", {"branch3x3": ("",), "branch3x3dbl": _ends(3)})
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _wide(layers, x, name, {"branch7x7": 3, "branch7x7dbl": 5})
    x = _narrowing(layers, x, "Mixed_7a", {"branch3x3": _ends(2), "branch7x7x3": _ends(4)})
    x = _forked(layers, x, "Mixed_7b", _mean)
    x = _forked(layers, x, "Mixed_7c", lambda x: _max(x, 1, "SAME"))
    pool = x.mean((1, 2))
    return pool, pool @ layers["fc"][0]


def extractor(folder: Path, num_levels: int) -> Extractor:
    """The feature function "Inception 2015-12-05" of gray or color images.

    Args:
      folder: where the weights are.
      num_levels: of the images' numbers, 0 ... num_levels - 1, which are spread over 0 ... 255.

    Raises:
      DataError: if the weights are missing, altered or not what they should be.
    """
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"the Inception weights are missing: get {NAME} from {_URL} and put it at {path}")
    if not (actual := digest(path)).startswith(_DIGEST):
        raise DataError(
            f"{path} is truncated or altered: its sha256 begins {actual[:8]}, that of the published {_DIGEST}"
        )
    try:
        layers = fold(read_tensors(path))
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold the Inception weights: {error}") from error
    return Extractor(
        "Inception 2015-12-05",
        features_of(parallel.replicate(layers), num_levels),
        "inception_score",
        f"{actual} {num_levels}",
    )


def features_of(layers: Layers, num_levels: int, batch: int = 100) -> Callable[[np.ndarray], Features]:
    """The feature function: images [N, H, W, 1 or 3] of `num_levels` -> Features, `batch` on each device at a time.

    Args:
      layers: what `fold` gives, on all devices.
    """

    @parallel.jit
    def run(layers, x):
        with jax.default_matmul_precision("highest"):
            pool, logits = features(layers, x.astype(jnp.float32) * (255.0 / (num_levels - 1)))
        return pool, jax.nn.softmax(logits)

    def extract(x):
        x = np.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x
        size = min(batch * parallel.device_count(), parallel.rounded_up(len(x)))
        batches = []
        for i in range(0, len(x), size):
            images = x[i : i + size]
            padded = parallel.shard(images[np.arange(size) % len(images)])
            batches.append([leaf[: len(images)] for leaf in parallel.gather(run(layers, padded))])
        return Features(*(np.concatenate(leaves) for leaves in zip(*batches)))

    return extract
