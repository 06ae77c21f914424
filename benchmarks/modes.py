"""A converted network beside its original in every mode, no window involved: writes docs/modes.md.

``uv run python -m benchmarks modes`` takes some 20 minutes of one core; with names of networks only these
are done again. The list and the modes are those of ``tests/modes.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from tests.modes import MODES, SAME, compare, entries

__all__ = ["main", "page"]

WHERE = Path(__file__).parents[1] / "docs" / "modes.md"

TEXT = """# After converting, a model behaves as before

{same} of {all} figures below are "=": on an input no larger than the window, where converting must change nothing,
the converted network and its original agree to the last bit, whatever is done to both *after* converting. A number
is the largest difference relative to the largest value; –: the original itself raises there.

- *train, then eval*: outputs in training mode (dropout drawn alike), running statistics, outputs afterwards
- *float16*, *bfloat16*: `model.half()` and the like; *autocast*: on the CPU in bfloat16, and once more without it
- *gradients*: of a weighted sum of all outputs, to the inputs and all parameters
- *numbers changed*: every `float` between −1 and 1 that a module holds is set to three quarters of it
- *weights changed*: in place; *copied, loaded*: a deep copy that loads another `state_dict`, and the first again
- *half the height*: a smaller input, then the first again

{table}

Small settings, random parameters, float64 unless a mode says otherwise. {packages}. Written by
`uv run python -m benchmarks modes`, which takes the networks of [coverage](coverage.md) that have sites and windows
up to 64, and ours; `tests/test_modes.py` runs two of them, with `-m slow` all.
"""


def page(rows: dict[str, dict[str, str]]) -> str:
    """The document."""
    figures = [figure for row in rows.values() for figure in row.values() if figure != "–"]
    lines = [f"| network | {' | '.join(MODES)} |", f"| --- |{' --- |' * len(MODES)}"]
    lines += [f"| {name} | {' | '.join(row[mode] for mode in MODES)} |" for name, row in rows.items()]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "spandrel", "spandrel-extra-arches"))
    return TEXT.format(same=figures.count(SAME), all=len(figures), table="\n".join(lines), packages=packages)


def _written() -> dict[str, dict[str, str]]:
    rows = {}
    for line in WHERE.read_text(encoding="utf-8").splitlines() if WHERE.exists() else ():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(MODES) + 1 and cells[0] not in ("network", "---"):
            rows[cells[0]] = dict(zip(MODES, cells[1:], strict=True))
    return rows


def main(parts: Sequence[str]) -> None:
    """Measure, and write after each network, so that what was measured stays if this is ended."""
    torch.set_num_threads(1)
    chosen = list(entries())
    unknown = set(parts) - {entry.name for entry in chosen}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in chosen)}")
    rows = _written() if parts else {}
    for entry in chosen:
        if parts and entry.name not in parts:
            continue
        print(entry.name, file=sys.stderr, flush=True)
        found = compare(entry)
        if found is not None:
            rows[entry.name] = {mode: figure.replace("|", "\\|") for mode, figure in found.items()}
            order = [one.name for one in chosen if one.name in rows]
            WHERE.write_text(page({name: rows[name] for name in order}), encoding="utf-8")
    print(f"wrote {WHERE}")
