"""A trained `fashion_vp` is sampled and scored from a shorter T, with a terminal distribution fitted to the data's x_T.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_bridge.py:mixture --mode=train       # a minute; the score is used as it is
    python main.py --config=configs/fashion_bridge.py:mixture --mode=eval

The variants are prior (nothing is fitted, to show the cost of a short T), mixture and glow (6 minutes of training). T
is `--config.process.horizon`, 0.3 here.
"""

from configs import fashion_vp

VARIANTS = {
    "prior": {"name": "prior"},
    "mixture": {"name": "mixture", "components": 10, "covariance": "low_rank", "rank": 32},
    "glow": {"name": "glow", "resolutions": 2, "steps": 4, "width": 32},
}


def get_config(variant: str = "mixture"):
    """The experiment with one terminal distribution."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = fashion_vp.get_config()
    config.process.horizon = 0.3
    config.terminal.update(VARIANTS[variant])
    config.init_from = "runs/fashion_vp"
    steps = 500 if variant == "glow" else 0
    config.training.update({"learn": "terminal", "steps": steps, "warmup": 0, "ema_decay": 0.99})
    return config
