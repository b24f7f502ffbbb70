"""CIFAR-10 with the networks and hyperparameters of the literature; needs GPUs or TPUs for days.

    python main.py --config=configs/cifar10_networks.py:ddpmpp_vp --mode=train --workdir=runs/ddpmpp_vp
    python main.py --config=configs/cifar10_networks.py:ddpmpp_vp --mode=eval --workdir=runs/ddpmpp_vp

Song et al. 2021 (arXiv 2011.13456): ddpmpp_vp ddpmpp_sub_vp ncsnpp_ve, and deep ddpmpp_deep_vp ddpmpp_deep_sub_vp
ncsnpp_deep_ve, with 8 blocks for 4. Karras et al. 2022 (arXiv 2206.00364): edm_ddpmpp edm_ncsnpp, without their
augmentation of the training images. Numbers of parameters are as published (tests/test_plus.py). Classes are not used.
No result is claimed: none has been trained to the end here.
"""

from ml_collections import ConfigDict

from configs import cifar10_processes

# process, network, blocks for each resolution
VARIANTS = {
    "ddpmpp_vp": ("vp_linear", "ddpmpp", 4),
    "ddpmpp_deep_vp": ("vp_linear", "ddpmpp", 8),
    "ddpmpp_sub_vp": ("sub_vp_linear", "ddpmpp", 4),
    "ddpmpp_deep_sub_vp": ("sub_vp_linear", "ddpmpp", 8),
    "ncsnpp_ve": ("ve_geometric", "ncsnpp", 4),
    "ncsnpp_deep_ve": ("ve_geometric", "ncsnpp", 8),
    "edm_ddpmpp": ("edm", "ddpmpp", 4),
    "edm_ncsnpp": ("edm", "ncsnpp", 4),
}


def get_config(variant: str = "ddpmpp_vp"):
    """The experiment with a network of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    process, network, blocks = VARIANTS[variant]
    edm = process == "edm"
    config = cifar10_processes.get_config(process)
    config.model = ConfigDict({"name": network, "channels": 128, "multipliers": (2, 2, 2) if edm else (1, 2, 2, 2)})
    config.model.update({"blocks": blocks, "attention": (16,), "dropout": 0.13 if edm else 0.1, "remat": False})
    config.model.dtype = "bfloat16"
    if edm:  # 200 million images
        config.training.update({"steps": 390_000, "batch_size": 512, "learning_rate": 1e-3, "warmup": 19_500})
        config.training.update({"ema_decay": 0.9993, "checkpoint_every": 5000, "clip": 0.0})
    return config
