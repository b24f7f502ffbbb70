"""VP diffusion of CIFAR-10 with a U-Net. Training takes days on a GPU or TPU.

    python main.py --config=configs/vp_cifar10.py --mode=train --workdir=runs/cifar10
    python main.py --config=configs/vp_cifar10.py --mode=eval --workdir=runs/cifar10

The archive of the data is downloaded, or read from the data folder if you put it there. Only the settings in this file
differ from those of `vp_digits`. The config has not been trained to completion, so we report no results.
"""

from configs import default


def get_config():
    """The experiment."""
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.flip = True
    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 3
    config.model.attention = (16,)
    config.model.num_heads = 4
    config.model.dtype = "bfloat16"
    config.training.steps = 500_000
    config.training.batch_size = 128
    config.training.steps_per_dispatch = 10
    config.training.learning_rate = 2e-4
    config.training.schedule = "constant"
    config.training.warmup = 5000
    config.training.ema_decay = 0.9999
    config.training.log_every = 500
    config.training.validate_every = 5000
    config.training.checkpoint_every = 5000
    config.training.sample_every = 25_000
    config.eval.dequantization = "uniform"
    config.eval.batch_size = 256
    config.eval.num_samples = 50_000
    config.eval.features = "inception"
    config.sampling.batch_size = 512
    return config
