"""A trained `fashion_vp` fine-tuned by order 1, 2 or 3 of score matching, at equal compute: 600, 300 or 150 steps.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_orders.py:2 --mode=train       # 4 minutes on one CPU core; 1: 3, 3: 7
    python main.py --config=configs/fashion_orders.py:2 --mode=eval

The variants are 1, 2 and 3; 2-steps and 3-steps take as many steps as order 1 does, and so more time. Each of them
followed by `-full` continues `fashion_vp.py:full`, for 25 times as many steps; it was not run.
"""

from configs import fashion_vp

VARIANTS = {"1": 600, "2": 300, "3": 150, "2-steps": 600, "3-steps": 600}


def get_config(variant: str = "2"):
    """The experiment at one order."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    config = fashion_vp.continued(size, VARIANTS[name])
    config.training.skip = 10
    if name != "1":
        config.loss.update({"name": "high_order", "order": int(name[0]), "ramp": config.training.warmup})
    return config
