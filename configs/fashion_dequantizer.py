"""Variational dequantization of Fashion-MNIST: a flow of the noise in each bin, trained on top of a `fashion_vp`.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_dequantizer.py --mode=train         # 16 minutes on one CPU core
    python main.py --config=configs/fashion_dequantizer.py --mode=eval

The score model stays as it is, and so do its samples: none are drawn. The variants are small, the default, and full,
which begins with a run of `fashion_vp.py:full` and was not run.
"""

from configs import fashion_vp

VARIANTS = fashion_vp.VARIANTS


def get_config(variant: str = "small"):
    """The experiment at a size."""
    config = fashion_vp.continued(variant, 500)
    flow = {"name": "couplings", "couplings": 4, "channels": 24, "blocks": 1, "num_heads": 0, "context": 16}
    config.dequantizer.update(flow)
    config.training.learning_rate = fashion_vp.get_config(variant).training.learning_rate
    config.eval.update({"dequantization": "variational", "num_samples": 0})
    return config
