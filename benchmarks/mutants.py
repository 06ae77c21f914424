"""How many small errors in the main formulas the tests notice.

``uv run python -m benchmarks mutants OUT.json`` makes the list of mutants (operators, comparisons, constants by
one, a dropped ``not``, arguments exchanged, a statement left out), takes of each file a share that depends on
nothing but the mutants' own text, and runs each in a copy of the tree against the tests that ``TESTS`` names for
its file, up to the first failure. ``OUT.json`` holds what was changed where, whether a test noticed, and which.
With a second file, written by another state of the tree, the same mutants are run: first by the test that noticed
them there, then by all; mutants whose code is gone are counted apart. An interrupted run goes on where it stopped.

For an older state of the tree, copy this file into its ``benchmarks/`` and run ``python -m benchmarks.mutants``.
Not on Windows: every mutant runs in a fork of a process that has PyTorch and pytest already.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

__all__ = ["Mutant", "apply", "main", "mutants"]

ROOT = Path(__file__).parents[1]
SHARE = 7  # mutants taken of each file
SECONDS = 300  # of the CPU: a mutant that takes more is taken for noticed, as it hangs

# Sources and the tests that are to notice an error there, the quick ones first.
TESTS: dict[str, tuple[str, ...]] = {
    "tlsc/_windows.py": ("tests/statistics/test_windows.py", "tests/test_modules.py"),
    "tlsc/_statistics/reference.py": ("tests/test_golden.py", "tests/test_modules.py", "tests/test_functional.py"),
    "tlsc/_statistics/any_size.py": ("tests/test_functional.py", "tests/test_kernels.py"),
    "tlsc/_statistics/correction.py": ("tests/statistics/test_correction.py", "tests/test_calibrate.py"),
    "tlsc/_sites/kind.py": ("tests/sites", "tests/test_surgery.py"),
    "tlsc/_sites/local_module.py": ("tests/sites", "tests/test_surgery.py"),
    "tlsc/_sites/trial.py": ("tests/test_attention.py", "tests/test_surgery.py", "tests/test_owners.py"),
    "tlsc/_surgery/owners.py": (
        "tests/test_surgery.py",
        "tests/test_owners.py",
        "tests/test_invariants.py -k 'not MPRNet'",
    ),
    "tlsc/_surgery/planner.py": (
        "tests/test_plan.py",
        "tests/test_surgery.py",
        "tests/test_invariants.py -k 'not MPRNet'",
    ),
    "tlsc/_surgery/probe.py": (
        "tests/test_probe.py",
        "tests/test_surgery.py",
        "tests/test_invariants.py -k 'not MPRNet'",
    ),
    "tlsc/_surgery/selection.py": ("tests/test_plan.py", "tests/test_surgery.py"),
    "tlsc/_surgery/swapping.py": (
        "tests/test_surgery.py",
        "tests/surgery",
        "tests/test_invariants.py -k 'not MPRNet'",
    ),
    "eval/judge/metrics.py": ("tests/eval/test_metrics.py", "tests/test_quality.py"),
    "eval/judge/shift.py": ("tests/eval/test_shift.py",),
    "eval/judge/verdict.py": ("tests/eval/test_report.py", "tests/eval/test_harness.py"),
    "eval/run/cells.py": ("tests/eval/test_harness.py", "tests/eval/test_eval.py"),
    "eval/run/patches.py": ("tests/eval/test_harness.py",),
    "eval/run/records.py": ("tests/eval/test_harness.py",),
    "eval/run/runner.py": ("tests/eval/test_harness.py", "tests/eval/test_eval.py"),
    "eval/run/tiles.py": ("tests/test_restore.py",),
}

for name in ("average_pool", "group_norm", "instance_norm"):
    TESTS[f"tlsc/_sites/{name}.py"] = ("tests/test_modules.py", "tests/test_surgery.py")
for name in ("calibrate", "fit", "regions", "runs"):
    TESTS[f"tlsc/_calibration/{name}.py"] = ("tests/test_calibrate.py",)
for name in ("_statistics", "_sites"):
    TESTS[f"tlsc/{name}/transposed_attention.py"] = ("tests/test_attention.py",)

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """In ``file``'s function, the ``nth`` (from 0) of equal pieces of code ``before`` becomes ``after``."""

    file: str
    function: str
    before: str
    after: str
    nth: int
    outcome: str = ""  # noticed, unnoticed, gone
    test: str = ""  # the one that noticed

    @property
    def key(self) -> str:
        """What it is, whatever came of it."""
        return json.dumps([self.file, self.function, self.before, self.after, self.nth])


def mutants(source: str, file: str) -> Iterator[Mutant]:
    """Every mutant of the functions in a file's ``source``, in the order of the text."""
    seen: dict[tuple[str, str], int] = {}
    raw, lines = source.encode(), _starts(source)
    for function, node in _nodes(ast.parse(source), ""):
        before = raw[slice(*_span(node, lines))].decode()
        nth = seen[function, before] = seen.get((function, before), -1) + 1
        for other in _variants(node):
            yield Mutant(file, function, before, ast.unparse(ast.fix_missing_locations(other)), nth)


def apply(source: str, mutant: Mutant) -> str | None:
    """``source`` with the mutant in it; None where its code is not there any more."""
    count = -1
    raw, lines = source.encode(), _starts(source)
    for function, node in _nodes(ast.parse(source), ""):
        start, end = _span(node, lines)
        if function == mutant.function and raw[start:end].decode() == mutant.before:
            count += 1
            if count == mutant.nth:
                after = mutant.after if isinstance(node, ast.stmt) else f"({mutant.after})"
                return (raw[:start] + after.encode() + raw[end:]).decode()
    return None


def _starts(source: str) -> list[int]:
    """Where each line begins, in bytes."""
    return list(itertools.accumulate((len(line.encode()) for line in source.splitlines(keepends=True)), initial=0))


def _span(node: ast.expr | ast.stmt, lines: list[int]) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    """What may change: expressions and statements in functions, with the function's full name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            body = ast.Module(list(child.body), [])  # neither decorators nor defaults
            yield from _nodes(body, f"{function}.{child.name}".lstrip("."))
        elif isinstance(child, (ast.Raise, ast.JoinedStr, ast.AnnAssign, ast.Assert, ast.Import, ast.ImportFrom)):
            continue  # messages, and what only type checkers need
        elif isinstance(child, (ast.expr, ast.stmt)):
            if function:
                yield function, child
            yield from _nodes(child, function)
        else:
            yield from _nodes(child, function)


def _variants(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    other = copy.deepcopy(node)
    if isinstance(other, (ast.BinOp, ast.BoolOp)) and type(other.op) in SWAPS:
        other.op = SWAPS[type(other.op)]()
        yield other
    elif isinstance(other, ast.Compare) and type(other.ops[0]) in SWAPS:
        other.ops[0] = SWAPS[type(other.ops[0])]()
        yield other
    elif isinstance(other, ast.UnaryOp) and isinstance(other.op, (ast.Not, ast.USub)):
        yield other.operand
    elif isinstance(other, ast.Constant) and isinstance(other.value, bool):
        yield ast.Constant(not other.value)
    elif isinstance(other, ast.Constant) and isinstance(other.value, (int, float)):
        yield ast.Constant(other.value + 1)
        yield ast.Constant(other.value - 1)
    elif isinstance(other, ast.Call) and len(other.args) > 1 and not isinstance(other.args[0], ast.Starred):
        if not isinstance(other.args[1], ast.Starred) and ast.dump(other.args[0]) != ast.dump(other.args[1]):
            other.args[:2] = other.args[1::-1]
            yield other
    elif isinstance(other, (ast.AugAssign, ast.If)) or (
        isinstance(other, ast.Expr) and isinstance(other.value, ast.Call)
    ):
        yield ast.Pass()


def sample(root: Path, share: int = SHARE) -> list[Mutant]:
    """A share of each file's mutants, the same wherever their text is the same; the first of every file first."""
    chosen = []
    for file in filter(lambda file: (root / file).exists(), TESTS):
        every = mutants((root / file).read_text(), file)
        chosen += enumerate(sorted(every, key=lambda one: hashlib.sha256(one.key.encode()).digest())[:share])
    return [mutant for _, mutant in sorted(chosen, key=lambda one: one[0])]


class Noticing:
    """A plugin of pytest: writes the name of the first test that fails into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.file.write_text(report.nodeid)  # type: ignore[attr-defined]


def run(tree: Path, tests: str) -> tuple[int, str]:
    """pytest's exit status, or minus the signal that ended it, and the test that failed; in a fork."""
    import resource

    import pytest

    noticed = tree.with_name("noticed")
    noticed.unlink(missing_ok=True)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, noticed.read_text() if noticed.exists() else ""
    status = 99
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        output = os.open(tree.with_name("output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        options = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--tb=short"]
        status = int(pytest.main([*options, *shlex.split(tests)], plugins=[Noticing(noticed)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def judge(tree: Path, mutant: Mutant, stamp: int) -> Mutant:
    """The mutant with its outcome; the file is put back afterwards."""
    path = tree / mutant.file
    source = path.read_text()
    changed = apply(source, mutant)
    if changed is None:
        return replace(mutant, outcome="gone")
    # Compiled forms are found by time and size: each text gets a time of its own. Numba looks at a kernel's own
    # file only, and takes windows from another.
    path.write_text(changed)
    os.utime(path, (stamp, stamp))
    os.environ["NUMBA_CACHE_DIR"] = str(
        tree.with_name(f"numba-{stamp}" if mutant.file == "tlsc/_windows.py" else "numba")
    )
    try:
        there = (tree / mutant.test.partition("::")[0]).is_file()
        for tests in (*([shlex.quote(mutant.test)] if there else []), *TESTS[mutant.file]):
            status, test = run(tree, tests)
            if status < 0 or status in (1, 2, 3):
                return replace(mutant, outcome="noticed", test=test)
            if status and tests in TESTS[mutant.file]:  # a single test may be no more
                raise SystemExit(f"pytest {tests} ended with {status}:\n{tree.with_name('output').read_text()}")
        return replace(mutant, outcome="unnoticed", test="")
    finally:
        path.write_text(source)
        os.utime(path, (stamp + 1, stamp + 1))


def main(files: Sequence[str]) -> None:
    """Write ``files[0]``; of the same mutants as in ``files[1]``, where that is given."""
    if not 1 <= len(files) <= 2:
        raise SystemExit("name the file to write, and after it one whose mutants are to be run again")
    if "tlsc" in sys.modules:  # the other benchmarks have imported it: the forks are to import the mutants
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.mutants", *files])
    out, *other = map(Path, files)
    listed = _read(other[0]) if other else sample(ROOT)
    done = {mutant.key: mutant for mutant in _read(out)} if out.exists() else {}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("torch", "numba", "scipy.optimize", "PIL.Image", "pytest"):
        importlib.import_module(name)
    folder = out.with_suffix(".trees")
    if not folder.exists():
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=unwanted)
    for file in {mutant.file for mutant in listed}:  # an interrupted run may have left one changed
        if (ROOT / file).exists():
            shutil.copy2(ROOT / file, folder / "tree" / file)
    for number, mutant in enumerate(listed):
        if mutant.key not in done:
            done[mutant.key] = judge(folder / "tree", mutant, 1_600_000_000 + 2 * number)
            out.write_text(json.dumps([asdict(one) for one in done.values()], indent=1))
            print(*astuple(done[mutant.key]), sep=" | ", flush=True)
    shutil.rmtree(folder)
    outcomes = Counter(done[mutant.key].outcome for mutant in listed)
    print(*(f"{count} {outcome}" for outcome, count in outcomes.items()), sep=", ")


def _read(file: Path) -> list[Mutant]:
    return [Mutant(**one) for one in json.loads(file.read_text())]


if __name__ == "__main__":
    main(sys.argv[1:])
