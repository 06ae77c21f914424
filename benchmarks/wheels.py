"""The wheel and the source archive, installed: ``uv run python -m benchmarks wheels``.

Builds both, and for each Python that uv finds on this machine (3.10 to 3.14; ``… wheels 3.12`` or the path of an
interpreter: that one), installs the wheel without extras, with each extra by itself and with all, into environments
of their own, and runs ``tests/smoke.py`` there; the source archive once. Prints a table; the exit status is 1 where
a smoke test failed. A Python that cannot be had is named, and so is an extra whose packages do not install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

__all__ = ["EXTRAS", "PYTHONS", "main", "tried"]

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "eval", "networks", "onnx", "basicsr", "lightning", "app", "tracking")
NOT_HAD = "cannot be had here"


def tried(python: str, package: Path, extra: str) -> str:
    """What came of installing a wheel or source archive with an extra on an interpreter: "passed", or a line."""
    with tempfile.TemporaryDirectory(prefix="tlsc-wheel-") as folder:
        environment = Path(folder, "env")
        made = _run("uv", "venv", "--quiet", "--no-python-downloads", "--python", python, str(environment))
        if made.returncode:
            return NOT_HAD
        inside = str(environment / ("bin" if os.name == "posix" else "Scripts") / "python")
        wanted = f"tlsc[{extra}] @ {package.as_uri()}" if extra else str(package)
        installed = _run("uv", "pip", "install", "--quiet", "--python", inside, wanted)
        if installed.returncode:
            return f"not installed: {_last(installed.stderr)}"
        # A folder of its own: nothing of the checkout is to be found by accident.
        script = shutil.copy(ROOT / "tests" / "smoke.py", folder)
        done = _run(inside, "-W", "error::DeprecationWarning:tlsc", script, cwd=folder)
        if done.returncode:
            return f"FAILED: {_last(done.stderr or done.stdout)}"
        return "passed"


def _run(*words: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, check=False)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[-1])[:160] if lines else "no message"


def main(parts: Sequence[str]) -> None:
    """Build, install, try, print."""
    with tempfile.TemporaryDirectory(prefix="tlsc-dist-") as folder:
        built = _run("uv", "build", "--quiet", "--out-dir", folder, str(ROOT))
        if built.returncode:
            raise SystemExit(f"the build failed: {built.stderr}")
        (wheel,), (archive,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
        rows = []
        for python in parts or PYTHONS:
            row = {"Python": python}
            for extra in (*EXTRAS, ",".join(filter(None, EXTRAS))):
                print(f"Python {python}, {extra or 'no extra'} …", file=sys.stderr, flush=True)
                row[extra.replace(",", ", ") or "no extra"] = found = tried(python, wheel, extra)
                if found == NOT_HAD:
                    row = {"Python": python} | dict.fromkeys(("no extra",), found)
                    break
            rows.append(row)
        source = tried(sys.executable, archive, "")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\nThe source archive on Python {sys.version.split()[0]}, no extra: {source}.")
    if any("FAILED" in found for row in [*rows, {"": source}] for found in row.values()):
        raise SystemExit(1)
