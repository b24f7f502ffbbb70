"""Score-based generative models as plain functions: a forward SDE, a score function and a terminal distribution.

`processes`, `score`, `terminal` and `models` hold the parts of a model. `objectives` hold what training minimizes;
`samplers` and `likelihood` use a trained model; `theory` computes what can be expected of it. An
`experiment.Experiment` is a whole model with its data, for `train`, `evaluate`, `sample` and `planner`. `configure`
makes one from a config, and `cli` is the command line.
"""

__version__ = "0.1.0"
