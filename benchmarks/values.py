"""What the plugin makes of every network the project knows, by value, for comparing two states of the code.

``uv run python -m benchmarks values FOLDER`` writes a file for each network and way of converting: what the plan
decides, and outputs at the window's size and beyond it, of exported files those of ONNX Runtime. It goes on where
it was stopped, and stops by itself after the seconds given (``… values FOLDER 300``). ``… values FOLDER OTHER``
compares what both hold. Networks and ways are those of :mod:`.fingerprint`, whose hashes only say that something
differs.

For an older state of the code, copy this file and ``fingerprint.py`` into its ``benchmarks/`` and run
``python -m benchmarks.values FOLDER`` there. On one thread; a model and its images are made from fixed seeds.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._pytree import tree_leaves

import tlsc

from .fingerprint import WAYS, Images, Make, networks, photographs

__all__ = ["main"]

SAME = 1e-5  # of the largest value
LARGEST = 200  # sides of what a network is run on

Found = dict[str, Any]


def lines() -> Iterator[tuple[str, str, Callable[[], Found]]]:
    """Name, class, and how it is made; those that take longest, the calibrated and exported, in the end."""
    known = list(networks())
    for name, make, base, example in known:
        for way, settings in WAYS.items():
            yield name, way, lambda a=(make, base, example, settings): _converted(*a)  # type: ignore[misc]
    for name, make, base, example in known:
        if name in ("se", "hin", "MPRNet of ours", "NLMNet", "HINet"):
            yield name, "exported", lambda a=(make, base): _exported(*a)  # type: ignore[misc]
        if name in ("se", "hin", "hin-all", "HINet"):
            settings = {"calibrate": photographs()}
            yield name, "calibrated", lambda a=(make, base, example, settings): _converted(*a)  # type: ignore[misc]


def _converted(make: Make, base: tuple[int, int], example: Images | None, settings: dict[str, Any]) -> Found:
    model = make()
    try:
        tlsc.convert(model, base, example_input=example, strict=False, **settings)
        plan = tlsc.plan(model)
    except tlsc.TLSCError as error:
        return {"plan": type(error).__name__, "reasons": str(error), "outputs": {}}
    outputs: dict[tuple[int, int], list[Tensor] | str] = {}
    for size in _sizes(base):
        torch.manual_seed(1)
        x = example(*size) if example is not None else (torch.rand(1, 3, *size, dtype=torch.float64),)
        torch.manual_seed(0)
        try:
            outputs[size] = [y.clone() for y in tree_leaves(model(*x)) if isinstance(y, Tensor)]
        except Exception as error:  # what an architecture refuses, whatever converted it
            outputs[size] = type(error).__name__
    return {"plan": _decisions(plan), "reasons": [site.reason for site in plan], "outputs": outputs}


def _exported(make: Make, base: tuple[int, int]) -> Found:
    import onnxruntime

    model = tlsc.convert(make().float(), base, strict=False)
    outputs = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        tlsc.export(model, path)
        session = onnxruntime.InferenceSession(str(path))
        for size in _sizes(base):
            x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
            outputs[size] = [torch.from_numpy(y) for y in session.run(None, {"image": x.numpy()})]
    plan = tlsc.plan(model)
    return {"plan": _decisions(plan), "reasons": [site.reason for site in plan], "outputs": outputs}


def _decisions(plan: Any) -> list[tuple[Any, ...]]:
    """Of each site: path, operation, window, what is done."""
    return [(site.path, site.operation, site.window, site.action) for site in plan]


def _sizes(base: tuple[int, int]) -> list[tuple[int, int]]:
    sizes = [base, (2 * base[0], 3 * base[1])]
    return [size for size in sizes if max(size) <= LARGEST]


def compare(before: Path, after: Path) -> None:
    """Print, class by class, how many are the same, and what the others differ in."""
    classes: dict[str, Counter[str]] = {}
    told = []
    for file in sorted(before.glob("*.pt")):
        if not (after / file.name).exists():
            continue
        a, b = (torch.load(folder / file.name, weights_only=False) for folder in (before, after))
        counts = classes.setdefault(a["class"], Counter())
        counts["compared"] += 1
        largest, where = _difference(a["outputs"], b["outputs"])
        decisions, values = a["plan"] == b["plan"], largest <= SAME
        counts["decisions"] += decisions
        counts["values"] += values
        counts["both"] += decisions and values
        if not (decisions and values):
            changed = [] if decisions else _changed(a["plan"], b["plan"])
            told.append([a["name"], a["class"], f"{largest:.1e}", where, *changed[:1], len(changed)])
        else:
            counts["largest"] = max(counts["largest"], largest)  # type: ignore[assignment]
    rows = [
        [name, c["compared"], c["decisions"], c["values"], c["both"], f"{float(c['largest']):.1e}"]
        for name, c in classes.items()
    ]
    head = ["class", "compared", "same decisions", f"values within {SAME:g}", "both", "largest difference of these"]
    print(tabulate(rows, head, tablefmt="github"))
    for name, way, largest, where, *changed in told:
        print(f"{name}, {way}: {largest} {where}; decisions changed: {changed[-1]}", *changed[:-1])


def _difference(a: dict[Any, Any], b: dict[Any, Any]) -> tuple[float, str]:
    """The largest, relative to the largest value, and at which size; infinite where shapes or errors differ."""
    largest, where = 0.0, ""
    if a.keys() != b.keys():
        return float("inf"), f"{list(a)} {list(b)}"
    for size, ours in a.items():
        theirs = b[size]
        if isinstance(ours, str) or isinstance(theirs, str):
            if not (isinstance(ours, str) and isinstance(theirs, str) and ours == theirs):
                return float("inf"), f"{size}: {ours if isinstance(ours, str) else theirs}"
            continue
        if [y.shape for y in ours] != [y.shape for y in theirs]:
            return float("inf"), f"{size}: other shapes"
        for x, y in zip(ours, theirs, strict=True):
            x, y = x.double(), y.double()
            same = (x == y) | (x.isnan() & y.isnan())
            error = torch.where(same, 0.0, (x - y).abs()).max() / x.nan_to_num().abs().max().clamp(min=1e-30)
            if not error <= largest:
                largest, where = float(error), "×".join(map(str, size))
    return largest, where


def _changed(a: Any, b: Any) -> list[str]:
    """What the plans differ in, site by site."""
    if isinstance(a, str) or isinstance(b, str):
        return [f"{a if isinstance(a, str) else 'plan'} → {b if isinstance(b, str) else 'plan'}"]
    ours, theirs = ({(site[0], site[1]): site[2:] for site in plan} for plan in (a, b))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [f"{key}: {ours.get(key)} → {theirs.get(key)}" for key in keys if ours.get(key) != theirs.get(key)]


@torch.no_grad()
def write(folder: Path, seconds: float) -> None:
    """Make what the folder does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    for name, way, make in lines():
        file = folder / f"{way}-{name.replace('/', '_').replace(' ', '_')}.pt"
        if file.exists():
            continue
        if time.monotonic() > end:
            sys.exit(f"not all in {seconds:g} s: run it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = make()
        torch.save({"name": name, "class": way, **found}, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
        print(f"{name}, {way}", flush=True)


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise SystemExit("name a folder")
    folder, *more = arguments
    if more and not more[0].isdigit():
        compare(Path(folder), Path(more[0]))
        return
    torch.set_num_threads(1)
    write(Path(folder), float(more[0]) if more else float("inf"))


if __name__ == "__main__":
    main(sys.argv[1:])
