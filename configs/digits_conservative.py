"""Digits with a constrained score (c), or a trained `vp_digits` fine-tuned without (u) or with (qc) a penalty.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/digits_conservative.py:qc --mode=train       # 4 minutes on 2 CPU cores
    python main.py --config=configs/digits_conservative.py:qc --mode=eval

In addition to the usual metrics, `--mode=eval` prints how far the score is from a gradient field, and how many
evaluations a solver needs to follow it. From one run each, expect for u a weighted asymmetry of 1.56 and 1.93 bits/dim,
and for qc 0.41 and 2.00. The coefficient of qc is large; at 0.001, qc gives the same results as u. The variant c takes
four times as long to train, and some ten times as long to evaluate.
"""

from configs import vp_digits

VARIANTS = ("c", "u", "qc")
STEPS = 600  # number of steps of fine-tuning; c is trained from scratch for these and those of vp_digits together


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
