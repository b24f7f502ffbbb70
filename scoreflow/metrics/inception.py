"""The network of the Frechet Inception distance, of 2015-12-05, from its published weights.

It is Inception v3 as TensorFlow had it then: pooling does not count its padding, the last block pools by maximum, and
images are resized to 299 x 299 by TensorFlow 1's bilinear rule, pixel i at i * (old / new), without antialiasing.
Batch norms stand at their running statistics, folded into the convolutions when the weights are read. Features are what
comes before the last layer, averaged over pixels (2,048 numbers); class probabilities leave the last layer's bias out,
as the Inception score always has.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.data import DataError
from scoreflow.data.fetch import File, digest
from scoreflow.metrics import Extractor, Features
from scoreflow.metrics.weights import read_tensors

WEIGHTS = File(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "sha256:6726825d",  # the part of it that the name carries
    direct=False,
)
_SIDE, _EPSILON = 299, 1e-3


def fold(tensors: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels [h, w, in, out] and biases [out] by layer, of weights named as in the published file.

    Raises:
      KeyError: if one is missing.
    """
    layers = {}
    for name in tensors:
        if not name.endswith(".conv.weight"):
            continue
        layer = name.removesuffix(".conv.weight")
        norm = {part: np.asarray(tensors[f"{layer}.bn.{part}"], np.float64) for part in _NORM}
        scale = norm["weight"] / np.sqrt(norm["running_var"] + _EPSILON)
        kernel = np.transpose(np.asarray(tensors[name], np.float64), (2, 3, 1, 0)) * scale
        bias = norm["bias"] - norm["running_mean"] * scale
        layers[layer] = (kernel.astype(np.float32), bias.astype(np.float32))
    layers["fc"] = (np.asarray(tensors["fc.weight"], np.float32).T, np.asarray(tensors["fc.bias"], np.float32))
    return layers


_NORM = ("weight", "bias", "running_mean", "running_var")


def resize(x: jax.Array, side: int = _SIDE) -> jax.Array:
    """[B, H, W, C] -> [B, side, side, C] by TensorFlow 1's bilinear rule."""

    def along(x, axis):
        size = x.shape[axis]
        at = np.arange(side) * (size / side)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, size - 1), at - low
        share = jnp.asarray(share.reshape([-1 if i == axis else 1 for i in range(x.ndim)]), x.dtype)
        return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share

    return along(along(x, 1), 2)


def _pool(x, reduce, initial, stride, padding):
    return jax.lax.reduce_window(x, initial, reduce, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _max(x, stride=2, padding="VALID"):
    return _pool(x, jax.lax.max, -jnp.inf, stride, padding)


def _mean(x):
    """Means of 3x3 cells, of the pixels that are there."""
    return _pool(x, jax.lax.add, 0.0, 1, "SAME") / _pool(jnp.ones_like(x[:1, :, :, :1]), jax.lax.add, 0.0, 1, "SAME")


def features(layers: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pool [B, 2048], logits [B, 1008] without bias) of images [B, H, W, 3] in 0 ... 255."""

    def conv(x, name, stride=1, padding="SAME"):
        kernel, bias = layers[name]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
        return jax.nn.relu(y + bias[None, None, None])

    def chain(x, block, *names, stride=1):
        """Convolutions one after the other, the last of them with a stride, then without padding."""
        for i, name in enumerate(names):
            last = stride > 1 and i == len(names) - 1
            x = conv(x, f"{block}.{name}", stride if last else 1, "VALID" if last else "SAME")
        return x

    def numbered(branch, *ends):
        return [f"{branch}_{end}" for end in ends]

    def block_a(x, name):
        parts = [
            chain(x, name, "branch1x1"),
            chain(x, name, *numbered("branch5x5", 1, 2)),
            chain(x, name, *numbered("branch3x3dbl", 1, 2, 3)),
            chain(_mean(x), name, "branch_pool"),
        ]
        return jnp.concatenate(parts, axis=-1)

    def block_c(x, name):
        parts = [
            chain(x, name, "branch1x1"),
            chain(x, name, *numbered("branch7x7", 1, 2, 3)),
            chain(x, name, *numbered("branch7x7dbl", 1, 2, 3, 4, 5)),
            chain(_mean(x), name, "branch_pool"),
        ]
        return jnp.concatenate(parts, axis=-1)

    def block_e(x, name, pool):
        single, double = chain(x, name, "branch3x3_1"), chain(x, name, *numbered("branch3x3dbl", 1, 2))
        parts = [
            chain(x, name, "branch1x1"),
            *(chain(single, name, f"branch3x3_{end}") for end in ("2a", "2b")),
            *(chain(double, name, f"branch3x3dbl_{end}") for end in ("3a", "3b")),
            chain(pool(x), name, "branch_pool"),
        ]
        return jnp.concatenate(parts, axis=-1)

    x = (resize(x) - 128.0) / 128.0
    x = conv(x, "Conv2d_1a_3x3", 2, "VALID")
    x = conv(conv(x, "Conv2d_2a_3x3", 1, "VALID"), "Conv2d_2b_3x3")
    x = conv(conv(_max(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", 1, "VALID")
    x = _max(x)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_a(x, name)
    name = "Mixed_6a"
    dense = chain(x, name, *numbered("branch3x3dbl", 1, 2, 3), stride=2)
    x = jnp.concatenate([chain(x, name, "branch3x3", stride=2), dense, _max(x)], axis=-1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_c(x, name)
    name = "Mixed_7a"
    parts = [chain(x, name, *numbered("branch3x3", 1, 2), stride=2)]
    parts += [chain(x, name, *numbered("branch7x7x3", 1, 2, 3, 4), stride=2), _max(x)]
    x = jnp.concatenate(parts, axis=-1)
    x = block_e(x, "Mixed_7b", _mean)
    x = block_e(x, "Mixed_7c", lambda x: _max(x, 1, "SAME"))
    pool = x.mean((1, 2))
    return pool, pool @ layers["fc"][0]


def missing(folder: Path) -> str:
    """What to do where the weights are not in a folder; "" where they are."""
    path = folder / WEIGHTS.name
    if path.is_file():
        return ""
    return f"the Inception weights are missing: get {WEIGHTS.name} from {WEIGHTS.url} and put it at {path}"


def extractor(folder: Path, levels: int) -> Extractor:
    """The feature function "Inception 2015-12-05" of images of grey levels or colours.

    Args:
      folder: where the weights are.
      levels: of the images' numbers, 0 ... levels - 1, which are spread over 0 ... 255.

    Raises:
      DataError: if the weights are missing, altered or not what they should be.
    """
    if words := missing(folder):
        raise DataError(words)
    path, wanted = folder / WEIGHTS.name, WEIGHTS.digest.partition(":")[2]
    if not (found := digest(path)).startswith(wanted):
        raise DataError(
            f"{path} is truncated or altered: its sha256 begins {found[:8]}, that of the published {wanted}"
        )
    try:
        layers = fold(read_tensors(path))
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold the Inception weights: {error}") from error
    return Extractor("Inception 2015-12-05", _extract(jax.tree.map(jnp.asarray, layers), levels), "inception_score")


def _extract(layers: dict, levels: int, batch: int = 50) -> Callable[[np.ndarray], Features]:
    @jax.jit
    def run(layers, x):
        with jax.default_matmul_precision("highest"):
            pool, logits = features(layers, x.astype(jnp.float32) * (255.0 / (levels - 1)))
        return pool, jax.nn.softmax(logits)

    def extract(x):
        x = np.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x
        found = []
        for i in range(0, len(x), batch):
            part = x[i : i + batch]
            padded = part[np.arange(batch) % len(part)] if len(x) > batch else part
            found.append([np.asarray(leaf, np.float64)[: len(part)] for leaf in run(layers, padded)])
        return Features(*(np.concatenate(leaves) for leaves in zip(*found)))

    return extract
