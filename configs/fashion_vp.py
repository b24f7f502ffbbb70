"""VP diffusion of 60,000 real 28x28 images of clothes (Fashion-MNIST), with a small U-Net trained for likelihood.

    python main.py --config=configs/fashion_vp.py --mode=train          # 11 minutes on one CPU core
    python main.py --config=configs/fashion_vp.py --mode=eval           # 1,000 of the 10,000 test images
    python main.py --config=configs/fashion_vp.py:full --mode=train     # for a GPU; not run here

`apt-get install dataset-fashion-mnist` puts the data on a Debian or Ubuntu machine; elsewhere they are downloaded. The
variant small is the default; full has 64 channels, bfloat16 and 50,000 steps of 128 images. Nothing was trained with
it, so there is no number to expect.
"""

from configs import default

VARIANTS = ("small", "full")
LONGER = 25
"""Steps at the size full for one at the size small."""


def get_config(variant: str = "small"):
    """The experiment at a size."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.model.update({"channels": 16, "multipliers": (1, 2, 2), "dropout": 0.0})
    config.training.update({"steps": 2000, "batch_size": 32, "learning_rate": 2e-3})
    config.eval.update({"dequantization": "uniform", "features": "classifier", "num_test": 1000, "draws": 1})
    if variant == "full":
        config.model.update({"channels": 64, "dropout": 0.1, "dtype": "bfloat16"})
        config.training.update({"steps": LONGER * 2000, "batch_size": 128, "learning_rate": 5e-4})
        config.eval.update({"num_test": 0, "num_samples": 10_000})
    return config


def divided(variant: str) -> tuple[str, str]:
    """The name of a variant of the other files, and its size: full where -full follows, and else small."""
    name = variant.removesuffix("-full")
    return name, "small" if name == variant else "full"


def continued(size: str, steps: int, begins: str = "fashion_vp"):
    """The config that begins with the run of another one of the same size, for so many steps at the size small."""
    config = get_config(size)
    config.init_from = f"runs/{begins}" + ("-full" if size == "full" else "")
    config.training.update({"steps": steps, "learning_rate": 3e-4, "warmup": 50, "ema_decay": 0.99})
    if size == "full":
        config.training.update({"steps": LONGER * steps, "learning_rate": 1e-4, "warmup": 500, "ema_decay": 0.999})
    return config
