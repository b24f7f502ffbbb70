"""Images of 32 and 64 pixels with the networks and hyperparameters of the literature, for GPUs or TPUs.

    python main.py --config=configs/published_images.py:cifar10_vp --mode=train
    python main.py --config=configs/published_images.py:cifar10_vp --mode=eval

A variant is <data>_<model>, with one of
    data     cifar10 cifar100 svhn imagenet32 celeba64
    model    vp vp_deep sub_vp sub_vp_deep    DDPM++ with 4 or 8 blocks for each resolution
             ve ve_deep                       NCSN++ likewise (both Song et al. 2021, arXiv 2011.13456)
             edm edm_ncsnpp                   EDM on DDPM++ or NCSN++ (Karras et al. 2022, arXiv 2206.00364)

These variants are published:

- cifar10 with every model; those with EDM need --config.augment.name=edm --config.data.flip=False for its augmentation
  of the training images;
- imagenet32 with vp, vp_deep (Song et al. 2021, arXiv 2101.09258) and ve, ve_deep (Lu et al. 2022, arXiv 2206.08265),
  without dropout and mirroring;
- cifar100_ve_deep, svhn_ve_deep and imagenet32_ve_deep as the unconstrained networks of Chao et al. (ICLR 2023), whose
  numbers of steps are UNVERIFIED;
- celeba64_ve (the public code of Song et al., UNVERIFIED: sigma_max = 90, the rest as for CIFAR-10).

celeba64_edm has the settings of Karras et al. for faces of 64 pixels. The other variants combine the numbers of their
model with those of their data. House numbers are mirrored as published; --config.data.flip=False gives digits that read
as digits.

Numbers of parameters are as published (tests/test_plus.py). Labels are not used; EDM's conditional models need
--config.data.conditional=True. `training.fsdp` is for networks that do not fit on one device together with their
averages. Training takes days. None of the variants has been trained to completion, so we report no results.
"""

from configs import cifar10_processes

# the process, the network, the number of blocks at each resolution
MODELS = {
    "vp": ("vp_linear", "ddpmpp", 4),
    "vp_deep": ("vp_linear", "ddpmpp", 8),
    "sub_vp": ("sub_vp_linear", "ddpmpp", 4),
    "sub_vp_deep": ("sub_vp_linear", "ddpmpp", 8),
    "ve": ("ve_geometric", "ncsnpp", 4),
    "ve_deep": ("ve_geometric", "ncsnpp", 8),
    "edm": ("edm", "ddpmpp", 4),
    "edm_ncsnpp": ("edm", "ncsnpp", 4),
}
# the name of the data, whether images are mirrored, the dropout rate, the number of samples for the FID
DATA = {
    "cifar10": ("cifar10", True, 0.1, 50_000),
    "cifar100": ("cifar100", True, 0.1, 50_000),
    "svhn": ("svhn_cropped", True, 0.1, 26_032),
    "imagenet32": ("downsampled_imagenet/32x32", False, 0.0, 50_000),
    "celeba64": ("celeb_a", True, 0.1, 50_000),
}
VARIANTS = tuple(f"{data}_{model}" for data in DATA for model in MODELS)


def _edm(config, faces: bool) -> None:
    """200 million images: the learning rate rises over the first 10 million, averages have a half-life of 500,000."""
    size = 256 if faces else 512
    config.model.multipliers = (1, 2, 2, 2) if faces else (2, 2, 2)
    config.model.dropout = 0.05 if faces else 0.13
    config.training.update({"steps": 781_250 if faces else 390_620, "batch_size": size, "clip": 0.0})
    config.training.update({"learning_rate": 2e-4 if faces else 1e-3, "warmup": 10_000_000 // size})
    config.training.ema_decay = 0.5 ** (size / 500_000)
    config.sampling.steps = 39 if faces else 17  # 79 or 35 evaluations


def get_config(variant: str = "cifar10_vp"):
    """The experiment with data of `DATA` and a model of `MODELS`."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(DATA)}, with _ and one of {', '.join(MODELS)}")
    data, model = variant.split("_", 1)
    process, network, blocks = MODELS[model]
    config = cifar10_processes.get_config(process)
    config.data.name, config.data.flip, dropout, config.eval.num_samples = DATA[data]
    config.data.dequantization = "none"  # in training; likelihoods are computed with dequantization
    config.model.update({"name": network, "channels": 128, "multipliers": (1, 2, 2, 2), "blocks": blocks})
    config.model.update({"attention": (16,), "dropout": dropout, "remat": False, "dtype": "bfloat16"})
    if blocks == 8:
        config.training.steps = 950_000
    if process == "edm":
        _edm(config, faces=data == "celeba64")
    elif data == "celeba64":
        config.process.update({"sigma_max": 180.0} if process == "ve_geometric" else {})  # 90 for data in [0, 1]
    elif data in ("cifar100", "svhn") or (data == "imagenet32" and process == "ve_geometric"):
        config.training.steps = 300_000 if data == "svhn" else 600_000
    return config
