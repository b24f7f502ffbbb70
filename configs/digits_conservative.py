"""Digits with a constrained score (c), or a finished `vp_digits` fine-tuned without (u) or with (qc) a penalty.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/digits_conservative.py:qc --mode=train       4 minutes on 2 CPU cores
    python main.py --config=configs/digits_conservative.py:qc --mode=eval

`--mode=eval` also prints how far the score is from a gradient field, and at what cost a solver follows it. Expect, from
one run each, a weighted asymmetry of 1.56 and 1.93 bits/dim of u, and 0.41 and 2.00 of qc at this coefficient, which is
large; at 0.001 qc is u. c takes four times as long to train, and some ten times as long to evaluate.
"""

from configs import vp_digits

VARIANTS = ("c", "u", "qc")
STEPS = 600  # of fine-tuning; c takes those of vp_digits and these from scratch


def get_config(variant: str = "qc"):
    """The experiment with one kind of score."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = vp_digits.get_config()
    if variant == "c":
        config.training.steps += STEPS
        config.score.energy_power = 2
    else:
        config.init_from = "runs/vp_digits"
        config.training.update({"steps": STEPS, "learning_rate": 3e-4, "warmup": 50, "ema_decay": 0.99})
    if variant == "qc":
        config.penalty.update({"name": "quasi_conservative", "coefficient": 10.0})
    config.eval.update({"symmetry": 120, "symmetry_times": 20, "tolerances": 40})
    return config
