"""What converting does to every architecture of spandrel and spandrel_extra_arches: writes docs/coverage.md.

``uv run python -m benchmarks coverage``; takes some minutes. The list is that of ``tests/test_coverage.py``.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from tests.zoo import ENTRIES, Entry, Result, examine

__all__ = ["main"]

WHERE = Path(__file__).parents[1] / "docs" / "coverage.md"


def main() -> None:
    results = {}
    for entry in ENTRIES:
        print(entry.name, file=sys.stderr, flush=True)
        results[entry] = examine(entry, far=not entry.heavy)
    WHERE.write_text(page(results), encoding="utf-8")
    print(f"wrote {WHERE}")


def page(results: dict[Entry, Result]) -> str:
    """The whole document."""
    converted = [e for e, r in results.items() if r.plan.converted and not r.plan.left]
    partly = [e for e, r in results.items() if r.plan.converted and r.plan.left]
    left = [e for e, r in results.items() if not r.plan.converted and r.plan.left]
    none = [e for e, r in results.items() if not len(r.plan)]
    worst = max(r.identity for r in results.values())
    packages = ", ".join(f"{name} {version(name)}" for name in ("spandrel", "spandrel-extra-arches", "torch"))
    lines = [
        "# Coverage",
        "",
        "Written by `uv run python -m benchmarks coverage`; `tests/test_coverage.py` runs the same list.",
        f"{packages}. Small settings, random parameters, float64 (GRL: float32).",
        "",
        f"{len(results)} networks build and plan: {len(converted)} become local as a whole, {len(partly)} in part, "
        f"{len(left)} stay as they are with the reason, {len(none)} have no global aggregation.",
        f"Inputs of `base_size` give what they gave before: largest relative change {worst:.0e} (I1).",
        "",
        "*Far*: the middle eighth of a wide input is replaced; the largest relative change of the output's first "
        "sixteenth, before → after converting (I4). A change below 1e-9 (float32: 1e-4) is rounding and "
        "shown as 0; – is not measured: the network takes one size only, or an input beyond its receptive field "
        "takes too long.",
        "",
        "| architecture | sites that become local | far | left, with the reason |",
        "| --- | --- | --- | --- |",
    ]
    for entry, result in results.items():
        sites = ", ".join(f"{n} {operation}" for operation, n in result.converted.items()) or "none"
        reasons = [f"{n} {operation}: {reason}" for (operation, reason), n in result.left.items()]
        text = "; ".join([*reasons, *([entry.note] if entry.note else [])]) or "–"
        text = text.replace("|", "\\|").replace("\n", " ")
        far = f"{_change(result.before, entry)} → {_change(result.after, entry)}"
        lines.append(f"| {entry.name} | {sites} | {far} | {text} |")
    return "\n".join(lines) + "\n"


def _change(value: float | None, entry: Entry) -> str:
    return "–" if value is None else "0" if value <= entry.bar else f"{value:.0e}"


if __name__ == "__main__":
    main()
