"""What a run survives, counted: kills, wrong inputs, flipped bytes, and two commands at once on one folder.

    python -m benchmarks.campaigns                       all four; half an hour on 2 CPU cores
    python -m benchmarks.campaigns kills inputs          those named

kills    SIGKILL at random moments of train, eval, sample and stats. The command is then given again, until it is done;
         its results must be those of an undisturbed run to the last bit, and no file it leaves may be unreadable.
inputs   settings of the wrong type, out of range, empty, not a number or unknown, for every setting of every
         choice in turn; files and folders that hold something else than they should. Each must end in one line that
         names setting and value, with exit code 1 or 2, and leave nothing behind. Values that are allowed and too large
         for the machine are not tried.
flips    one flipped bit in a file of a checkpoint or of the cache. It must be found, or change no result.
pairs    two trainings, two evaluations, and a training with an evaluation, at once.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
CONFIG = """
from configs import vp_digits

def get_config():
    config = vp_digits.get_config()
    config.model.update({"name": "mlp", "width": 16, "depth": 1, "dropout": 0.1})
    config.training.update({"steps": 60, "batch_size": 16, "warmup": 2, "log_every": 1, "checkpoint_every": 1})
    config.training.update({"validate_every": 10, "steps_per_dispatch": 1, "keep": 2})
    config.sampling.update({"num": 400, "batch_size": 20, "steps": 20})
    config.eval.update({"draws": 3, "num_test": 120, "batch_size": 8, "check": 16, "num_samples": 400, "rtol": 1e-4})
    config.eval.features = "digits"
    return config
"""
KILLS = {"train": 40, "eval": 30, "sample": 15, "stats": 15}
TIMES = ("seconds", "rate", "per_second")  # words in the names of figures that are times


def environment(home: Path) -> dict[str, str]:
    """One CPU device, and a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache")}


def start(home: Path, *words: str) -> subprocess.Popen:
    """The command, in a folder."""
    command = [sys.executable, str(ROOT / "main.py"), *words]
    return subprocess.Popen(
        command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def complete(home: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    process = start(home, *words)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


# ----------------------------------------------------------------------------------------------------------------------


def figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a tree of JSON that is no time, by its path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from figures(entry, f"{name}.{key}")
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from figures(entry, f"{name}.{i}")
    elif not any(word in name for word in TIMES):
        yield name, value


def results(home: Path, mode: str, run: str) -> dict[str, Any]:
    """What a mode has written, to be compared."""
    folder = home / run
    if mode == "train":
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = sorted(path.name for path in (folder / "checkpoints").glob("*.sha256.json"))
        # the picture is drawn with the averaged parameters; files of checkpoints have names that are drawn at random
        return dict(figures(lines)) | {"steps": steps, "picture": (folder / "samples/60.png").read_bytes()}
    if mode == "eval":
        return dict(figures(json.loads((folder / "eval/60/metrics.json").read_text())))
    if mode == "sample":
        return {"x": (folder / "samples/60-400.npy").read_bytes()}
    kept = {path.name: dict(np.load(path)) for path in (home / "cache/scoreflow/statistics").glob("[!.]*.npz")}
    return {f"{name}.{key}": array.tobytes() for name, arrays in kept.items() for key, array in arrays.items()}


def unreadable(folder: Path) -> list[str]:
    """Files that should be whole and are not; those whose name begins with a dot are not finished yet."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".npy": lambda path: np.load(path),
        ".npz": lambda path: dict(np.load(path)),
        ".png": lambda path: np.asarray(Image.open(path)),
    }
    bad = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts) or "orbax" in str(path)
        if path.is_file() and path.suffix in readers and not hidden:
            try:
                readers[path.suffix](path)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                bad.append(f"{path}: {error}")
    return bad


def kills(home: Path) -> None:
    """Prints how many kills a run has survived."""
    rng, survived, wrong = np.random.default_rng(0), 0, []
    (home / "tiny.py").write_text(CONFIG)
    config = "--config=tiny.py"
    code, _, err = complete(home, config, "--workdir=calm")
    assert code == 0, err
    for mode, count in KILLS.items():
        words = (config, f"--mode={mode}")
        forget = lambda: shutil.rmtree(home / "cache/scoreflow/statistics", ignore_errors=True)
        if mode != "train":
            shutil.copytree(home / "calm/checkpoints", home / "wild/checkpoints", dirs_exist_ok=True)
            shutil.copy(home / "calm/config.json", home / "wild/config.json")
        forget()
        if mode == "train":  # once more, from the beginning, as what is compared and timed
            shutil.rmtree(home / "calm")
        began = time.monotonic()
        code, _, err = complete(home, *words, "--workdir=calm")
        assert code == 0, err
        wanted, whole = results(home, mode, "calm"), time.monotonic() - began
        done = 0
        while done < count:
            shutil.rmtree(home / "wild" / ("eval" if mode == "eval" else "samples"), ignore_errors=True)
            if mode == "train":
                shutil.rmtree(home / "wild", ignore_errors=True)
            forget()
            for _ in range(4):
                process = start(home, *words, "--workdir=wild")
                time.sleep(rng.uniform(0.2, 1.0) * whole)
                alive = process.poll() is None
                if alive:
                    process.send_signal(signal.SIGKILL)
                    done += 1
                process.communicate()
                wrong += unreadable(home / "wild") + unreadable(home / "cache/scoreflow")
                if not alive or done == count:
                    break
            code, _, err = complete(home, *words, "--workdir=wild")
            ours = results(home, mode, "wild") if code == 0 else {}
            if code:
                wrong.append(f"{mode}: {err[-300:]}")
            elif apart := [key for key in ours.keys() | wanted.keys() if ours.get(key) != wanted.get(key)]:
                wrong.append(f"{mode}: another {', '.join(sorted(apart)[:4])}")
        survived += done
        print(f"  {mode}: {done} kills; {len(wrong)} wrong so far {wrong[-2:]}", flush=True)
    print(f"kills: {survived - len(wrong)} of {survived} survived to the last bit")


# ----------------------------------------------------------------------------------------------------------------------


def wrong_words() -> Iterator[tuple[list[str], str]]:
    """Command lines with one wrong setting, and the name that the line must have."""
    from scoreflow.configure.catalogue import CATALOGUES, SECTIONS
    from scoreflow.settings import settings

    def bad(check: Any) -> list[str]:
        words = {
            int: ["many", "1.5", "", "nan", "-7", "99999999999999999999999"],
            float: ["many", "", "nan", "inf", "-1e400"],
            bool: ["maybe", "2", ""],
            tuple: ["(-1,)", "(0,x)", "(nan,)"],
            str: ["no_such_choice", ""],
        }[check.kind]
        parsed = []
        for word in words:
            try:
                if not check.allows(check.parse(word)):
                    parsed.append(word)
            except (ValueError, OverflowError):
                parsed.append(word)
        return parsed

    for section, catalogue in CATALOGUES.items():
        yield [f"--config.{section}.name=no_such_choice"], f"{section}.name = 'no_such_choice'"
        for row in catalogue.rows:
            for name, setting in catalogue.settings(row).items():
                for word in bad(setting.check):
                    yield [f"--config.{section}.name={row}", f"--config.{section}.{name}={word}"], f"{section}.{name} ="
            yield [f"--config.{section}.name={row}", f"--config.{section}.no_such=1"], f"{section}.no_such"
    for section, sources in SECTIONS.items():
        prefix = f"{section}." if section else ""
        for name, setting in settings(*sources).items():
            for word in bad(setting.check):
                yield [f"--config.{prefix}{name}={word}"], f"{prefix}{name} ="
        yield [f"--config.{prefix}no_such=1"], f"{prefix}no_such"


def wrong_files(home: Path) -> Iterator[tuple[list[str], str]]:
    """Command lines whose files or folders hold something else than they should, and a word of the line."""
    rng = np.random.default_rng(0)
    save = lambda name, **arrays: np.savez(home / name, **arrays)
    arrays = lambda name, *more: [f"--config.data.path={name}", "--config.data.name=arrays", *more]
    x = rng.integers(0, 17, (60, 8, 8), np.uint8)
    (home / "text.npy").write_text("not an array")
    save("empty.npz")
    save("labels.npz", train=x, train_label=np.arange(59))
    save("nan.npz", train=np.full((60, 3), np.nan, np.float32))
    save("levels.npz", train=x + 250)
    save("objects.npz", train=np.array([{}] * 60, dtype=object))
    np.save(home / "one.npy", x[:1])
    np.save(home / "flat.npy", np.zeros(60, np.float32))
    np.save(home / "words.npy", np.array(["a"] * 60))
    np.save(home / "complex.npy", np.zeros((60, 3), np.complex64))
    for name in ("text.npy", "empty.npz", "labels.npz", "nan.npz", "objects.npz", "one.npy", "flat.npy"):
        yield arrays(name), name
    for name in ("words.npy", "complex.npy", "missing.npy"):
        yield arrays(name), name
    yield arrays("levels.npz", "--config.data.num_levels=17"), "levels.npz has level"
    yield arrays("gs://bucket/x.npy"), "gs"
    folders = {"nothing": [], "one_image": [(8, 8)], "sizes": [(8, 8), (9, 9), (8, 8)]}
    for name, sides in folders.items():
        (home / name).mkdir()
        for i, side in enumerate(sides):
            Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8)).save(home / name / f"{i}.png")
        yield ["--config.data.name=folder", f"--config.data.path={name}"], name
    shutil.copytree(home / "sizes", home / "broken")
    (home / "broken/3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    yield ["--config.data.name=folder", "--config.data.path=broken", "--config.data.image_size=8"], "3.png"
    yield ["--config.data.name=folder"], "data.path"
    yield ["--config.init_from=nowhere"], "nowhere"
    yield ["--mode=eval"], "train first"
    yield ["--mode=sample"], "train first"
    yield ["--workdir=s3://bucket/run"], "s3"
    (home / "used").mkdir()
    (home / "used/config.json").write_text("{")
    yield ["--workdir=used"], "used/config.json"
    (home / "a_file").write_text("")
    yield ["--workdir=a_file"], "a_file"


def in_process(words: list[str]) -> tuple[int, str]:
    """Exit code and errors of a command that only shows its settings, without starting a process."""
    from absl import flags

    from scoreflow import cli

    out, err = io.StringIO(), io.StringIO()
    flags.FLAGS.unparse_flags()
    cli._overrides.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli._main(cli._parse(["main.py", "--config=vp_digits", "--mode=show", *words]))
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, err.getvalue()


def inputs(home: Path, most: int = 300) -> None:
    """Prints how many wrong inputs did not end in one line that names them."""
    bad, count, every = [], 0, list(wrong_words())

    def judge(words: list[str], name: str, code: int, err: str) -> None:
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        good = code in (1, 2) and len(lines) == 1 and name in lines[0] and "Traceback" not in err
        if not good:
            bad.append(f"{' '.join(words)}: exit {code}, {err[-200:]!r}")

    for words, name in every:
        judge(words, name, *in_process(words))
        count += 1
    print(f"  {count} wrong settings: {len(bad)} wrong {bad[:3]}", flush=True)
    (home / "tiny.py").write_text(CONFIG)
    for words, name in wrong_files(home):
        before = {path for path in home.rglob("*") if "cache" not in path.parts}
        code, _, err = complete(home, "--config=tiny.py", "--workdir=run", *words)
        judge(words, name, code, err)
        if left := {path for path in home.rglob("*") if "cache" not in path.parts} - before:
            bad.append(f"{' '.join(words)} leaves {sorted(map(str, left))[:3]}")
            shutil.rmtree(home / "run", ignore_errors=True)
        count += 1
    print(f"inputs: {len(bad)} of {count} end otherwise than in one line that names them")
    for line in bad:
        print(f"  {line}")


# ----------------------------------------------------------------------------------------------------------------------


def flips(home: Path, each: int = 10) -> None:
    """Prints how many flipped bits were found, or changed no result."""
    rng, wrong = np.random.default_rng(0), []
    (home / "tiny.py").write_text(CONFIG)
    for mode in ("train", "eval"):
        code, _, err = complete(home, "--config=tiny.py", "--workdir=run", f"--mode={mode}")
        assert code == 0, err
    wanted = results(home, "eval", "run")
    kept = sorted(path for path in (home / "run/checkpoints/60").rglob("*") if path.is_file() and path.stat().st_size)
    cache = sorted(
        path for name in ("statistics/*.npz", "classifier*") for path in (home / "cache/scoreflow").glob(name)
    )
    for path in [kept[i] for i in rng.integers(len(kept), size=each)] + [cache[i % len(cache)] for i in range(each)]:
        whole = path.read_bytes()
        place, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        shutil.rmtree(home / "run/eval", ignore_errors=True)
        code, _, err = complete(home, "--config=tiny.py", "--workdir=run", "--mode=eval")
        if path in kept:
            good = code == 0 and "checkpoints/60 is damaged" in err and (home / "run/eval/59/metrics.json").is_file()
        else:
            good = code == 0 and results(home, "eval", "run") == wanted
        if not good:
            wrong.append(f"{path}, byte {place}: exit {code}, {err[-200:]}")
        path.write_bytes(whole)
    print(f"flips: {2 * each - len(wrong)} of {2 * each} were found or changed nothing {wrong[:3]}")


def pairs(home: Path) -> None:
    """Prints what two commands at once on one folder do."""
    (home / "tiny.py").write_text(CONFIG)
    complete(home, "--config=tiny.py", "--workdir=alone")
    cases = {"two trainings": ("train", "train"), "two evaluations": ("eval", "eval")}
    cases["a training and an evaluation"] = ("train", "eval")
    for name, modes in cases.items():
        run = name.replace(" ", "_")
        if modes[0] != modes[1] or modes[0] == "eval":
            complete(home, "--config=tiny.py", f"--workdir={run}", "--config.training.steps=60")
        more = ("--config.training.steps=120",) if modes == ("train", "eval") else ()
        both = [
            start(home, "--config=tiny.py", f"--workdir={run}", f"--mode={mode}", *more * (mode == "train"))
            for mode in modes
        ]
        ended = [(process.communicate(timeout=900), process.returncode) for process in both]
        errors = [line for (_, err), _ in ended for line in err.splitlines() if line.startswith(("error", "Trace"))]
        print(f"pairs: {name}: exit codes {[code for _, code in ended]}, {unreadable(home / run) or 'all files whole'}")
        for line in errors:
            print(f"  {line}")
        if modes[0] == "train" and modes[1] == "train":
            print(f"  the run is that of one alone: {results(home, 'train', run) == results(home, 'train', 'alone')}")


CAMPAIGNS = {"kills": kills, "inputs": inputs, "flips": flips, "pairs": pairs}


def main(names: list[str]) -> None:
    """Runs the campaigns of these names, or all."""
    for name in names or CAMPAIGNS:
        with tempfile.TemporaryDirectory() as home:
            CAMPAIGNS[name](Path(home))


if __name__ == "__main__":
    main(sys.argv[1:])
