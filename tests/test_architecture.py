"""The house keeps its shape: what ``python -m benchmarks structure`` prints, held to bounds.

Counted on the sources; nothing of the project is imported. An import inside a function counts like any other.
What is not within its bound yet stands in a list here. A list may only become shorter.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _benchmark(name: str) -> ModuleType:
    """A file of ``benchmarks/``, which is not installed."""
    spec = importlib.util.spec_from_file_location(
        f"_{name}", Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


structure = _benchmark("structure")
FILES = structure.modules()

UPWARD: set[tuple[str, str]] = set()
LONG: dict[str, int] = {}
COMPLEX: set[str] = set()
WINDOW_STARTS = 1


@pytest.fixture(scope="module")
def imports() -> list[Any]:
    """Every import of one of our files by another: three seconds that a process which only collects would lose."""
    return list(structure.imports(FILES))


def test_no_import_circle(imports: list[Any]) -> None:
    assert structure.circles(imports) == []


def test_imports_lead_down(imports: list[Any]) -> None:
    found = [one for one in structure.upward(imports) if (one.importer, one.module) not in UPWARD]
    assert [f"{one.importer}:{one.line} imports {one.module}" for one in found] == []


def test_no_private_import_across_packages(imports: list[Any]) -> None:
    found = structure.private(imports)
    assert [f"{one.importer}:{one.line} takes {one.name or one.module}" for one in found] == []


def test_no_file_over_600_lines() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: n for name, n in lengths.items() if n > LONG.get(name, 600)} == {}


def test_no_function_over_complexity_20() -> None:
    assert [pair for pair in structure.complex_functions(20, FILES) if pair[0] not in COMPLEX] == []


def test_one_home_for_where_a_window_starts() -> None:
    homes = structure.places(structure.IDEAS["where a window starts"], FILES)
    assert sum(homes.values()) <= WINDOW_STARTS, homes


def test_every_package_is_listed() -> None:
    """Packages are listed one by one in pyproject.toml: one that is missing there is missing in the wheel."""
    settings = (structure.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (text,) = re.findall(r"^packages = (\[.*?\])$", settings, re.MULTILINE | re.DOTALL)
    listed = set(ast.literal_eval(text))
    there = {name for name, path in FILES.items() if path.name == "__init__.py"}
    assert listed == there


def test_the_measures_see_what_they_are_for(tmp_path: Path) -> None:
    """A small tree with every fault: a circle, an arrow up, a private import, a hard function."""
    for name, text in {
        "tlsc/__init__.py": "",
        "tlsc/errors.py": "from . import functional\n",
        "tlsc/functional.py": "def f():\n    from .errors import x\n",
        "tlsc/_statistics/__init__.py": "",
        "tlsc/_statistics/a.py": "def _hidden(x):\n    return [y for y in x if y and y > 1 or x]\n",
        "adapters/__init__.py": "from tlsc._statistics.a import _hidden\n",
        "eval/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tlsc.errors\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    files = structure.modules(tmp_path)
    found = list(structure.imports(files))
    assert structure.circles(found) == [["tlsc.errors", "tlsc.functional"]]
    assert [(one.importer, one.module) for one in structure.upward(found)] == [("tlsc.errors", "tlsc.functional")]
    assert [(one.importer, one.name) for one in structure.private(found)] == [("tlsc.adapters", "_hidden")]
    assert structure.complex_functions(0, files) == [("tlsc._statistics.a:_hidden", 5), ("tlsc.functional:f", 1)]
