"""Variational dequantization of the digits: a conditional flow of the noise is trained on top of a trained `vp_digits`.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/digits_dequantizer.py --mode=train      # 4 to 5 minutes on 2 CPU cores
    python main.py --config=configs/digits_dequantizer.py --mode=eval

The score model stays as it is. As with uniform noise, `--mode=eval` prints a bound on the bits/dim of the discrete
model, but a tighter one: expect 1.87 instead of 1.94.
"""

from configs import vp_digits


def get_config():
    """The experiment."""
    config = vp_digits.get_config()
    config.init_from = "runs/vp_digits"
    config.dequantizer.update(
        {
            "name": "couplings",
            "couplings": 4,
            "channels": 24,
            "blocks": 1,
            "components": 4,
            "num_heads": 0,
            "context": 16,
        }
    )
    config.training.steps = 1000
    config.training.learning_rate = 2e-3
    config.training.ema_decay = 0.99
    config.eval.dequantization = "variational"
    config.eval.num_samples = 0  # the samples would be those of vp_digits
    return config
