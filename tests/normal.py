"""A model of normal data with the exact score in the network's place; `gaussian` is the fixture of it."""

import numpy as np

from scoreflow import configure
from scoreflow.experiment import Experiment
from tests import tiny
from tests.truth import gaussian_score, with_score

STD = np.array([0.5, 1.5])
ENTROPY = float(np.log(STD).sum() + np.log(2 * np.pi * np.e))


def model(folder):
    """(experiment, evaluation) of 4,000 training and 1,000 test points of N(0, diag(STD^2)), with their density."""
    x = (STD * np.random.default_rng(0).standard_normal((5000, 2))).astype(np.float32)
    np.savez(folder / "gaussian.npz", train=x[:4000], test=x[4000:])
    config = tiny.digits(
        data__name="arrays", data__path=str(folder / "gaussian.npz"), eval__divergence="exact", eval__num_test=0,
        eval__batch_size=1000, eval__check=1000, eval__draws=1, eval__num_samples=4000, sampling__batch_size=4000,
        sampling__steps=60, eval__baseline=True, grid__name="log_snr",
    )  # fmt: skip
    experiment = configure.experiment(config, "gaussian")
    data = experiment.data._replace(
        log_prob=lambda x: -0.5 * ((x / STD) ** 2).sum(1) - np.log(STD).sum() - np.log(2 * np.pi)
    )
    exact = gaussian_score(experiment.model.process, np.zeros(2), STD**2)
    return with_score(experiment._replace(data=data), exact), configure.evaluation(config, folder)


def context_of(experiment: Experiment, evaluation, folder=None, **options):
    """Without parameters, which the exact score has none of; `options` replace shared options of the evaluation."""
    return evaluation._replace(options=evaluation.options._replace(**options)).context(experiment, None, folder)
