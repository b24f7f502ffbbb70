"""Seconds of a call."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def median_seconds(run: Callable[[], Any], repeats: int, warm: int = 1) -> float:
    """Median seconds of a call until its result is there, after `warm` calls that compile and warm up."""
    seconds = []
    for _ in range(warm + repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[warm:]))
