"""VP diffusion of 60,000 real 28x28 images of clothes (Fashion-MNIST), with a small U-Net trained for likelihood.

    python main.py --config=configs/fashion_vp.py --mode=train          # 13 minutes on 2 CPU cores
    python main.py --config=configs/fashion_vp.py --mode=eval           # 1,000 of the 10,000 test images
    python main.py --config=configs/fashion_vp.py:full --mode=train     # for a GPU; not run here

`apt-get install dataset-fashion-mnist` puts the data on a Debian or Ubuntu machine; elsewhere they are downloaded. The
variant small is the default; full has 64 channels, bfloat16 and 50,000 steps of 128 images. Nothing was trained with
it, so there is no number to expect.
"""

from configs import default

VARIANTS = ("small", "full")


def get_config(variant: str = "small"):
    """The experiment at a size."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.model.update({"channels": 16, "multipliers": (1, 2, 2), "dropout": 0.0})
    config.training.update({"steps": 2000, "batch_size": 32, "learning_rate": 2e-3})
    config.eval.update({"dequantization": "uniform", "features": "classifier", "num_test": 1000})
    if variant == "full":
        config.model.update({"channels": 64, "dropout": 0.1, "dtype": "bfloat16"})
        config.training.update({"steps": 50_000, "batch_size": 128, "learning_rate": 5e-4})
        config.eval.update({"num_test": 0, "num_samples": 10_000})
    return config
