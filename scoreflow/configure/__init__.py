"""From a config to the parts of an experiment: the only package that knows of ml_collections.

`catalogue` lists what can be chosen, `overrides` makes a config complete, `checks` refuses what cannot work, and
`assemble` picks the parts and hands them to the library. (`scoreflow.settings` reads settings from signatures.)
"""

from scoreflow.configure.assemble import (
    check,
    dataset,
    evaluation,
    experiment,
    planner_options,
    process,
    sample_options,
    train_options,
)
from scoreflow.configure.overrides import defaults, flat_defaults, of_run, resolve

__all__ = [
    "check",
    "dataset",
    "defaults",
    "evaluation",
    "experiment",
    "flat_defaults",
    "of_run",
    "planner_options",
    "process",
    "resolve",
    "sample_options",
    "train_options",
]
