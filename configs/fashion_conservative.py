"""A trained `fashion_vp` fine-tuned without (u) or with (qc) a penalty on the antisymmetry, or a constrained score (c).

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_conservative.py:qc --mode=train       # 10 minutes on one CPU core; u: 2
    python main.py --config=configs/fashion_conservative.py:qc --mode=eval

The variant c is the gradient of an energy, starts from nothing, and has as many steps as fit into 15 minutes: each
takes some three times as long. Each variant followed by `-full` has the size for a GPU, and was not run.
"""

from configs import fashion_vp

VARIANTS = ("c", "u", "qc")


def get_config(variant: str = "qc"):
    """The experiment with one kind of score."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    if name == "c":
        config = fashion_vp.get_config(size)
        config.training.steps = 600 * (fashion_vp.LONGER if size == "full" else 1)
        config.score.energy_power = 2
    else:
        config = fashion_vp.continued(size, 300)
    if name == "qc":
        config.penalty.update({"name": "quasi_conservative", "coefficient": 1.0})
    config.eval.update({"symmetry": 20, "symmetry_times": 5, "symmetry_probes": 8})
    return config
