"""Sub-VP on the digits: `vp_digits` with another process. Its likelihood starts at t = 1e-3, where sigma is 1e-4.

python main.py --config=configs/subvp_digits.py --mode=train
"""

from ml_collections import ConfigDict

from configs import vp_digits


def get_config():
    """The experiment."""
    config = vp_digits.get_config()
    config.t_min = 1e-3
    config.process = ConfigDict({"name": "sub_vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0})
    config.sampling.t_min = 1e-2
    return config
