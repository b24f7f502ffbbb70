"""VP on the two-dimensional checkerboard. Its log-density is known, so `--mode=eval` prints the KL divergence to it.

    python main.py --config=configs/vp_checkerboard.py --mode=train
    python main.py --config=configs/vp_checkerboard.py --mode=eval

The data can be any of checkerboard, eight_gaussians, mixture, mixture_1d, rings, spirals: --config.data.name=spirals
"""

from configs import default


def get_config():
    """The experiment."""
    config = default.get_config()
    config.data.name = "checkerboard"
    config.score.sigma_data = 2.3
    config.model.update({"name": "mlp", "width": 128, "depth": 3, "dropout": 0.0, "dtype": "float32"})
    config.training.steps = 10_000
    config.training.batch_size = 512
    config.training.steps_per_dispatch = 20
    config.training.checkpoint_every = 2000
    config.training.validate_every = 1000
    config.training.log_every = 100
    config.sampling.num = 2000
    config.sampling.batch_size = 2000
    config.eval.draws = 1
    config.eval.num_test = 2000
    config.eval.batch_size = 1000
    config.eval.divergence = "exact"
    config.eval.check = 200
    config.eval.num_samples = 4000
    return config
