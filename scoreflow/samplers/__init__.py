"""From noise to data. Every sampler is a `Sample`, a function

    (process, score, key, x_init, grid, cond=None, *, denoise=True, trajectory=False) -> SampleResult

A sampler on a fixed grid is the loop `sample` with a `Rule`, which says what happens in one interval of the grid:

    grid = grids.log_snr(process, 20, t_min=1e-3)
    result = sample(rules.HEUN, process, score, key, x_init, grid)

`rules` holds the rules and `grids` the time grids. `adaptive` chooses its own times between the two ends of the grid.
`guide` makes score functions of score functions; no sampler needs to know.
"""

from scoreflow.samplers.adaptive import Adaptive
from scoreflow.samplers.gaussian_multistep import GaussianMultistep
from scoreflow.samplers.loop import Field, Interval, Rule, Sample, SampleResult, fold, normal, sample

__all__ = [
    "Adaptive",
    "Field",
    "GaussianMultistep",
    "Interval",
    "Rule",
    "Sample",
    "SampleResult",
    "fold",
    "normal",
    "sample",
]
