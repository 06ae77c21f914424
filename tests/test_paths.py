"""No committed text names a place on somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Home directories, working directories, drive letters. Not /tmp/ alone, and not paths that stand for any place.
PLACES = re.compile(r"(?<![\w.$}/])(?:/(?:home|Users|work|workspace|root|mnt|media)/\w|[A-Z]:\\\\?\w|/tmp/\w)")


def _committed() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("not a checkout")
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and path.suffix in (".py", ".md", ".toml", ".txt", ".cfg", "")]


def test_no_path_of_a_machine_is_committed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _committed()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if PLACES.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["see /home/me/x", "at /work/a/b", "`C:\\data`", "in /tmp/x"])
def test_such_a_path_is_seen(text: str) -> None:
    assert PLACES.search(text)
