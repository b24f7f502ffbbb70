"""CIFAR-10 under every forward process, with the values of the published experiments; for a GPU or TPU.

    python main.py --config=configs/cifar10_processes.py:vp_power --mode=train --workdir=runs/vp_power
    python main.py --config=configs/cifar10_processes.py:vp_power --mode=eval --workdir=runs/vp_power

The variants are vp_linear, vp_constant, vp_power, vp_exponential, vp_cosine, sub_vp_linear, ve_geometric, ve_constant,
ve_linear, ve_power and edm. The eight processes of Gao, Nguyen, Zhu (arXiv 2311.11003) have the numbers of their
code:

- rho = 2 (their deep configs have 5 for vp_power and 7 for ve_power: --config.process.rho=5);
- sigma is doubled, since it is for data in [0, 1] there and for [-1, 1] here;
- 1,000 steps of Euler-Maruyama for VP, and of reverse diffusion with one Langevin step for VE.

The network is the U-Net of this library. Training takes days. None of the variants has been trained to completion, so
we report no results.
"""

from configs import vp_cifar10

_BETAS = {"beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0}
_SIGMAS = {"sigma_min": 0.02, "sigma_max": 100.0, "horizon": 1.0}

VARIANTS = {
    "vp_linear": {"name": "vp_linear", **_BETAS},
    "vp_constant": {"name": "vp_constant", **_BETAS, "beta_max": 10.0},
    "vp_power": {"name": "vp_power", **_BETAS, "rho": 2.0},
    "vp_exponential": {"name": "vp_exponential", **_BETAS, "beta_max": 30.0},
    "vp_cosine": {"name": "vp_cosine", "offset": 0.008, "horizon": 0.995},
    "sub_vp_linear": {"name": "sub_vp_linear", **_BETAS},
    "ve_geometric": {"name": "ve_geometric", **_SIGMAS},
    "ve_constant": {"name": "ve_constant", **_SIGMAS},
    "ve_linear": {"name": "ve_linear", **_SIGMAS},
    "ve_power": {"name": "ve_power", **_SIGMAS, "rho": 2.0},
    "edm": {"name": "edm", "horizon": 80.0},
}


def get_config(variant: str = "vp_linear"):
    """The experiment with a process of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    exploding = variant.startswith(("ve", "edm"))
    config = vp_cifar10.get_config()
    config.process.update(VARIANTS[variant])
    config.model.blocks = 4
    config.score.prediction = "noise"
    config.weight.update({"name": "noise"})
    config.sample_times.update({"name": "uniform"})
    config.training.optimizer = "adam"
    config.training.steps = 1_300_000
    config.training.ema_decay = 0.999 if exploding else 0.9999
    config.grid.update({"name": "uniform"})
    config.sampling.steps = 1000
    config.sampling.t_min = 1e-5 if exploding else 1e-3
    config.sampler.update({"name": "euler_maruyama", "denoise": True})
    if exploding:
        options = {"predictor": "reverse_diffusion", "corrector_steps": 1, "snr": 0.16, "denoise": True}
        config.sampler.update({"name": "predictor_corrector", **options})
    if variant == "ve_constant":  # at t = 1e-5, as for the others, its noise would already be 0.3
        config.t_min = config.sampling.t_min = 1e-9
    if variant == "edm":  # Karras et al. 2022, table 1, for data in [-1, 1] with a root mean square of 1/2
        config.t_min = config.sampling.t_min = 2e-3
        config.score.update({"prediction": "edm", "sigma_data": 0.5})
        config.weight.update({"name": "edm", "sigma_data": 0.5})
        config.sample_times.update({"name": "log_normal", "mean": -1.2, "std": 1.2})
        config.grid.update({"name": "karras", "rho": 7.0})
        config.sampler.update({"name": "heun", "denoise": True})
        config.sampling.steps = 17  # Heun's steps; with the last step to the data these are 35 evaluations
    return config
