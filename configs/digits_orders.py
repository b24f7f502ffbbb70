"""A trained `vp_digits` fine-tuned by order 1, 2 or 3 of score matching, at equal compute: 1600, 800 or 400 steps.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/digits_orders.py:2 --mode=train       # 2 to 4 minutes on 2 CPU cores
    python main.py --config=configs/digits_orders.py:2 --mode=eval

Expect 1.92 to 1.95 bits/dim, and no gain from the higher orders (docs/experiments.md).
"""

from configs import vp_digits

VARIANTS = {"1": 1600, "2": 800, "3": 400}  # steps by order; a step costs 1, 2 and 4 times as much


def get_config(variant: str = "2"):
    """The experiment at one order."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = vp_digits.get_config()
    config.init_from = "runs/vp_digits"
    config.training.steps = VARIANTS[variant]
    config.training.learning_rate = 3e-4
    config.training.warmup = 50
    config.training.skip = 10
    config.training.ema_decay = 0.99
    if variant != "1":
        config.loss.update({"name": "high_order", "order": int(variant), "ramp": 100})
    return config
