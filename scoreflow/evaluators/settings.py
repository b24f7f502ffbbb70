"""How to evaluate."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scoreflow.metrics import Extractor
from scoreflow.runs.partial import PartialResults


class EvalPlan(NamedTuple):
    """How to evaluate.

    Attributes:
      best: the measure whose best checkpoint is used; "" for the newest.
      num_test: test examples scored; 0 for all.
      draws: dequantizations (or probes, for continuous data) of each, averaged.
      batch_size: examples per likelihood call, over all devices; 0 skips the likelihood.
      dequantise: (params, key, data [N, ...] as stored) -> Dequantised, or their latents with the other terms of the
        bound in log_q; None where the data are continuous.
      start: time at which the likelihood's ODE begins.
      divergence: `divergence.hutchinson` or `divergence.exact`.
      rtol, atol, max_steps: of the solver.
      in_log_snr: whether the solver's clock is log-SNR.
      weigh_draws: whether to give the importance-weighted estimate over the draws too. Needs the exact divergence:
        with a probe the mean of exp(log p + its error) is above p.
      bound_times: times for each example behind the SDE model's bound; 0 skips it.
      diagnose: test examples for the parts of the ODE's divergence; 0 skips them.
      symmetry: test examples for the asymmetry of the score's Jacobian over time; 0 skips it.
      symmetry_times: number of times.
      symmetry_probes: probes for each example and time; 0 for all directions.
      horizons: times at which the path may end; none skips the bound over them.
      score_error: test examples for the error against the exact score; 0 skips it.
      tolerances: samples for the adaptive sampler's evaluations over tolerances; 0 skips it.
      rtols, atols: the tolerances.
      t_min: last time of the samplers.
      conditional: whether the network is given the label.
      check: examples on which the solver's error is measured.
      baseline: whether to fit a Gaussian mixture to compare with.
      num_samples: samples behind the sample metrics; 0 skips them.
      sample_batch: samples per call, over all devices.
      cache_dir: where statistics of the training data's features are kept.
      extractor: () -> the feature function, loaded or fitted on first use.
      neighbors: k of precision and recall.
      pieces: where finished batches are kept until all is done.
    """

    best: str
    num_test: int
    draws: int
    batch_size: int
    dequantise: Callable | None
    start: float
    divergence: Callable
    rtol: float
    atol: float
    max_steps: int
    in_log_snr: bool
    weigh_draws: bool
    bound_times: int
    diagnose: int
    symmetry: int
    symmetry_times: int
    symmetry_probes: int
    horizons: tuple[float, ...]
    score_error: int
    tolerances: int
    rtols: tuple[float, ...]
    atols: tuple[float, ...]
    t_min: float
    conditional: bool
    check: int
    baseline: bool
    num_samples: int
    sample_batch: int
    cache_dir: Path
    extractor: Callable[[], Extractor]
    neighbors: int
    pieces: PartialResults
