"""The first five minutes in a fresh environment: ``uv run python -m benchmarks first_minutes`` writes their page.

A clone of what is committed, a new environment, and what a newcomer types, one after the other. What the commands
print is taken as it is; of long outputs the middle is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["main", "trimmed"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/first-five-minutes.md"
LINES = 14

INSTALL = (
    "git clone -q REPOSITORY tlsc",
    "uv venv -q",
    "uv pip install -q './tlsc[eval,onnx]'",
)
TYPED = (
    ("First looks. None of these imports PyTorch.", ("tlsc --version", "tlsc list", "tlsc inspct se")),
    ("What is this network, and what would become local?", ("tlsc inspect se",)),
    (
        "Make a hazy photograph from one of scikit-image's, and restore it. Existing files are not overwritten.",
        (
            "mkdir photos && python haze.py photos/hazy.png",
            "tlsc restore se photos/ -o restored/",
            "tlsc restore se photos/ -o restored/",
            "tlsc restore se photos/ -o as-trained/ --base-size none",
        ),
    ),
    ("Would converting help? This is judged from the photograph alone.", ("tlsc advise se photos/",)),
    (
        "For other programs: an ONNX file that takes pictures of any size.",
        ("tlsc export se se.onnx", "tlsc restore se.onnx photos/ -o by-onnx/"),
    ),
)
HEAD = """# The first five minutes

What a new user types first, and what `tlsc` answers. `uv run python -m benchmarks first_minutes` types all of it
in a new environment and writes this page. `# status` is an exit status other than 0. The first restoration
compiles kernels for your processor and keeps them.

"""
HAZE = """
import sys
import numpy as np
from PIL import Image
from tlsc.eval.data.degradations import degrade_photograph

hazy = degrade_photograph("coffee", "haze", seed=0).degraded[:256, :384]
Image.fromarray((np.clip(hazy, 0, 1) * 255).round().astype(np.uint8)).save(sys.argv[1])
"""


def trimmed(text: str, most: int = LINES) -> str:
    """A text of at most so many lines: the middle of a longer one is "…".

    >>> trimmed("a\\nb\\nc\\nd\\ne", 3).split()
    ['a', '…', 'e']
    """
    lines = [line.rstrip()[:150] for line in text.strip().splitlines() if "%|" not in line]  # no bars of progress
    if len(lines) <= most:
        return "\n".join(lines)
    first = most * 2 // 3
    return "\n".join([*lines[:first], "…", *lines[first + 1 - most :]])


class Shell:
    """Runs what is typed in a folder with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**kept, "PATH": path, "COLUMNS": "100", "TQDM_DISABLE": "1"}

    def typed(self, line: str) -> str:
        """The line, what it printed, and its exit status if that is not 0."""
        print(line, file=sys.stderr, flush=True)
        command = line.replace("REPOSITORY", str(ROOT))
        done = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        said = trimmed(done.stdout.replace(f"{self.folder}/", ""))
        status = f"# status {done.returncode}" if done.returncode else ""
        return "\n".join(filter(None, [f"$ {line}", said, status]))


def main() -> None:
    """Type, and write the page."""
    with tempfile.TemporaryDirectory(prefix="tlsc-first-") as name:
        shell = Shell(Path(name))
        (shell.folder / "haze.py").write_text(HAZE.lstrip(), encoding="utf-8")
        parts = [_part("A fresh environment with the command line and ONNX export.", shell, INSTALL)]
        parts += [_part(title, shell, lines) for title, lines in TYPED]
    PAGE.write_text(HEAD + "\n".join(parts), encoding="utf-8")


def _part(title: str, shell: Shell, lines: tuple[str, ...]) -> str:
    said = "\n".join(shell.typed(line) for line in lines)
    return f"{title}\n\n```text\n{said}\n```\n"
