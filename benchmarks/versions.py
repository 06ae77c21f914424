"""Converted models on several versions of PyTorch: compiled whole, exported, written as ONNX.

``uv run python -m benchmarks versions`` takes the oldest version that ``pyproject.toml`` admits, 2.11 and the
newest, each in an environment of its own that goes afterwards (some 6 GB, one at a time), runs
``tests/test_versions.py`` there and writes ``docs/versions.md``. ``… versions kernels`` also compiles the kernels
for GPUs there (``python -m tests.gpu_cases``), with the Triton that belongs to each. ``… versions 2.9.1`` asks
about another version, and writes nothing.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

__all__ = ["checked", "main", "oldest", "write"]

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "versions.md"
NEWEST = "newest"
COLUMNS = {
    "torch.compile(fullgraph=True)": "test_compiled_whole_with_operators_of_ours",
    "torch.export, strict": "test_torch_export[True]",
    "torch.export": "test_torch_export[False]",
    "ONNX": "test_onnx[None]",
    "ONNX, opset 17": "test_onnx[17]",
}
KERNELS = "kernels for sm_80 and sm_90"
TEXT = """# Versions of PyTorch

A converted network (a norm, a gate on a grid, a gate inside a `forward`) on the oldest PyTorch that
`pyproject.toml` admits, on 2.11 and on the newest: compiled whole, exported, and written as ONNX, each compared
with the converted model in eager PyTorch at sizes larger and smaller than the window.{kernels}

{table}

Python {python}, {date}. Written by `uv run python -m benchmarks {command}`, which makes an environment for each
version and runs the tests in it.

PyTorch 2.6 and 2.7 are no longer admitted: their `torch.export` decides by the example's size where the minimum of
a window and an axis is to stay open, so that what it writes fails on smaller images.
"""


OF_KERNELS = """
For GPUs: how many specialisations of the kernels compile to machine code with the Triton that belongs to that
PyTorch, and how many fail."""


def oldest() -> str:
    """The oldest PyTorch that pyproject.toml admits."""
    found = re.search(r'"torch>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit("pyproject.toml names no oldest torch (torch>=…)")
    return found[1]


def checked(version: str, kernels: bool) -> dict[str, str]:
    """One row of the table: a version of PyTorch ("2.11", "2.9.1", "newest") in an environment of its own."""
    asked = "torch" if version == NEWEST else f"torch=={version}" + (".0" if version.count(".") < 2 else "")
    with tempfile.TemporaryDirectory(prefix="tlsc-versions-") as folder:
        python = str(Path(folder, "env", "bin" if os.name == "posix" else "Scripts", "python"))
        _uv("venv", "--quiet", "--python", sys.executable, str(Path(folder, "env")))
        _uv(
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            asked,
            "-e",
            f"{ROOT}[onnx]",
            "pytest>=8.2",
            "setuptools",
        )
        row = dict(zip(("PyTorch", "Triton"), _versions(python), strict=True))
        print(f"PyTorch {row['PyTorch']} …", flush=True)
        results = _results(python, Path(folder, "results.xml"))
        row |= {column: results.get(test, "not run") for column, test in COLUMNS.items()}
        if kernels:
            row[KERNELS] = _kernels(python)
    return row


def _uv(*arguments: str) -> None:
    try:
        subprocess.run(["uv", *arguments], check=True, cwd=ROOT)
    except FileNotFoundError:
        raise SystemExit("uv makes the environments, and is not installed: pip install uv") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"uv {' '.join(arguments[:2])} failed ({error.returncode}); its message stands above"
        ) from None


def _versions(python: str) -> list[str]:
    code = (
        "import importlib.metadata as m, torch\nprint(torch.__version__.split('+')[0])\n"
        "print(*[d.version for d in m.distributions() if d.name == 'triton'] or ['none'])"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def _results(python: str, file: Path) -> dict[str, str]:
    """ "right", or the error's first words, by the test's name."""
    # Settings of the project's are for the newest versions: others warn of other things.
    settings = [
        "-o",
        "addopts=",
        "-o",
        "filterwarnings=",
        "--noconftest",
        "--import-mode=importlib",
        "-q",
        "--no-header",
        "--tb=line",
    ]
    subprocess.run(
        [
            python,
            "-m",
            "pytest",
            *settings,
            "-p",
            "no:cacheprovider",
            f"--junitxml={file}",
            "tests/test_versions.py",
        ],
        cwd=ROOT,
        check=False,
    )
    found = {}
    for case in ElementTree.parse(file).iter("testcase") if file.exists() else ():
        told = [child.get("message", "") for child in case if child.tag in ("failure", "error", "skipped")]
        first = told[0].splitlines()[0][:80] if told and told[0] else "fails"
        found[case.get("name", "")] = first if told else "right"
    return found


def _kernels(python: str) -> str:
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.gpu_cases"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    counted = re.search(r"^(\d+) specialisations \(.*\), (\d+) calls failed", done.stdout, re.M)
    return f"{counted[1]} compile, {counted[2]} fail" if counted else "fails"


def write(table: str, kernels: bool) -> None:
    """The page in docs/."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    told, command = (" " + OF_KERNELS.strip(), "versions kernels") if kernels else ("", "versions")
    date = datetime.date.today()
    TABLE.write_text(
        TEXT.format(table=table, python=python, date=date, kernels=told, command=command), encoding="utf-8"
    )
    print(f"\nwritten to {TABLE.relative_to(ROOT)}")


def main(parts: Sequence[str] = ()) -> None:
    kernels = "kernels" in parts
    named = [part for part in parts if part != "kernels"]
    wrong = [part for part in named if part != NEWEST and not re.fullmatch(r"\d+\.\d+(\.\d+)?", part)]
    if wrong:
        raise SystemExit(f"not a version of PyTorch: {', '.join(wrong)}; e.g. 2.11, 2.9.1, newest, or kernels")
    rows = [checked(version, kernels) for version in named or [oldest(), "2.11", NEWEST]]
    table = tabulate(rows, headers="keys", tablefmt="github")
    print(f"\n{table}")
    if not named:
        write(table, kernels)
    if any(not cell.startswith(("right", "skipped")) for row in rows for cell in [row[c] for c in COLUMNS]):
        raise SystemExit(1)
