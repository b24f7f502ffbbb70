"""The digits under every forward process: `vp_digits` with another SDE, and the times and grid that go with it.

    python main.py --config=configs/digits_processes.py:ve_power --mode=train       # 3 to 4 minutes on 2 CPU cores
    python main.py --config=configs/digits_processes.py:ve_power --mode=eval

The variants are vp_linear, vp_constant, vp_power, vp_exponential, vp_cosine, vp_geometric, sub_vp_linear, ou,
ve_geometric, ve_constant, ve_linear, ve_power and edm. The numbers are those of the published experiments where there
are any. The ends of sigma, like all numbers in this file, are for data in [-1, 1].
"""

from configs import vp_digits

_BETAS = {"beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0}
_SIGMAS = {"sigma_min": 0.01, "sigma_max": 50.0, "horizon": 1.0}

# The process; the time at which training and likelihood begin; the last time of the sampler's grid. At these times, the
# noise is about the same small noise in all processes, or the noise that the process begins with.
VARIANTS = {
    "vp_linear": ({"name": "vp_linear", **_BETAS}, 1e-5, 1e-3),
    "vp_constant": ({"name": "vp_constant", **_BETAS, "beta_max": 10.0}, 2e-7, 2e-5),
    "vp_power": ({"name": "vp_power", **_BETAS, "rho": 2.0}, 1e-5, 1e-3),
    "vp_exponential": ({"name": "vp_exponential", **_BETAS, "beta_max": 30.0}, 1e-5, 1e-3),
    "vp_cosine": ({"name": "vp_cosine", "offset": 0.008, "horizon": 0.995}, 4e-5, 3e-3),
    "vp_geometric": ({"name": "vp_geometric", "variance_min": 3e-5, "variance_max": 0.999, "horizon": 1.0}, 1e-5, 1e-5),
    "sub_vp_linear": ({"name": "sub_vp_linear", **_BETAS}, 1e-3, 1e-2),
    "ou": ({"name": "theory_ou", "al": 5.0, "si": 10.0**0.5, "horizon": 1.0}, 1e-7, 1e-5),
    "ve_geometric": ({"name": "ve_geometric", **_SIGMAS}, 1e-5, 1e-5),
    "ve_constant": ({"name": "ve_constant", **_SIGMAS}, 1e-9, 1e-9),
    "ve_linear": ({"name": "ve_linear", **_SIGMAS}, 1e-5, 1e-5),
    "ve_power": ({"name": "ve_power", **_SIGMAS, "rho": 2.0}, 1e-5, 1e-5),
    "edm": ({"name": "edm", "horizon": 80.0}, 2e-3, 1e-2),
}


def get_config(variant: str = "vp_linear"):
    """The experiment with a process of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    process, t_min, last = VARIANTS[variant]
    config = vp_digits.get_config()
    config.process.update(process)
    config.t_min, config.sampling.t_min = t_min, last
    if process["name"].startswith(("ve", "edm")):
        config.score.update({"prediction": "edm", "sigma_data": 0.8})
        config.grid.update({"name": "karras", "rho": 7.0})
    return config
