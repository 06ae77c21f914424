"""``python -m benchmarks mutants``: every mutant is one change of the code, and is noticed when a test fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .test_architecture import _benchmark

SOURCE = '''
@decorated(1)
def total(values, least=0):
    """Not 1."""
    found = 0
    for value in values:
        if not value < least:
            found += value * 2
    return max(found, least)
'''
RUN = """
import sys
from pathlib import Path
import pytest
from mutants import TESTS, judge, mutants
tree = Path.cwd() / "tree"
TESTS["total.py"] = ("test_total.py",)
source = (tree / "total.py").read_text()
for number, mutant in enumerate(mutants(source, "total.py")):
    if mutant.before in ("max(found, least)", "value < least", "value * 2"):
        print(mutant.before, judge(tree, mutant, 1_600_000_000 + 2 * number).outcome)
assert (tree / "total.py").read_text() == source
"""


def test_mutants_change_one_thing_each() -> None:
    mutants = _benchmark("mutants")
    found = list(mutants.mutants(SOURCE, "total.py"))
    texts = [mutants.apply(SOURCE, one) for one in found]
    assert len({ast.dump(ast.parse(text)) for text in [SOURCE, *texts]}) == len(found) + 1
    lines = {line.strip() for text in texts for line in set(text.splitlines()) - set(SOURCE.splitlines())}
    assert lines == {
        "found = (1)", "found = (-1)", "pass", "if (value < least):", "if not (value <= least):",
        "found += (value + 2)", "found += value * (3)", "found += value * (1)", "return (max(least, found))",
    }  # fmt: skip
    assert mutants.apply(SOURCE.replace("Not 1", "Else"), found[0]) is not None
    assert mutants.apply(SOURCE.replace("total", "sums"), found[0]) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_mutant_is_noticed_by_a_test_that_fails(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "total.py").write_text(SOURCE.replace("@decorated(1)\n", ""))
    (tree / "test_total.py").write_text(
        "from total import total\ndef test_total() -> None:\n    assert total([1, 2, -3]) == 6\n"
    )
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'benchmarks')!r})\n{RUN}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert said == ["value < least unnoticed", "value * 2 noticed", "max(found, least) unnoticed"]  # no value is 0
