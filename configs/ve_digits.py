"""Geometric VE on the digits: `vp_digits` with another process, its parameterisation and its sampling grid.

python main.py --config=configs/ve_digits.py --mode=train
"""

from ml_collections import ConfigDict

from configs import vp_digits


def get_config():
    """The experiment."""
    config = vp_digits.get_config()
    config.process = ConfigDict({"name": "ve_geometric", "sigma_min": 0.01, "sigma_max": 50.0, "horizon": 1.0})
    config.score = ConfigDict({"kind": "edm", "data_rms": 0.8})
    config.grid = ConfigDict({"name": "karras", "rho": 7.0})
    config.sampling.t_min = 1e-5
    return config
