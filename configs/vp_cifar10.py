"""VP diffusion of CIFAR-10 with a U-Net; needs a GPU or TPU for days, and the archive (fetched, or put in place).

    python main.py --config=configs/vp_cifar10.py --mode=train --workdir=runs/cifar10
    python main.py --config=configs/vp_cifar10.py --mode=eval --workdir=runs/cifar10

Differs from `vp_digits` in this file alone. No result is claimed for it: it has not been trained to the end here.
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
