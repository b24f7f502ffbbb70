"""Score-based generative models as plain functions: a forward SDE, a score function and a terminal distribution.

    model = scoreflow.load("runs/vp_digits")                    # a run's folder
    model = scoreflow.Model.from_denoiser(fn, scoreflow.edm(), (32, 32, 3))  # a function of one's own
    model.sample(key, 16), model.log_prob(x), model.score(x, t)

`processes`, `score`, `terminal` and `models` hold the parts of a model. `objectives` hold what training minimizes;
`samplers` and `likelihood` use a trained model; `theory` computes what can be expected of it. An
`experiment.Experiment` is a whole model with its data, for `train`, `evaluate`, `sample` and `planner`. `configure`
makes one from a config, and `cli` is the command line.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreflow.data import batches as batches
    from scoreflow.judge import plan as plan
    from scoreflow.judge import sample_quality as sample_quality
    from scoreflow.likelihood import bound as bound
    from scoreflow.likelihood import decode as decode
    from scoreflow.likelihood import encode as encode
    from scoreflow.likelihood import interpolate as interpolate
    from scoreflow.likelihood import log_prob as log_prob
    from scoreflow.likelihood import log_prob_and_grad as log_prob_and_grad
    from scoreflow.model import Model as Model
    from scoreflow.model import load as load
    from scoreflow.models import network as network
    from scoreflow.objectives.score_matching import score_matching as score_matching
    from scoreflow.processes.sdes import edm as edm
    from scoreflow.processes.sdes import linear_sde as linear_sde
    from scoreflow.processes.sdes import straight as straight
    from scoreflow.processes.sdes import sub_vp_linear as sub_vp_linear
    from scoreflow.processes.sdes import ve_geometric as ve_geometric
    from scoreflow.processes.sdes import vp_cosine as vp_cosine
    from scoreflow.processes.sdes import vp_linear as vp_linear
    from scoreflow.score import score_fn as score_fn
    from scoreflow.terminal import prior as prior
    from scoreflow.train import fit as fit

__version__ = "0.1.0"

_MODULES = {
    "data": ("batches",),
    "judge": ("plan", "sample_quality"),
    "likelihood": ("bound", "decode", "encode", "interpolate", "log_prob", "log_prob_and_grad"),
    "model": ("Model", "load"),
    "models": ("network",),
    "objectives.score_matching": ("score_matching",),
    "processes.sdes": ("edm", "linear_sde", "straight", "sub_vp_linear", "ve_geometric", "vp_cosine", "vp_linear"),
    "score": ("score_fn",),
    "terminal": ("prior",),
    "train": ("fit",),
}
_HOME = {name: f"scoreflow.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:  # so that the command line starts without JAX
    if name not in _HOME:
        raise AttributeError(f"module 'scoreflow' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
