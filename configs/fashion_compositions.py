"""Compositions of the lines of work that no paper has, on Fashion-MNIST; each continues a run for 300 steps.

    python main.py --config=configs/fashion_vp.py --mode=train
    python main.py --config=configs/fashion_compositions.py:short --mode=train
    python main.py --config=configs/fashion_compositions.py:short --mode=eval

The variant short has a quasi-conservative penalty, order 2 and T = 0.3 with a fitted mixture. The variant edm is the
EDM process with order 3; it begins with the run of `fashion_processes.py:edm`. A third composition, latent with a short
T and a mixture, is `fashion_latent.py:bridge`. Each variant followed by `-full` has the size for a GPU, and was not
run.
"""

from configs import fashion_bridge, fashion_processes, fashion_vp

VARIANTS = ("short", "edm")


def get_config(variant: str = "short"):
    """The experiment with one composition."""
    name, size = fashion_vp.divided(variant)
    if name not in VARIANTS:
        raise ValueError(f"{variant} must be one of {', '.join(VARIANTS)}, which -full may follow")
    end = "-full" if size == "full" else ""
    begins = {"short": "fashion_vp", "edm": "fashion_processes-edm"}[name]
    continued = fashion_vp.continued(size, 300, begins)
    if name == "short":
        config = fashion_bridge.get_config(f"mixture{end}")
        config.penalty.update({"name": "quasi_conservative", "coefficient": 0.1})
        config.loss.update({"name": "high_order", "order": 2})
    else:
        config = fashion_processes.get_config(f"edm{end}")
        config.loss.update({"name": "high_order", "order": 3})
    config.init_from = continued.init_from
    config.training.update({**continued.training, "learn": "all", "skip": 10})
    config.loss.ramp = config.training.warmup
    return config
