"""What the log averages, and in how much memory."""

import tracemalloc

import numpy as np
import pytest

from scoreflow.runs import log as run_log
from scoreflow.runs.meter import Latest, Meter


def add(meter: Meter, first: int, last: int) -> None:
    """One step per dispatch, whose loss is its number and takes one over its number of seconds."""
    for step in range(first, last + 1):
        meter.add({"loss": np.array([step], np.float32)}, 1.0 / step)


def test_the_meter_of_a_run_without_lines_averages_its_last_thousand_dispatches(tmp_path):
    meter = Meter(run_log.Log(tmp_path, 0), 0, 4, lines=False)
    add(meter, 1, 5000)
    meter.write(5000)
    assert run_log.read_metrics(tmp_path)[-1]["loss"] == np.mean(np.arange(4001, 5001))
    assert meter.pace == 1 / 5000


def test_the_meter_averages_all_steps_of_a_line_and_only_those(tmp_path):
    meter = Meter(run_log.Log(tmp_path, 0), 0, 4)
    for first, last in ((1, 3000), (3001, 3002)):
        add(meter, first, last)
        meter.write(last)
    first, second = run_log.read_metrics(tmp_path)
    assert first["loss"] == 1500.5 and second["loss"] == 3001.5
    assert first["step"] == 3000 and first["examples_per_second"] > 0


def test_the_meter_counts_skipped_steps_and_leaves_them_out_of_the_means(tmp_path):
    meter = Meter(run_log.Log(tmp_path, 0), 0, 4, skip=True)
    meter.add({"loss": np.array([1.0, np.nan]), "skipped": np.array([0.0, 1.0])}, 1.0)
    meter.add({"loss": np.array([np.nan, 3.0]), "skipped": np.array([1.0, 0.0])}, 1.0)
    meter.write(4)
    meter.add({"loss": np.array([np.nan]), "skipped": np.array([1.0])}, 1.0)
    meter.write(5)
    first, second = run_log.read_metrics(tmp_path)
    assert first["loss"] == 2.0 and first["skipped"] == 2
    assert np.isnan(second["loss"]) and second["skipped"] == 1


@pytest.mark.parametrize("lines", [True, False])
def test_the_meter_needs_no_more_memory_for_more_steps(tmp_path, lines):
    """As with training.log_every = 10**6: ten thousand more dispatches take less than a byte each."""
    meter = Meter(run_log.Log(tmp_path, 0), 0, 4, lines=lines)
    add(meter, 1, 2000)
    tracemalloc.start()
    try:
        add(meter, 2001, 4000)
        before = tracemalloc.get_traced_memory()[0]
        add(meter, 4001, 14_000)
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def test_the_loss_that_is_shown_follows_finite_values():
    """The mean of 1 and 3 is 2; after 48 more of 2, one of 3 counts a fiftieth; what is not finite changes nothing."""
    latest = Latest()
    assert latest.words() == ""
    for losses in ([np.nan], [1.0], [2.0, np.inf, 4.0], [np.nan, np.nan]):
        latest.add(np.asarray(losses))
    assert latest.loss == pytest.approx(2.0) and latest.words() == "loss 2"
    for loss in [2.0] * 48 + [3.0]:
        latest.add(np.asarray([loss]))
    latest.validation = 2.5
    assert latest.loss == pytest.approx(2.02) and latest.words() == "loss 2.02   validation 2.5"
