"""Compositions of the lines of work that no paper has, on Fashion-MNIST; each continues a run for 300 steps.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_compositions.py:short --mode=train       # 8 minutes on 2 CPU cores
    python main.py --config=configs/fashion_compositions.py:short --mode=eval

The variant short has a quasi-conservative penalty, order 2 and T = 0.3 with a fitted mixture. The variant edm is the
EDM process with order 3; it begins with the run of `fashion_processes.py:edm`. A third composition, latent with a short
T and a mixture, is `fashion_latent.py:bridge`.
"""

from configs import fashion_bridge, fashion_processes

VARIANTS = ("short", "edm")


def get_config(variant: str = "short"):
    """The experiment with one composition."""
    if variant not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}")
    if variant == "short":
        config = fashion_bridge.get_config("mixture")
        config.training.learn = "all"
        config.penalty.update({"name": "quasi_conservative", "coefficient": 0.1})
        config.loss.update({"name": "high_order", "order": 2, "ramp": 50})
    else:
        config = fashion_processes.get_config("edm")
        config.init_from = "runs/fashion_processes-edm"
        config.loss.update({"name": "high_order", "order": 3, "ramp": 50})
    config.training.update({"steps": 300, "learning_rate": 3e-4, "warmup": 50, "ema_decay": 0.99, "skip": 10})
    return config
