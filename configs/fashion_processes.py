"""Fashion-MNIST under five forward processes: `fashion_vp` with another SDE, and the times and grid that go with it.

    python main.py --config=configs/fashion_processes.py:edm --mode=train       # 11 minutes on one CPU core
    python main.py --config=configs/fashion_processes.py:edm --mode=eval

The variants are vp_linear (`fashion_vp` itself), sub_vp_linear, ve_geometric, edm and straight, and the same followed
by `-full` at the size for a GPU. The times are those of `digits_processes` and `digits_velocity`.
"""

from configs import digits_processes, digits_velocity, fashion_vp

VARIANTS = ("vp_linear", "sub_vp_linear", "ve_geometric", "edm", "straight")


def get_config(variant: str = "edm"):
    """The experiment with a process of `VARIANTS`."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    config = fashion_vp.get_config(size)
    if name == "straight":
        process, t_min, last, prediction = digits_velocity.VARIANTS[name]
        config.score.prediction = prediction
    else:
        process, t_min, last = digits_processes.VARIANTS[name]
    config.process.update(process)
    config.t_min, config.sampling.t_min = t_min, last
    if name in ("ve_geometric", "edm"):
        config.score.update({"prediction": "edm", "sigma_data": "auto"})
        config.grid.update({"name": "karras", "rho": 7.0})
    return config
