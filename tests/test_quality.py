"""The repository's own checks, so that one command tells everything: lint, format, types, the wheel's contents."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_check(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _tree(folder: str, pattern: str, package: str) -> set[str]:
    """Files of the source tree under ``folder``, by the names they should have in the wheel."""
    paths = (path.relative_to(ROOT / folder) for path in (ROOT / folder).glob(pattern))
    paths = (path for path in paths if path.parts[0] not in ("adapters", "eval"))  # the links
    return {f"{package}/{path.as_posix()}" for path in paths}


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_the_wheel_holds_every_package_and_nothing_else(tmp_path: Path) -> None:
    """Built from a checkout of a system without symbolic links: Git writes a file that holds the link's target.

    The two links are for type checkers alone; what is installed goes by ``package-dir``.
    """
    source = tmp_path / "source"
    # A copy, so that a build leaves nothing in the working tree.
    names = ("tlsc", "adapters", "eval", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in names:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.exists():
            shutil.copy(origin, source / name)
    for name in ("adapters", "eval"):
        link = source / "tlsc" / name
        if link.is_symlink():
            target = str(link.readlink())
            link.unlink()
            link.write_text(target, encoding="utf-8")
        assert link.read_text(encoding="utf-8") == f"../{name}"
    command = ["uv", "build", "--wheel", "--no-build-isolation", "--python", sys.executable]
    if subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True).returncode:
        command.remove("--no-build-isolation")
    done = subprocess.run(
        [*command, "--out-dir", str(tmp_path / "out"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = [name for name in archive.namelist() if ".dist-info/" in name]
    expected = _tree("tlsc", "**/*.py", "tlsc") | {"tlsc/py.typed"}
    expected |= _tree("adapters", "**/*.py", "tlsc/adapters") | _tree("eval", "**/*.py", "tlsc/eval")
    expected |= _tree("adapters", "weights/*.safetensors", "tlsc/adapters")
    expected |= {"tlsc/eval/show/results.schema.json"}
    assert files == expected
    for name in ("tlsc/_convert.py", "tlsc/adapters/__init__.py", "tlsc/eval/__init__.py", "tlsc/py.typed"):
        assert name in files
    assert {name.split("/")[0] for name in files} == {"tlsc"}
    assert any(name.endswith("LICENSE") for name in metadata)
