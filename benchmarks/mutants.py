"""Which wrong programs do the tests notice? One operator, comparison, sign or constant is changed at a time.

    pip install pytest-cov
    python -m benchmarks.mutants --count=300 --seed=0 --out=mutants.jsonl
    python -m benchmarks.mutants --count=300 --seed=0 --out=mutants.jsonl --slow
    python -m benchmarks.mutants --modules=theory,likelihood --count=50

All fast tests are run once under coverage, so that it is known which of them reach a line, and how long each takes.
Then changes are drawn from the modules that compute. Each is made in a copy of the tree, and the tests that reach its
line are run against it, the quickest first, as many as take two minutes; where no test reaches the line in its own
process, the test files that import the module or whose name contains its name. A survivor is printed with its line.
Results are kept line by line in `--out`, and a second start goes on from there. With `--slow`, it goes over the
survivors with slow tests that reach their line.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODULES = (
    "processes", "score", "divergence", "dequantise", "augment", "models", "terminal", "latent", "space", "objectives",
    "samplers", "theory", "likelihood", "metrics", "evaluators", "optimizers", "step", "planner", "fits", "draw",
    "runs", "data",
)  # fmt: skip
LONGEST = 120.0  # seconds of tests for one change
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed, outside annotations, docstrings and defaults of settings."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if (part := getattr(node, field, None)) is not None:
                skipped |= {id(inner) for inner in ast.walk(part)}
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            parts = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            skipped |= {id(inner) for part in parts for inner in ast.walk(part)}
        if isinstance(node, ast.JoinedStr | ast.Raise):
            skipped |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.ClassDef):
            skipped |= {id(n) for part in node.body if isinstance(part, ast.AnnAssign) for n in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield node
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node


def changed(text: str, number: int) -> tuple[str, range, str]:
    """The text with its change of that number, the lines, and the change in words."""
    tree = ast.parse(text)
    node = list(places(tree))[number]
    before, rows = ast.unparse(node), text.splitlines(keepends=True)
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        node = node.operand
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.1 + 0.01
    after = ast.unparse(node)
    original = list(places(ast.parse(text)))[number]
    starts = [0]
    for line in rows:
        starts.append(starts[-1] + len(line.encode()))
    raw = text.encode()
    begin = starts[original.lineno - 1] + original.col_offset
    end = starts[(original.end_lineno or 0) - 1] + (original.end_col_offset or 0)
    lines = range(original.lineno, (original.end_lineno or original.lineno) + 1)
    return (raw[:begin] + f"({after})".encode() + raw[end:]).decode(), lines, f"{before}  ->  {after}"


def tests_of(name: str, folder: Path) -> list[str]:
    """Test files that import the module or whose name has its name, the nearest first."""
    dotted = ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
    stem, parent = dotted.rpartition(".")[2], dotted.rpartition(".")[0]
    near, far = [], []
    for test in sorted((folder / "tests").glob("test_*.py")):
        text = test.read_text()
        if stem in test.stem:
            near.append(str(test.relative_to(folder)))
        elif dotted in text or f"from {parent} import" in text and stem in text:
            far.append(str(test.relative_to(folder)))
    return near + far


def reached(folder: Path, marks: list[str]) -> dict[str, Any]:
    """A run of all tests of a kind: "lines", {file: {line: tests that reach it}}, and "seconds" of each test."""
    from coverage import CoverageData

    times = folder / "times.xml"
    options = ["--cov=scoreflow", "--cov-context=test", "--cov-report=", f"--junitxml={times}"]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *marks, *options], cwd=folder, env=_environment(folder))
    seconds: dict[str, float] = {}
    for case in xml.etree.ElementTree.parse(times).iter("testcase"):
        name = case.attrib["classname"].replace(".", "/") + ".py::" + case.attrib["name"]
        seconds[name] = float(case.attrib["time"])
    data = CoverageData(str(folder / ".coverage"))
    data.read()
    lines = {}
    for path in data.measured_files():
        names = data.contexts_by_lineno(path)
        lines[str(Path(path).relative_to(folder))] = {
            str(line): sorted({name.partition("|")[0] for name in found if name} & seconds.keys())
            for line, found in names.items()
        }
    return {"lines": lines, "seconds": seconds}


def nearest(known: dict, name: str, lines: range) -> list[str]:
    """Tests that reach some lines of a file, the quickest first, as many as take two minutes."""
    ids: list[str] = []
    for line in lines:
        ids += known["lines"].get(name, {}).get(str(line), [])
    taken, total = [], 0.0
    for each in sorted(set(ids), key=known["seconds"].__getitem__):
        total += known["seconds"][each]
        if total < LONGEST:
            taken.append(each)
    return taken


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}


def noticed(folder: Path, tests: list[str], marks: list[str]) -> str:
    """How the tests end: "failed", "time-out", or an empty text where the change is not noticed."""
    if not tests:
        return ""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "--no-header", "-p", "no:cacheprovider"]
    command += [*marks, *tests]
    try:
        ended = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "time-out"
    return "" if ended.returncode in (0, 5) else "failed"  # 5: there are none of this kind


def drawn(root: Path, entries: list[str], seed: int) -> list[tuple[str, int]]:
    """Files and numbers of all changes of some parts of the package, in an order that depends on the seed."""
    files = [
        p
        for p in sorted((root / "scoreflow").rglob("*.py"))
        if p.relative_to(root / "scoreflow").with_suffix("").parts[0] in entries
    ]
    changes = [
        (str(p.relative_to(root)), number)
        for p in files
        for number in range(len(list(places(ast.parse(p.read_text())))))
    ]
    random.Random(seed).shuffle(changes)
    return changes


def main() -> None:
    """Draws changes, runs tests, prints survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", default=",".join(MODULES))
    parser.add_argument("--out", default="mutants.jsonl")
    parser.add_argument("--slow", action="store_true", help="try survivors again, by slow tests")
    options = parser.parse_args()
    out, marks = Path(options.out), ["-m", "slow"] * options.slow
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    known = {(row["file"], row["number"]): row["noticed"] for row in done}
    with tempfile.TemporaryDirectory() as home:
        # The copy is the only source, so that the tree may be edited meanwhile.
        copy = Path(home) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__", "*.egg-info"))
        kept = out.with_suffix(".slow.json" if options.slow else ".tests.json")
        if not kept.is_file():
            kept.write_text(json.dumps(reached(copy, marks)))
        tests = json.loads(kept.read_text())
        for name, number in drawn(copy, options.modules.split(","), options.seed)[: options.count]:
            if (name, number) in known and (known[name, number] or not options.slow):
                continue
            text = (copy / name).read_text()
            mutant, lines, words = changed(text, number)
            (copy / name).write_text(mutant)
            chosen = nearest(tests, name, lines) or ([] if options.slow else tests_of(name, copy))
            found = noticed(copy, chosen, marks)
            (copy / name).write_text(text)
            done = [row for row in done if (row["file"], row["number"]) != (name, number)]
            done.append({"file": name, "number": number, "line": lines[0], "change": words, "noticed": found})
            out.write_text("".join(json.dumps(row) + "\n" for row in done))
            print(f"{found or 'SURVIVED'}  {name}:{lines[0]}  {words}", flush=True)
    survivors = [row for row in done if not row["noticed"]]
    print(f"{len(done) - len(survivors)} of {len(done)} changes are noticed")


if __name__ == "__main__":
    main()
