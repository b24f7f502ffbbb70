"""Mean and covariance of features in files that programs for the FID exchange."""

import pickle

import numpy as np
import pytest
from scipy import linalg

from scoreflow import metrics
from scoreflow.data import DataError
from scoreflow.evaluate import prepare
from scoreflow.evaluators.features import statistics
from scoreflow.metrics import Extractor, reference_file
from tests.test_foreign import data_of, evaluation, experiment_of, images, measured


def test_statistics_are_written_as_mean_and_unbiased_covariance(tmp_path, capsys):
    """As np.mean and np.cov(rowvar=False) in float64, by the names that other programs read; never over others."""
    data, ours = data_of(images(240)), evaluation(tmp_path)
    prepare(experiment_of(data), ours, tmp_path / "run")
    path = tmp_path / "run" / "statistics" / "pixels.npz"
    assert f"wrote {path}: mu and sigma of the features of 200 training examples" in capsys.readouterr().out
    flat = data.train.x.reshape(200, -1).astype(np.float64) / 255
    with np.load(path) as stored:
        assert set(stored.files) == {"mu", "sigma"} and {stored[key].dtype for key in stored.files} == {np.dtype("f8")}
        np.testing.assert_allclose(stored["mu"], np.mean(flat, axis=0), rtol=1e-12)
        np.testing.assert_allclose(stored["sigma"], np.cov(flat, rowvar=False), rtol=1e-9, atol=1e-8)
    before = path.read_bytes()
    prepare(experiment_of(data), ours, tmp_path / "run")
    assert [file.name for file in path.parent.glob("*.npz")] == ["pixels.npz"]
    prepare(experiment_of(data_of(images(240, seed=1))), ours, tmp_path / "run")
    assert {file.name for file in path.parent.glob("*.npz")} == {"pixels.npz", "pixels-2.npz"}
    assert path.read_bytes() == before


def test_a_reference_that_we_wrote_gives_the_distance_to_the_data_themselves(tmp_path):
    data = data_of(images(400, channels=1))
    np.save(tmp_path / "theirs.npy", images(150, channels=1, seed=1) // 2)
    prepare(experiment_of(data), evaluation(tmp_path), tmp_path)
    direct = measured(data, tmp_path, samples=tmp_path / "theirs.npy")
    reference = tmp_path / "statistics" / "pixels.npz"
    through = measured(data, tmp_path, samples=tmp_path / "theirs.npy", reference=reference)
    for who in ("given", "test_data"):
        assert through[who]["frechet"] == pytest.approx(direct[who]["frechet"], rel=1e-9), who
        assert "kernel" in direct[who] and not through[who].keys() & {"kernel", "precision", "recall"}
    assert direct["reference"] == "training data" and through["reference"] == str(reference)


def test_the_distance_to_a_reference_is_that_of_two_gaussians(tmp_path):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of samples whose mean and covariance are exactly m1 and C1."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 4, 4))
    (mean, other), (covariance, reference) = rng.standard_normal((2, 4)), roots @ roots.swapaxes(1, 2)
    z = rng.standard_normal((500, 4))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    x = mean + z @ np.linalg.cholesky(covariance).T
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "reference.npz", mu=other, sigma=reference)
    data = data_of(rng.standard_normal((300, 4)), 0)
    result = measured(data, tmp_path, samples=tmp_path / "x.npy", reference=tmp_path / "reference.npz")
    cross = np.trace(linalg.sqrtm(covariance @ reference)).real
    wanted = ((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(reference) - 2 * cross
    assert result["given"]["frechet"].value == pytest.approx(wanted, rel=1e-9)


def test_statistics_of_float32_sums_and_of_few_examples_are_taken(tmp_path):
    """Other programs store float32, or covariances of fewer examples than features; both are read as they are."""
    x = np.random.default_rng(0).standard_normal((5, 20))
    np.savez_compressed(
        tmp_path / "few.npz", mu=x.mean(0).astype("f4"), sigma=np.cov(x.T).astype("f4"), mu_s=0, arr_0=1
    )
    mean, covariance = reference_file.read(tmp_path / "few.npz", 20)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-6)


IDENTITY = np.eye(3)
BAD_STATISTICS = {
    "no sigma": ({"mu": np.zeros(3)}, "has no sigma; it holds mu"),
    "nothing": ({}, "has no mu and no sigma; it holds nothing"),
    "samples": ({"arr_0": np.zeros((9, 3))}, "it holds arr_0; samples are given as eval.samples"),
    "other size": ({"mu": np.zeros(4), "sigma": np.eye(4)}, r"mu has shape \(4,\), and features .* need \(3,\)"),
    "other shape": ({"mu": np.zeros(3), "sigma": np.ones(3)}, r"sigma has shape \(3,\), .* need \(3, 3\)"),
    "words": ({"mu": np.array(list("abc")), "sigma": IDENTITY}, "mu holds <U1, not real numbers"),
    "complex": ({"mu": np.zeros(3), "sigma": IDENTITY + 0j}, "sigma holds complex128, not real numbers"),
    "infinite mean": ({"mu": np.full(3, np.inf), "sigma": IDENTITY}, "mu holds NaN or infinity"),
    "not a number": ({"mu": np.zeros(3), "sigma": IDENTITY * np.nan}, "sigma holds NaN or infinity"),
    "not symmetric": ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "sigma is not symmetric"),
    "negative": ({"mu": np.zeros(3), "sigma": np.diag([1.0, 1.0, -0.1])}, "sigma has negative eigenvalues"),
}


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_a_covariance_that_is_symmetric_to_rounding_is_made_so(tmp_path, unit):
    """An asymmetry of 1e-6 is that of float32 sums; one of 1e-3 is no covariance, whatever the unit of features."""
    half = np.random.default_rng(0).standard_normal((5, 5))
    sigma = unit * half @ half.T
    largest = np.abs(sigma).max()
    for share, right in ((1e-6, True), (1e-3, False)):
        wrong = sigma.copy()
        wrong[0, 1] += share * largest
        np.savez(tmp_path / "x.npz", mu=np.zeros(5), sigma=wrong)
        if right:
            covariance = reference_file.read(tmp_path / "x.npz", 5)[1]
            np.testing.assert_array_equal(covariance, covariance.T)
            assert covariance[0, 1] == pytest.approx(sigma[0, 1] + share * largest / 2, rel=1e-12)
        else:
            with pytest.raises(DataError, match="sigma is not symmetric"):
                reference_file.read(tmp_path / "x.npz", 5)


def test_the_same_numbers_in_another_shape_have_statistics_of_their_own(tmp_path):
    extract = Extractor("pixels", metrics.pixels)
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    sizes = [statistics(extract, each, tmp_path).moments.total.shape for each in (x, x.reshape(120, 2))]
    assert sizes == [(4,), (2,)]


@pytest.mark.parametrize("arrays, words", BAD_STATISTICS.values(), ids=BAD_STATISTICS.keys())
def test_statistics_that_cannot_be_right_are_one_line(tmp_path, arrays, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"eval.reference = {path}.*{words}") as error:
        reference_file.read(path, 3)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_statistics_are_one_line(tmp_path):
    """Among them the pickles of EDM2, which are not opened."""
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, mu=np.zeros(300), sigma=np.random.default_rng(0).normal(size=(300, 300)))
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    content = {
        "edm2.pkl": (pickle.dumps({"fid": {"mu": 0}}), "is a pickle, which could run code .*EDM2.* 'fid'"),
        "renamed.npz": (pickle.dumps({"mu": 0}), "is a pickle"),
        "cut.npz": (whole.read_bytes()[:1000], "is not a readable .npz file"),
        "damaged.npz": (bytes(damaged), "sigma cannot be read: Bad CRC-32"),
        "text.npz": (b"mu sigma", "is not a readable .npz file"),
        "empty.npz": (b"", "is not a readable .npz file"),
    }
    np.save(tmp_path / "one.npy", IDENTITY)
    rows = {"none.npz": "there is no such file", "one.npy": "is a single array"}
    for name, (stored, words) in content.items():
        (tmp_path / name).write_bytes(stored)
        rows[name] = words
    for name, words in rows.items():
        with pytest.raises(DataError, match=f"eval.reference = {tmp_path / name}.*{words}") as error:
            reference_file.read(tmp_path / name, 300)
        assert "\n" not in str(error.value)
