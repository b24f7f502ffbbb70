"""VP on the 8x8 digits of scikit-learn."""

from configs import default


def get_config():
    """The experiment."""
    config = default.get_config()
    config.eval.dequantisation = "uniform"
    config.eval.features = "digits"
    return config
