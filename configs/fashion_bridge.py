"""A trained `fashion_vp` is sampled and scored from a shorter T, with a terminal distribution fitted to the data's x_T.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_bridge.py:mixture --mode=train       # the score is used as it is
    python main.py --config=configs/fashion_bridge.py:mixture --mode=eval

The variants are prior (nothing is fitted, to show the cost of a short T), mixture (five minutes on one CPU core; brings
the Frechet distance of `fashion_vp` from 31 to 10) and glow (500 steps). T is `--config.process.horizon`, 0.3 here.
Each variant followed by `-full` is for a run of `fashion_vp.py:full`, and was not run.
"""

from configs import fashion_vp

VARIANTS = {
    "prior": {"name": "prior"},
    "mixture": {"name": "mixture", "components": 10, "covariance": "low_rank", "rank": 32},
    "glow": {"name": "glow", "resolutions": 2, "steps": 4, "width": 32},
}


def get_config(variant: str = "mixture"):
    """The experiment with one terminal distribution."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    base = fashion_vp.get_config(size)
    config = fashion_vp.continued(size, 500 if name == "glow" else 0)
    config.process.horizon = 0.3
    config.terminal.update(VARIANTS[name])
    config.training.update({"learn": "terminal", "warmup": 0, "learning_rate": base.training.learning_rate})
    return config
