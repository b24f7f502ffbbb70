import io
import json
import os
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboardX import event_file_writer

from scoreflow.metrics import Estimate
from scoreflow.runs import log as run_log
from scoreflow.runs import report
from tests import tiny


def test_a_grid_has_words_above_its_columns_and_is_the_same_below():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    plain, headed = (report.grid(images, 3, columns=2, head=head) for head in (None, ["t = 1", "t = 0.5"]))
    band = len(headed) - len(plain)
    np.testing.assert_array_equal(headed[band:], plain)
    middle = headed.shape[1] // 2
    left, right = headed[:band, :middle], headed[:band, -middle:]
    assert (left > 200).any() and (right > 200).any() and not np.array_equal(left, right)


def test_grid_places_every_image_with_gaps_and_enlarges():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)  # three 2x2 images: 0, 1, 2
    grid = report.grid(images, 3, columns=2, gap=1, min_width=1)
    assert grid.shape == (7, 7, 3)
    assert (grid[1:3, 1:3] == 0).all() and (grid[1:3, 4:6] == 128).all() and (grid[4:6, 1:3] == 255).all()
    assert (grid[0] == 96).all() and (grid[:, 3] == 96).all() and (grid[4:6, 4:6] == 96).all()
    large = report.grid(images, 3, columns=2, min_width=640)
    assert large.shape[1] >= 640 and (large[:: large.shape[0] // 7, :: large.shape[1] // 7][:7, :7] == grid).all()


def test_a_resumed_log_has_each_step_once(tmp_path):
    log = run_log.Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.scalars(step, loss=step / 2)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    log = run_log.Log(tmp_path, 2)
    log.scalars(3, loss=7.0)
    log.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 7.0}]


def test_progress_passes_everything_on_and_ends_at_the_total(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(report.sys, "stderr", out)
    assert list(report.progress(range(5), total=10, initial=5)) == list(range(5))
    assert out.getvalue().startswith("10/10 steps") and out.getvalue().count("\n") == 1


def test_progress_in_a_notebook_is_a_bar(monkeypatch):
    out = io.StringIO()
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=True, config={}))
    monkeypatch.setattr(report.sys, "stderr", out)
    monkeypatch.setitem(report.sys.modules, "IPython", kernel)
    assert list(report.progress(range(5), total=5)) == list(range(5))
    assert "100%" in out.getvalue() and "5/5" in out.getvalue()


def test_progress_without_a_total_counts_and_says_no_time_left(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(report.sys, "stderr", out)
    monkeypatch.setattr(report, "_PLAIN_SECONDS", 0.0)
    assert list(report.progress(iter("abc"), total=None)) == list("abc")
    lines = out.getvalue().splitlines()
    assert [line.partition("   ")[0] for line in lines] == ["2 steps", "3 steps"] and "left" not in out.getvalue()


def test_lines_of_progress_have_a_note_and_are_aligned(monkeypatch):
    """The clock stands at 0, 10, 20, ... seconds, one reading for each step: 0.1 steps a second."""
    out, clock = io.StringIO(), iter(range(0, 1000, 10))
    monkeypatch.setattr(report.sys, "stderr", out)
    monkeypatch.setattr(report.time, "monotonic", lambda: float(next(clock)))
    list(report.progress(range(12), total=12, note=lambda: "loss 0.5"))
    lines = out.getvalue().splitlines()
    assert lines[0] == " 2/12 steps   loss 0.5   0.1/s   100 s left"
    assert lines[-1] == "12/12 steps   loss 0.5   0.1/s   0 s left"
    assert [report.duration(seconds) for seconds in (119, 120, 7199, 7200)] == ["119 s", "2 min", "120 min", "2.0 h"]


def test_tables_align():
    assert report.table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_json_is_written_whole(tmp_path):
    report.write_json(tmp_path / "deep" / "a.json", {"x": Estimate(1.0, 0.5)._asdict()})
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"x": {"value": 1.0, "stderr": 0.5}}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_curves_are_dashed_by_name(tmp_path, monkeypatch):
    styles = {}
    monkeypatch.setattr(Axes, "loglog", lambda axes, x, y, label, linestyle, **_: styles.update({label: linestyle}))
    monkeypatch.setattr(Figure, "legend", lambda *args, **options: None)
    report.plot_steps(tmp_path / "a.png", [1, 2], {"panel": {"a": [2.0, 1.0], "b": [1.0]}}, dashed={"b"})
    assert styles == {"a": "-", "b": "--"} and (tmp_path / "a.png").exists()
    report.plot_steps(tmp_path / "a.png", [1, 2], {"panel": {"ve": [2.0, 1.0]}}, 1.5)
    assert styles["ve"] == "-"


def test_plots_are_written_and_say_what_is_on_their_axes(tmp_path, monkeypatch):
    figures, save = [], report._save
    monkeypatch.setattr(report, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    log_snr, curve = np.linspace(-5, 10, 7), np.linspace(1, 0, 7)
    report.plot_noise_error(tmp_path / "noise.png", log_snr, {"test": curve})
    report.plot_loss(tmp_path / "loss.png", [{"step": 1, "loss": 2.0}, {"step": 1, "validation_loss": 1.0}])
    report.plot_steps(tmp_path / "steps.png", [1, 2], {"a": {"ve": [2.0, 1.0]}, "b": {"ve": [1.0]}}, ylabel="distance")
    assert (
        len(figures) == 3
        and all(each.axes for each in figures)
        and {path.name for path in tmp_path.iterdir()} == {"noise.png", "loss.png", "steps.png"}
    )
    assert all(axes.get_xlabel() and axes.get_ylabel() for figure in figures for axes in figure.axes)


def test_panels_say_what_is_on_their_axes(tmp_path, monkeypatch):
    figures, save = [], report._save
    monkeypatch.setattr(report, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    report.plot_times(tmp_path / "times.png", np.linspace(0, 1, 4), {"weighted": {"": np.ones(4)}})
    report.plot_points(tmp_path / "points.png", {"samples": np.zeros((3, 2))}, 1.0)
    report.plot_signed(tmp_path / "signed.png", {"t = 0.1": np.ones((4, 4))}, 1.0)
    shown = [axes for figure in figures for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(shown) == 3 and all(axes.get_xlabel() and axes.get_ylabel() for axes in shown)


def test_a_full_disk_ends_the_events_in_one_line_and_never_waits(tmp_path, monkeypatch, capsys):
    """Two hundred numbers are all in metrics.jsonl; the writer of TensorBoard's is asked once."""
    asked = []

    def full(self):
        asked.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "flush", full)
    log = run_log.Log(tmp_path, 0)
    for step in range(1, 201):
        log.scalars(step, loss=float(step))
    log.image(200, "grid", np.zeros((4, 4, 3), np.uint8))
    log.close()
    assert [record["loss"] for record in run_log.read_metrics(tmp_path)] == list(range(1, 201))
    assert capsys.readouterr().err.count("No space left on device") == 1 == len(asked)


def test_colors_are_only_on_a_terminal_that_wants_them(monkeypatch):
    out = io.StringIO()
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert report.styled("words", "1", out) == "words"
    monkeypatch.setattr(out, "isatty", lambda: True)
    assert report.styled("words", "1", out) == "\x1b[1mwords\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert report.styled("words", "1", out) == "words"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert report.styled("words", "1", out) == "words"


def test_signs_are_spelled_out_where_an_encoding_lacks_them():
    buffer = io.BytesIO()
    narrow = io.TextIOWrapper(buffer, encoding="ascii")
    report.say("0.5 ± 0.1, “quoted”", file=narrow)
    assert buffer.getvalue() == b"0.5 +- 0.1, ?quoted?\n"
    assert report.typed("0.5 ± 0.1", "utf-8") == "0.5 ± 0.1"
    assert report.typed("0.5 ± 0.1", "latin-1") == "0.5 ± 0.1"


def test_what_is_said_while_a_bar_is_shown_has_a_line_of_its_own(monkeypatch, capsys):
    """The bar is cleared before the line: what is on the terminal then ends at the beginning of an empty line."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(report.sys, "stderr", out)
    for i in report.progress(range(3), total=3):
        if i == 1:
            before = len(out.getvalue())
            report.say("in between")
            assert out.getvalue()[before:].startswith("\r ")  # over the bar
    assert capsys.readouterr().out == "in between\n" and not report._bars


@pytest.mark.parametrize("program", [("-m", "scoreflow"), (str(tiny.ROOT / "main.py"),)], ids=["command", "main"])
def test_help_fits_a_terminal_and_names_the_commonest_settings(program, tmp_path):
    result = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 100
    for words in (
        "--mode=eval",
        "--config.training.steps=5000",
        "--config=own_images",
        "--mode=compare",
        "--mode=plan",
    ):
        assert words in result.stdout


def test_a_wait_shows_its_seconds_on_a_terminal_and_leaves_none_of_them(monkeypatch):
    """Elsewhere there is the line alone."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with report.waiting("computing"):
        time.sleep(2.3)
    written = terminal.getvalue()
    shown = [int(each) for each in re.findall(r"\r  (\d+) s", written)]
    assert shown and shown == sorted(shown) and written.endswith("\r")
    monkeypatch.setattr(sys, "stderr", elsewhere := io.StringIO())
    with report.waiting("computing"):
        time.sleep(1.2)
    assert elsewhere.getvalue() == ""
