"""A trained `fashion_vp` fine-tuned without (u) or with (qc) a penalty on the antisymmetry, or a constrained score (c).

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_conservative.py:qc --mode=train       # 5 to 8 minutes on 2 CPU cores
    python main.py --config=configs/fashion_conservative.py:qc --mode=eval

The variant c is the gradient of an energy, starts from nothing, and has as many steps as fit into 15 minutes: each
takes some three times as long.
"""

from configs import fashion_vp

VARIANTS = ("c", "u", "qc")


def get_config(variant: str = "qc"):
    """The experiment with one kind of score."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = fashion_vp.get_config()
    if variant == "c":
        config.training.steps = 600
        config.score.energy_power = 2
    else:
        config.init_from = "runs/fashion_vp"
        config.training.update({"steps": 300, "learning_rate": 3e-4, "warmup": 50, "ema_decay": 0.99})
    if variant == "qc":
        config.penalty.update({"name": "quasi_conservative", "coefficient": 1.0})
    config.eval.update({"symmetry": 60, "symmetry_times": 10})
    return config
