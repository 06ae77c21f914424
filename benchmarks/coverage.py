"""What converting does to every architecture of spandrel and spandrel_extra_arches: writes docs/coverage.md.

``uv run python -m benchmarks coverage``; takes some minutes, or with names of networks only these. The list is that
of ``tests/test_coverage.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.zoo import ENTRIES, Entry, Result, examine

__all__ = ["main"]

WHERE = Path(__file__).parents[1] / "docs" / "coverage.md"


FAR = 2
"""The column that takes the longest to measure."""


def main(parts: Sequence[str] = ()) -> None:
    """Write the table: all of it, or of the networks named; with ``plans``, what is far stays as it was."""
    names = [entry.name for entry in ENTRIES]
    unknown = [part for part in parts if part not in names and part != "plans"]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are plans, {', '.join(names)}")
    rows = dict(_rows(WHERE.read_text(encoding="utf-8"))) if parts else {}
    keep = "plans" in parts
    chosen = [part for part in parts if part != "plans"] or names
    for entry in ENTRIES:
        if entry.name not in chosen:
            continue
        print(entry.name, file=sys.stderr, flush=True)
        made = row(entry, examine(entry, far=not entry.heavy and not keep))
        if keep:
            made[FAR] = rows[entry.name][FAR]
        rows[entry.name] = made
        if all(name in rows for name in names):  # what was measured stays, if this is ended
            WHERE.write_text(page([rows[name] for name in names]), encoding="utf-8")
    print(f"wrote {WHERE}")


def _rows(text: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of a page by the names of their networks."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith(("| architecture", "| ---")):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == len(COLUMNS) - 2:  # a page of before there was the experiment
                cells[3:3] = ["–", "–"]
            yield cells[0], cells


COLUMNS = ("architecture", "sites that become local", "far", "identity", "experiment", "left, with the reason")


def row(entry: Entry, result: Result) -> list[str]:
    """The cells of one network."""
    sites = ", ".join(f"{n} {operation}" for operation, n in result.converted.items()) or "none"
    reasons = [f"{n} {operation}: {reason}" for (operation, reason), n in result.left.items()]
    text = "; ".join([*reasons, *([entry.note] if entry.note else [])]) or "–"
    far = f"{_change(result.before, entry)} → {_change(result.after, entry)}"
    sources = "–" if result.sources is None else _sources(result.sources)
    cells = [entry.name, sites, far, f"{result.identity:.0e}", sources, text]
    return [cell.replace("|", "\\|").replace("](", "\\](").replace("\n", " ") for cell in cells]


def _sources(sources: tuple[str, ...]) -> str:
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{sources[0]}{more}" if sources else "nothing"


def page(rows: list[list[str]]) -> str:
    """The whole document."""
    some = [cells[1] != "none" for cells in rows]
    left = [re.match(r"\d+ \S+: ", cells[-1]) is not None for cells in rows]
    pairs = list(zip(some, left, strict=True))
    worst = max((float(cells[3]) for cells in rows if cells[3] != "–"), default=0.0)
    packages = ", ".join(f"{name} {version(name)}" for name in ("spandrel", "spandrel-extra-arches", "torch"))
    lines = [
        "# Coverage",
        "",
        "Written by `uv run python -m benchmarks coverage`; `tests/test_coverage.py` runs the same list.",
        f"{packages}. Small settings, random parameters, float64 (GRL: float32).",
        "",
        f"{len(rows)} networks build and plan: {pairs.count((True, False))} become local as a whole, "
        f"{pairs.count((True, True))} in part, {pairs.count((False, True))} stay as they are with the reason, "
        f"{pairs.count((False, False))} have no global aggregation.",
        "",
        "*Far*: the middle eighth of a wide input is replaced; the largest relative change of the output's first "
        "sixteenth, before → after converting (I4). A change below 1e-9 (float32: 1e-4) is rounding and "
        "shown as 0; – is not measured: the network takes one size only, or an input beyond its receptive field "
        "takes too long.",
        "",
        f"*Identity*: the largest relative change by converting, on an input of `base_size` (I1); at most "
        f"{worst:.0e}.",
        "",
        "*Experiment*: the modules through which far pixels still reach the output after converting, as "
        "`tlsc.convert(…, check=True)` finds them; –: not tried (the network takes one size only, or takes long).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join(lines) + "\n"


def _change(value: float | None, entry: Entry) -> str:
    return "–" if value is None else "0" if value <= entry.bar else f"{value:.0e}"


if __name__ == "__main__":
    main()
