"""What a person looks at while a run trains and when it ends: pictures, and the words to go on with."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from scoreflow import draw
from scoreflow.evaluators.error_curve import LEAST, error_curve
from scoreflow.experiment import SAMPLE, Experiment
from scoreflow.runs import parallel, report
from scoreflow.runs.log import Log, read_metrics
from scoreflow.types import Params

_MOST = 400  # samples in a grid
_TIMED = 16  # examples for which an evaluation of the network is timed


class Pictures:
    """The pictures of a run. The sampler is compiled once, and again where fewer samples than a batch are drawn.

    Args:
      experiment: what is trained.
      folder: of the run.
      log: gets the grids of images, too.
      batch_size: samples per call.
      num: samples in a grid, of which there are at most 400.
    """

    def __init__(self, experiment: Experiment, folder: Path, log: Log, batch_size: int, num: int):
        self.experiment, self.folder, self.log = experiment, folder, log
        self.batch_size, self.num = batch_size, min(num, _MOST)
        self._draws: dict[int, Callable[..., draw.Drawn]] = {}

    def samples(self, params: Params, step: int, num: int = _MOST) -> list[Path]:
        """Draws samples, at most `num`, with the same noise at every step, and writes their grid, if there is one."""
        num = min(num, self.num)
        size = min(self.batch_size, num)
        if size not in self._draws:
            self._draws[size] = draw.make_draw(self.experiment, size)
        x = self._draws[size](params, self.experiment.key(SAMPLE), num).x
        path = self.folder / "samples" / f"{step}.png"
        if not draw.write_picture(self.experiment, x, path):
            return []
        if (pixels := draw.picture(self.experiment, x)) is not None:
            self.log.image(step, "samples", pixels)
        return [path]

    def at_the_end(
        self, params: Params, step: int, *, budget: float = float("inf"), evaluation: float | None = None
    ) -> list[Path]:
        """The samples, the loss by log-SNR, the paths of samples and the loss by step.

        Args:
          params: averaged parameters.
          step: the last one.
          budget: seconds that each picture may take, without compilation; where it is short, fewer examples are used.
          evaluation: seconds that the network takes for one example; None where they are still to be measured.

        Returns:
          what was written.
        """
        if evaluation is None:
            evaluation = 0.0 if budget == float("inf") else seconds_of_evaluation(self.experiment, params)
        # as the first process has them: all processes must draw as many
        evaluation, budget = (float(value) for value in parallel.from_first(np.array([evaluation, budget])))
        one = evaluation * self.experiment.sampler.evaluations
        num = self.num if one == 0.0 else int(min(self.num, budget / one))
        written = self._at_most(params, step, num, one)
        with report.waiting("drawing the plots"):
            return written + self._plots(params, step, budget, evaluation)

    def _plots(self, params: Params, step: int, budget: float, evaluation: float) -> list[Path]:
        """The curves and the paths of samples, as far as there is time for them."""
        written, one = [], evaluation * self.experiment.sampler.evaluations
        if self.experiment.model.network.apply is not None and LEAST * evaluation <= budget:
            written.append(self._loss_by_log_snr(params, step, budget))
        if draw.num_paths(self.experiment) * one <= budget:
            path = self.folder / "trajectory.png"
            if draw.write_trajectory(self.experiment, params, path, self.experiment.key(SAMPLE)):
                written.append(path)
        if records := read_metrics(self.folder):
            written.append(self.folder / "loss.png")
            report.plot_loss(written[-1], records)
        return written

    def _loss_by_log_snr(self, params: Params, step: int, seconds: float) -> Path:
        """Writes the curves as numbers, for comparisons, and as a picture, whose path is returned."""
        measured = error_curve(self.experiment, params, seconds=seconds)
        path = self.folder / "loss_by_log_snr.png"
        rows = {"log_snr": measured.log_snr, **measured.curves}
        numbers = {name: np.asarray(values, float).tolist() for name, values in rows.items()}
        report.write_json(path.with_suffix(".json"), {"step": step, "examples": measured.examples, **numbers})
        report.plot_noise_error(path, measured.log_snr, measured.curves)
        return path

    def _at_most(self, params: Params, step: int, num: int, seconds: float) -> list[Path]:
        """The grid of `num` samples, where there is time for any and they do not replace a larger one."""
        path = self.folder / "samples" / f"{step}.png"
        if num < self.num and parallel.agree(path.is_file()):
            return [path]
        if not num:
            report.say(f"drawing no samples, since each takes about {seconds:.0f} s; --mode=sample draws them")
            return []
        fewer = f", not {self.num}, since each takes about {seconds:.1f} s" if num < self.num else ""
        report.say(f"drawing {num} samples{fewer}")
        return self.samples(params, step, num)


def seconds_of_evaluation(experiment: Experiment, params: Params) -> float:
    """Seconds that the score takes for one example once it is compiled, measured; 0 where there is no network."""
    if experiment.model.network.apply is None:
        return 0.0
    size = parallel.rounded_up(_TIMED)
    cond, t = draw.labels(experiment, size, 0, -1), np.full(size, experiment.model.process.horizon, np.float32)
    inputs = parallel.shard((np.zeros((size, *experiment.space.shape), np.float32), t, cond))
    run = parallel.jit(lambda params, x, t, cond: experiment.model.score(params)(x, t, cond))
    jax.block_until_ready(run(params, *inputs))
    began = time.monotonic()
    jax.block_until_ready(run(params, *inputs))
    return (time.monotonic() - began) / size


def command() -> str:
    """How this program was started, for the next command: as `scoreflow`, as a script, or as a module."""
    script, python = sys.argv[0], shlex.quote(sys.orig_argv[0] or "python")
    if Path(script).name == "main.py":
        return f"{python} {shlex.quote(script)}"
    if Path(script).name != "scoreflow":
        return f"{python} -m scoreflow"
    return "scoreflow" if shutil.which("scoreflow") else shlex.quote(script)


def end(experiment: Experiment, folder: Path, step: int, seconds: float | None, written: list[Path]) -> None:
    """The words that a run ends with; `seconds` of training, None where there was none.

    The next commands are only given where the run has a config.
    """
    if peak := parallel.peak_memory():
        report.say(f"most memory in use on a device: {peak / 2**20:,.0f} MiB")
    if seconds is not None:
        report.say(f"trained to step {step} in {seconds:.0f} s")
    if written:
        samples, plots = (
            [path for path in written if (path.parent.name == "samples") == kind] for kind in (True, False)
        )
        for what, paths in (("samples:", samples), ("plots:  ", plots)):
            for i, path in enumerate(paths):
                report.say(f"{what if not i else ' ' * len(what)} {path}")
    if not experiment.config:
        return
    report.say(f"next:    {command()} --workdir={shlex.quote(str(folder))} --mode=eval")
    if experiment.model.network.apply is None:
        report.say(f"         then a score prior for this VAE: latent.name = joint or frozen, init_from = {folder}")
