"""Two ranks under real launchers: 20 steps of vp_digits as in one process, and what happens where a rank dies.

python -m benchmarks.launchers                      every launcher that is found
python -m benchmarks.launchers mpirun srun          those named; a path is that of an mpirun

`mpirun` of Open MPI 4 and of 5 and `srun` are run as a person would run them. For `srun` the script brings up `munged`,
`slurmctld` and `slurmd` on this machine, which takes the rights of root and the packages `slurm-wlm` and `munge`, and
stops them at the end. The other way to begin is the three variables of `scoreflow.runs.parallel`, named `variables`.

It prints for every launcher the largest relative difference of a loss from that of one process, and the seconds that
the other rank lives on after one is killed in the middle of training.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEPS = ("--config.training.steps=20", "--config.training.warmup=5", "--config.training.log_every=1")
FEW = (*STEPS, "--config.training.validate_every=0", "--config.training.checkpoint_every=20")
FEW = (*FEW, "--config.training.steps_per_dispatch=1", "--config.training.pictures=False")
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
SLURM = """
ClusterName=here
SlurmctldHost={host}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


def environment(**extra: str) -> dict[str, str]:
    """This one, with one device for each process."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **ROOT_MAY, **extra}


def command(folder: Path, *more: str) -> list[str]:
    """The command that trains in a folder."""
    return [sys.executable, str(ROOT / "main.py"), "--config=vp_digits", f"--workdir={folder}", *FEW, *more]


@contextlib.contextmanager
def started(launcher: str, folder: Path, *more: str) -> Iterator[list[subprocess.Popen]]:
    """The processes that a person starts: the launcher, or with `variables` both ranks."""
    words, here = command(folder, *more), environment()
    if launcher == "variables":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = {"SCOREFLOW_COORDINATOR": f"127.0.0.1:{port}", "SCOREFLOW_PROCESSES": "2"}
        starts = [(words, {**here, **names, "SCOREFLOW_PROCESS_ID": str(i)}) for i in range(2)]
    elif launcher == "srun":
        starts = [(["srun", "-n", "2", "--overcommit", "--export=ALL", *words], here)]
    else:
        starts = [([launcher, "-n", "2", "--oversubscribe", *words], here)]
    log = open(folder.with_suffix(".log"), "w")
    running = [subprocess.Popen(w, env=e, stdout=log, stderr=log, start_new_session=True) for w, e in starts]
    try:
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        log.close()


def losses(folder: Path) -> list[float]:
    """Of every step."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def ranks(folder: Path) -> list[int]:
    """The processes that train in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if f"--workdir={folder}".encode() in words and Path(words[0].decode()).name.startswith("python"):
                found.append(int(path.parent.name))
    return found


def apart(launcher: str, folder: Path, alone: list[float]) -> str:
    """Trains with two ranks; the largest difference from one process."""
    with started(launcher, folder) as running:
        codes = [process.wait(timeout=900) for process in running]
    if any(codes):
        return f"exit codes {codes}: {folder.with_suffix('.log').read_text()[-400:]}"
    ours = losses(folder)
    assert "2 processes" in folder.with_suffix(".log").read_text(), "each rank thought it was alone"
    return f"{max(abs(a - b) / abs(b) for a, b in zip(ours, alone, strict=True)):.1e}"


def after_a_death(launcher: str, folder: Path) -> str:
    """Kills a rank in the middle of training; the seconds until no other is left."""
    with started(launcher, folder, "--config.training.steps=100000") as running:
        while not (folder / "metrics.jsonl").is_file() or len(losses(folder)) < 5:
            time.sleep(0.5)
            if all(process.poll() is not None for process in running):
                return f"nothing: it did not start, {folder.with_suffix('.log').read_text()[-400:]}"
        os.kill(max(ranks(folder)), signal.SIGKILL)
        began = time.monotonic()
        while ranks(folder) and time.monotonic() - began < 300:
            time.sleep(0.2)
        seconds = time.monotonic() - began
    lines = [line for line in folder.with_suffix(".log").read_text().splitlines() if line.startswith("error:")]
    return f"{seconds:.0f} s; " + (lines[-1] if lines else "no line of ours")


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A cluster of this machine."""
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    path = folder / "slurm.conf"
    path.write_text(SLURM.format(host=host, folder=folder, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(path)
    Path("/run/munge").mkdir(exist_ok=True)
    subprocess.run(["chown", "munge:munge", "/run/munge"], check=True)
    starts = (["runuser", "-u", "munge", "--", "munged", "--force"], ["slurmctld", "-i", "-f", str(path)])
    for words in (*starts, ["slurmd", "-f", str(path)]):
        subprocess.run(words, check=True, capture_output=True)
    for _ in range(60):
        if "idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout:
            break
        time.sleep(1)
    try:
        yield
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            subprocess.run(["pkill", "-x", name])


def main(names: list[str]) -> None:
    """Prints a line for every launcher."""
    names = names or ["variables", *(name for name in ("mpirun", "srun") if shutil.which(name))]
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        folder = Path(home)
        if "srun" in names:
            stack.enter_context(slurm(folder))
        subprocess.run(command(folder / "alone"), env=environment(), check=True, capture_output=True)
        alone = losses(folder / "alone")
        for i, name in enumerate(names):
            said = subprocess.run([name, "--version"], capture_output=True, text=True) if name != "variables" else None
            print(f"{name}: {said.stdout.splitlines()[0] if said else 'the three variables'}", flush=True)
            print(f"  largest difference of 20 losses from one process: {apart(name, folder / f'{i}-pair', alone)}")
            print(f"  a dead rank ends the other after {after_a_death(name, folder / f'{i}-dead')}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
