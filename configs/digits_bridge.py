"""A trained `vp_digits` is sampled and scored from a shorter T, with a terminal distribution fitted to the data's x_T.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/digits_bridge.py:mixture --mode=train       # seconds; the score is used as it is
    python main.py --config=configs/digits_bridge.py:mixture --mode=eval

The variants are prior (nothing is fitted, to show the cost of a short T), gaussian, low_rank, mixture, dirichlet and
glow (2 minutes of training). T is `--config.process.horizon`, 0.2 here. With eval.horizons the bound is printed at
shorter T too. docs/experiments.md has the numbers to expect.
"""

from configs import vp_digits

VARIANTS = {
    "prior": {"name": "prior"},
    "gaussian": {"name": "mixture", "components": 1, "covariance": "full"},
    "low_rank": {"name": "mixture", "components": 1, "covariance": "low_rank", "rank": 16},
    "mixture": {"name": "mixture", "components": 10, "covariance": "low_rank", "rank": 16},
    "dirichlet": {"name": "dirichlet", "components": 20, "fitted_to": "end"},
    "glow": {"name": "glow", "resolutions": 2, "steps": 4, "width": 32},
}


def get_config(variant: str = "mixture"):
    """The experiment with one terminal distribution."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = vp_digits.get_config()
    config.process.horizon = 0.2
    config.terminal.update(VARIANTS[variant])
    config.init_from = "runs/vp_digits"
    if variant == "glow":
        config.training.update({"learn": "terminal", "steps": 1000, "warmup": 0, "ema_decay": 0.99})
    else:
        config.training.update({"learn": "terminal", "steps": 0, "warmup": 0})
    config.eval.horizons = (0.05, 0.1, 0.15, 0.2)
    return config
