"""The log-density that a classical model reaches on the same data, as a reference for bits/dim."""

from typing import NamedTuple

import numpy as np

MAX_DIMENSIONS = 256  # full covariances; beyond this the fit takes longer than training the model


class Baseline(NamedTuple):
    """A full-covariance Gaussian mixture: mean test `log_prob` in nats and its number of `components`."""

    log_prob: float
    components: int


def gaussian_mixture(train: np.ndarray, test: np.ndarray, *, seed: int = 0) -> Baseline:
    """Fits scikit-learn's mixture to train [n, d] and scores test [m, d], both continuous.

    The number of components is chosen on a fifth of the training data that is held out for it, never on the test data.
    """
    from sklearn.mixture import GaussianMixture

    order = np.random.RandomState(seed).permutation(len(train))
    validation, rest = train[order[: len(train) // 5]], train[order[len(train) // 5 :]]

    def fit(data, components):
        return GaussianMixture(components, reg_covar=1e-3, max_iter=50, random_state=seed).fit(data)

    best = max((1, 2, 5, 10, 20), key=lambda components: fit(rest, components).score(validation))
    return Baseline(float(fit(train, best).score(test)), best)
