"""VP diffusion of 1,437 real 8x8 handwritten digits, with a small U-Net trained for likelihood.

    python main.py --config=configs/vp_digits.py --mode=train     # 3 to 4 minutes on 2 CPU cores
    python main.py --config=configs/vp_digits.py --mode=eval      # 2 to 3 minutes

Expect about 1.94 bits/dim on the 360 test digits (uniform dequantization) and a mean class confidence of 0.95.
"""

from configs import default


def get_config():
    """The experiment."""
    config = default.get_config()
    config.model.channels = 16
    config.model.multipliers = (1, 4)
    config.model.dropout = 0.0
    config.training.steps = 2800
    config.training.batch_size = 64
    config.training.learning_rate = 2e-3
    config.eval.dequantization = "uniform"
    config.eval.features = "digits"
    return config
