"""Class-conditional digits with classifier-free guidance: `vp_digits` with labels, a tenth of them hidden in training.

    python main.py --config=configs/vp_digits_classes.py --mode=train
    python main.py --config=configs/vp_digits_classes.py --mode=sample --config.sampling.label=3

The second command draws samples of one class.
"""

from configs import vp_digits


def get_config():
    """The experiment."""
    config = vp_digits.get_config()
    config.data.conditional = True
    config.training.label_dropout = 0.1
    config.sampling.guidance = 1.5
    return config
