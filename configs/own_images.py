"""VP diffusion of your own images: a folder, an archive or a table of them, gray or in color.

    python main.py --config=configs/own_images.py --config.data.path=photos --mode=train           # four minutes, CPU
    python main.py --config=configs/own_images.py --mode=eval
    python main.py --config=configs/own_images.py:large --config.data.path=photos --mode=train     # for a GPU

The variant small, the default, makes images of 16x16 pixels and trains 400 steps, to see whether the images are read
as they should be and what to expect; large makes images of 64x64 pixels, with a network of 64 to 256 channels. Samples
are measured by their pixels; `--config.eval.features=inception` gives the FID once its weights are there (docs/fid.md).
"""

from configs import default

VARIANTS = ("small", "large")


def get_config(variant: str = "small"):
    """The experiment at a size."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    config = default.get_config()
    config.data.name = "folder"
    config.data.path = "photos"
    config.data.image_size = 16
    config.model.update({"channels": 16, "multipliers": (1, 4), "dropout": 0.0})
    config.training.update({"steps": 400, "batch_size": 64, "learning_rate": 2e-3})
    config.eval.update({"dequantization": "uniform", "features": "pixels", "num_test": 1000, "draws": 1})
    if variant == "large":
        config.data.image_size = 64
        config.model.update({"channels": 64, "multipliers": (1, 2, 4, 4), "attention": (16,), "dropout": 0.1})
        config.model.dtype = "bfloat16"
        config.training.update({"steps": 100_000, "learning_rate": 2e-4, "warmup": 2000})
        config.eval.num_samples = 10_000
    return config
