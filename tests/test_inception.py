"""The Inception network of the FID: its file of weights, read without running any of it, and what it computes."""

import collections
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.data import DataError
from scoreflow.metrics import inception
from scoreflow.metrics.weights import read_tensors

# layer -> (channels in, channels out, kernel height, kernel width), as the published file has them
CONVS = {
    "Conv2d_1a_3x3": (3, 32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (32, 64, 3, 3),
    "Conv2d_3b_1x1": (64, 80, 1, 1),
    "Conv2d_4a_3x3": (80, 192, 3, 3),
}
for _name, _in, _pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
    CONVS |= {
        f"{_name}.branch1x1": (_in, 64, 1, 1),
        f"{_name}.branch5x5_1": (_in, 48, 1, 1),
        f"{_name}.branch5x5_2": (48, 64, 5, 5),
        f"{_name}.branch3x3dbl_1": (_in, 64, 1, 1),
        f"{_name}.branch3x3dbl_2": (64, 96, 3, 3),
        f"{_name}.branch3x3dbl_3": (96, 96, 3, 3),
        f"{_name}.branch_pool": (_in, _pool, 1, 1),
    }
CONVS |= {
    "Mixed_6a.branch3x3": (288, 384, 3, 3),
    "Mixed_6a.branch3x3dbl_1": (288, 64, 1, 1),
    "Mixed_6a.branch3x3dbl_2": (64, 96, 3, 3),
    "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
}
for _name, _mid in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
    CONVS |= {
        f"{_name}.branch1x1": (768, 192, 1, 1),
        f"{_name}.branch7x7_1": (768, _mid, 1, 1),
        f"{_name}.branch7x7_2": (_mid, _mid, 1, 7),
        f"{_name}.branch7x7_3": (_mid, 192, 7, 1),
        f"{_name}.branch7x7dbl_1": (768, _mid, 1, 1),
        f"{_name}.branch7x7dbl_2": (_mid, _mid, 7, 1),
        f"{_name}.branch7x7dbl_3": (_mid, _mid, 1, 7),
        f"{_name}.branch7x7dbl_4": (_mid, _mid, 7, 1),
        f"{_name}.branch7x7dbl_5": (_mid, 192, 1, 7),
        f"{_name}.branch_pool": (768, 192, 1, 1),
    }
CONVS |= {
    "Mixed_7a.branch3x3_1": (768, 192, 1, 1),
    "Mixed_7a.branch3x3_2": (192, 320, 3, 3),
    "Mixed_7a.branch7x7x3_1": (768, 192, 1, 1),
    "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
}
for _name, _in in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
    CONVS |= {
        f"{_name}.branch1x1": (_in, 320, 1, 1),
        f"{_name}.branch3x3_1": (_in, 384, 1, 1),
        f"{_name}.branch3x3_2a": (384, 384, 1, 3),
        f"{_name}.branch3x3_2b": (384, 384, 3, 1),
        f"{_name}.branch3x3dbl_1": (_in, 448, 1, 1),
        f"{_name}.branch3x3dbl_2": (448, 384, 3, 3),
        f"{_name}.branch3x3dbl_3a": (384, 384, 1, 3),
        f"{_name}.branch3x3dbl_3b": (384, 384, 3, 1),
        f"{_name}.branch_pool": (_in, 192, 1, 1),
    }


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under the published names, of a scale that keeps activations in range."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer, (inputs, outputs, height, width) in CONVS.items():
        shape = (outputs, inputs, height, width)
        spread = np.sqrt(2.0 / (inputs * height * width))
        tensors[f"{layer}.conv.weight"] = (spread * rng.standard_normal(shape)).astype(np.float32)
        tensors[f"{layer}.bn.weight"] = rng.uniform(0.8, 1.2, outputs).astype(np.float32)
        tensors[f"{layer}.bn.bias"] = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
        tensors[f"{layer}.bn.running_mean"] = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
        tensors[f"{layer}.bn.running_var"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
    tensors["fc.weight"] = (0.02 * rng.standard_normal((1008, 2048))).astype(np.float32)
    tensors["fc.bias"] = rng.standard_normal(1008).astype(np.float32)
    return tensors


def test_the_network_has_the_published_number_of_parameters():
    """23,834,568 of Inception v3 with 1,000 classes and no auxiliary ones, and 8 classes more."""
    count = sum(np.prod(shape) for shape in CONVS.values()) + 2 * sum(shape[1] for shape in CONVS.values())
    assert count + 2048 * 1008 + 1008 == 23_834_568 + 8 * 2049


# ----------------------------------------------------------------------------------------------------------------------
# Files, in both formats, as PyTorch writes them.


class Storage:
    """Stands for a storage while a test pickles."""

    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    """Pickles as a tensor does."""

    def __init__(self, storage, offset, size, stride):
        self.parts = storage, offset, size, stride

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, collections.OrderedDict())


@pytest.fixture
def names(monkeypatch):
    """Modules by whose names PyTorch pickles."""
    utils, torch = types.ModuleType("torch._utils"), types.ModuleType("torch")

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is written")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def pickled(content, torch, file) -> None:
    """Writes a pickle whose storages are named, not written."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, obj.key, "cpu", obj.array.size)
            return None

    Pickler(file, protocol=2).dump(content)


def written(path, torch, archive: bool, content=None):
    """A file with a plain tensor and a transposed view of a part of another's storage; what must come back."""
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    second = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    one, two = Storage("0", first), Storage("1", second)
    tensors = collections.OrderedDict(a=Tensor(one, 0, (2, 3), (3, 1)), b=Tensor(two, 5, (3, 4), (1, 3)))
    content = tensors if content is None else content
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            with file.open("weights/data.pkl", "w") as part:
                pickled(content, torch, part)
            for storage in (one, two):
                file.writestr(f"weights/data/{storage.key}", storage.array.tobytes())
    else:
        with open(path, "wb") as file:
            for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(header, file, protocol=2)
            pickled(content, torch, file)
            pickle.dump(["0", "1"], file, protocol=2)
            for storage in (one, two):
                file.write(storage.array.size.to_bytes(8, "little") + storage.array.tobytes())
    return {"a": first, "b": second[5:17].reshape(4, 3).T}


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_come_back_from_both_formats(tmp_path, names, archive):
    path = tmp_path / "weights.pth"
    wanted = written(path, names, archive)
    stored = read_tensors(path)
    assert stored.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(stored[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("archive", [True, False])
def test_what_pytorch_writes_is_read(tmp_path, archive):
    """Several types, a view, a parameter, an empty tensor. Needs `pip install -e '.[bench]'`."""
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 4)
    tensors = {"a": base, "view": base[1:3, ::2].t(), "whole": torch.arange(5), "half": torch.randn(3).half()}
    tensors |= {"flag": torch.tensor([True, False]), "none": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2))
    path = tmp_path / "weights.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=archive)
    stored = read_tensors(path)
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(stored[name], value.detach().numpy())


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_file_is_run(tmp_path, names, archive):
    """A pickle that would make a folder is refused, and makes none."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    path = tmp_path / "weights.pth"
    written(path, names, archive, content={"a": Trap()})
    with pytest.raises(ValueError, match="asks for .*mkdir"):
        read_tensors(path)
    assert not (tmp_path / "trapped").exists()


def test_damage_is_said_in_words(tmp_path, names):
    path = tmp_path / "weights.pth"
    written(path, names, archive=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="cut short"):
        read_tensors(path)
    for content in (b"", b"nonsense", whole[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable file of weights"):
            read_tensors(path)
    written(path, names, archive=True, content={"a": Tensor(Storage("0", np.zeros(6, np.float32)), 3, (2, 3), (3, 1))})
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        read_tensors(path)
    written(path, names, archive=True, content={"a": 3})
    with pytest.raises(ValueError, match="not a dictionary of tensors"):
        read_tensors(path)


def test_missing_and_altered_weights_are_one_line(tmp_path):
    with pytest.raises(DataError, match="get pt_inception-2015-12-05-6726825d.pth from https.* and put it at"):
        inception.extractor(tmp_path, 256)
    (tmp_path / inception.NAME).write_bytes(b"something else")
    with pytest.raises(DataError, match="is truncated or altered: its sha256 begins"):
        inception.extractor(tmp_path, 256)


# ----------------------------------------------------------------------------------------------------------------------
# What it computes.


def test_images_are_resized_as_tensorflow_1_did():
    """Pixel i of the new image lies at i * old / new of the old one, whose last pixel goes on; no filter."""
    x = np.random.default_rng(0).uniform(size=(1, 4, 4, 1)).astype(np.float32)
    resized = np.asarray(inception.resize(jnp.asarray(x), 6))[0, :, :, 0]
    at = np.arange(6) * 4 / 6
    rows = np.stack([np.interp(at, np.arange(4), x[0, :, j, 0]) for j in range(4)], axis=1)  # np.interp holds the end
    wanted = np.stack([np.interp(at, np.arange(4), row) for row in rows])
    np.testing.assert_allclose(resized, wanted, atol=1e-6)
    small = np.asarray(inception.resize(jnp.asarray(x), 2))[0, :, :, 0]
    np.testing.assert_allclose(small, x[0, ::2, ::2, 0], atol=1e-6)


def test_pooling_does_not_count_its_padding():
    flat = jnp.ones((1, 5, 5, 2))
    np.testing.assert_allclose(inception._mean(flat), 1.0, atol=1e-6)


def test_the_largest_of_each_window_of_3_x_3_is_taken():
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32) - 5.0
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(inception._max(jnp.asarray(x)), windows.max((-2, -1)))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.testing.assert_array_equal(inception._max(jnp.asarray(x), 1, "SAME"), windows.max((-2, -1)))


@pytest.mark.parametrize("count", [3, 8, 19])
def test_features_of_many_images_are_those_of_each(monkeypatch, count):
    """In batches of two on each device, with another function in the network's place; levels are spread to 255."""
    sums = lambda layers, x: (x.sum((1, 2)), jnp.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1))
    monkeypatch.setattr(inception, "features", sums)
    x = np.random.default_rng(0).integers(0, 17, (count, 4, 4, 1), np.uint8)
    found = inception.features_of({}, 17, batch=2)(x)
    scaled = x.astype(np.float64) * 255 / 16
    np.testing.assert_allclose(found.pool, np.repeat(scaled.sum((1, 2)), 3, axis=1), rtol=1e-5)
    mean = scaled.mean((1, 2, 3))
    np.testing.assert_allclose(found.probs[:, 0], 1 / (1 + np.exp(-2 * mean)), rtol=1e-5)


def test_a_norm_is_folded_into_its_convolution():
    """convolution, then (y - mean) / sqrt(var + 1e-3) * weight + bias, against one affine map."""
    tensors = {name: value for name, value in random_tensors().items() if name.startswith(("Conv2d_3b", "fc"))}
    kernel, bias = inception.fold(tensors)["Conv2d_3b_1x1"]
    x = np.random.default_rng(1).standard_normal((5, 64))
    norm = {part: tensors[f"Conv2d_3b_1x1.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
    y = x @ tensors["Conv2d_3b_1x1.conv.weight"][:, :, 0, 0].T
    y = (y - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3) * norm["weight"] + norm["bias"]
    np.testing.assert_allclose(x @ kernel[0, 0] + bias, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_features_are_those_of_a_reference_implementation():
    """Of torch-fidelity, on random weights: 1e-4 of the features' scale. Needs `pip install -e '.[bench]'`."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    tensors = random_tensors()
    x = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    with jax.numpy_rank_promotion("allow"):
        pool, logits = inception.features(
            jax.tree.map(jnp.asarray, inception.fold(tensors)), jnp.asarray(x, jnp.float32)
        )
    net = reference(module, torch, tensors)
    with torch.no_grad():
        wanted_pool, wanted_logits = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    for ours, wanted in ((pool, wanted_pool), (logits, wanted_logits)):
        wanted = wanted.numpy()
        assert np.abs(np.asarray(ours) - wanted).max() < 1e-4 * np.abs(wanted).max()


def reference(module, torch, tensors):
    """torch-fidelity's network with our weights in it."""
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    load = lambda *args, **options: state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", load, raising=False)
        patch.setattr(torch, "load", load)
        return module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path="unused"
        )
