"""The files of a run: results.csv, timings.csv, results.json and the table that is printed."""

from __future__ import annotations

import csv
import io
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tlsc.eval.data.datasets import Dataset
from tlsc.eval.files import replacing
from tlsc.eval.judge.metrics import Protocol
from tlsc.eval.judge.verdict import Change, Summary, Verdict
from tlsc.eval.run.cells import Cell, shown_size
from tlsc.eval.run.records import Record
from tlsc.eval.telling import strict

__all__ = [
    "Outcome",
    "as_json",
    "best_row",
    "filled",
    "head",
    "sweep_table",
    "table",
    "versions",
    "write_results",
    "write_timings",
]


@dataclass(frozen=True)
class Outcome:
    """Everything a run found out.

    Attributes:
        command: "eval" or "sweep".
        network: its name and description.
        data: with what was bad.
        protocol: of all figures.
        cells: in order.
        records: by cell, then by image.
        summaries: one per cell.
        verdict: what to do.
        settings: everything that figures depend on.
        processes: that shared the work.
        device: in words.
    """

    command: str
    network: str
    data: Dataset
    protocol: Protocol
    cells: Sequence[Cell]
    records: Sequence[Record]
    summaries: Sequence[Summary]
    verdict: Verdict
    settings: Mapping[str, Any]
    processes: int
    device: str

    @property
    def failed(self) -> list[Record]:
        """The records without figures."""
        return [record for record in self.records if not record.good]


_PLACE = ("image", "network", "variant", "base_size", "stride", "patch_size", "overlap")


def write_results(path: Path, outcome: Outcome) -> None:
    """A row per image, variant and patch size, then one per bad pair. No times: equal runs give equal bytes."""
    lpips = any(record.lpips is not None for record in outcome.records)
    indicators = any(record.disparity is not None or record.mismatch is not None for record in outcome.records)
    names = [
        *_PLACE,
        "protocol",
        "crop_border",
        "psnr_db",
        "ssim",
        *(["lpips"] if lpips else []),
        *(["tile_mismatch", "train_eval_disparity"] if indicators else []),
        "status",
        "message",
    ]
    protocol = [outcome.protocol.name, outcome.protocol.crop_border]
    rows: list[list[Any]] = []
    cells = {str(cell): cell for cell in outcome.cells}
    for record in outcome.records:
        figures = [_decimal(record.psnr, 8), _decimal(record.ssim, 10)]
        if lpips:
            figures.append("" if record.lpips is None else _decimal(record.lpips, 8))
        if indicators:
            both = record.mismatch, record.disparity
            figures += ["" if value is None else _decimal(value, 8) for value in both]
        place = _place(record.image, outcome.settings["network"], cells[record.cell])
        rows.append([*place, *protocol, *figures, record.status, record.message])
    for bad in outcome.data.bad:
        empty = [""] * (len(names) - 4)
        rows.append([bad.name, outcome.settings["network"], *empty, bad.kind, bad.reason])
    _write_csv(path, names, rows)


def write_timings(path: Path, outcome: Outcome) -> None:
    """Seconds and peak memory for each row of results.csv that was measured."""
    cells = {str(cell): cell for cell in outcome.cells}
    rows = [
        [
            *_place(record.image, outcome.settings["network"], cells[record.cell]),
            f"{record.seconds:.6f}",
            f"{record.megapixels:.6f}",
            f"{record.seconds / record.megapixels:.6f}",
            "" if record.peak is None else record.peak,
        ]
        for record in outcome.records
        if record.seconds is not None and record.megapixels
    ]
    _write_csv(path, [*_PLACE, "seconds", "megapixels", "seconds_per_megapixel", "peak_bytes"], rows)


def _place(image: str, network: str, cell: Cell) -> list[Any]:
    base_size = "" if cell.base_size is None else shown_size(cell.base_size)
    return [image, network, cell.variant, base_size, cell.stride, cell.size, cell.overlap]


def _decimal(value: float, digits: int) -> str:
    return "" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.{digits}f}"


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    with replacing(path) as new:
        # Names of files that are not Unicode come back as they are.
        new.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


# -------------------------------------------------------------------------------------------------------- JSON


def as_json(outcome: Outcome, date: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Figures, settings, versions and checksums: enough to repeat the run. Infinite PSNR is "inf", NaN null.

    ``results.schema.json`` says what is what.
    """
    verdict = outcome.verdict
    cells = {str(cell): cell for cell in outcome.cells}
    report = {
        "format": "tlsc-results-1",
        "command": ["tlsc", *arguments],
        "date": date,
        "settings": dict(outcome.settings),
        "versions": versions(),
        "machine": {
            "device": outcome.device,
            "processes": outcome.processes,
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "protocol": outcome.protocol.description,
        "data": {
            "folder": outcome.data.name,
            "layout": outcome.data.layout,
            "degradation": outcome.data.synthesis.description if outcome.data.synthesis else None,
            "images": len(outcome.data.pairs),
            "bad": [asdict(bad) for bad in outcome.data.bad],
            "failed": len({record.image for record in outcome.failed}),
            "checksum_sha256": outcome.data.checksum,
            "pairs": [
                {"name": p.name, "input": p.input and str(p.input), "target": str(p.target), "rule": p.rule}
                for p in outcome.data.pairs
            ],
        },
        "verdict": {
            "recommendation": verdict.recommendation,
            "best": str(verdict.best),
            "baseline": str(verdict.baseline),
            "intervals": verdict.interval,
            "remarks": list(verdict.remarks),
            "gain_db": [{"cell": str(cell), **_change(found)} for cell, found in verdict.changes.items()],
        },
        "means": [{**asdict(found), "cell": str(found.cell)} for found in outcome.summaries],
        "results": [
            {**asdict(record), "variant": cells[record.cell].variant, "patch_size": cells[record.cell].size}
            for record in outcome.records
        ],
    }
    return strict(report)  # type: ignore[no-any-return]


def _change(found: Change) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "interval": [found.low, found.high],
        "images": found.images,
        "infinite": found.infinite,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    found = {}
    for name in (
        "tlsc",
        "torch",
        "numpy",
        "scipy",
        "scikit-image",
        "pillow",
        "numba",
        "triton",
        "spandrel",
        "pyiqa",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# ------------------------------------------------------------------------------------------------- what is said


def head(outcome: Outcome) -> list[str]:
    """What was measured, on what and how; with what was left out."""
    data = outcome.data
    lines = [
        f"Network: {outcome.network}",
        f"Data: {data.name}: {data.layout}, {_count(len(data.pairs), 'image')}",
    ]
    if data.synthesis is not None:
        lines.append(f"Degradation: {data.synthesis.description}; seed {data.seed}")
    cut = [pair.cut for pair in data.pairs if any(pair.cut)]
    if cut:
        most = max(rows for rows, _ in cut), max(columns for _, columns in cut)
        lines.append(
            f"Cut: {_count(len(cut), 'target')} of {len(data.pairs)}, no multiple of the scale, by up to "
            f"{_count(most[0], 'row')} at the bottom and {_count(most[1], 'column')} at the right"
        )
    lines.append(f"Protocol: {outcome.protocol.description}.")
    if data.bad:
        kinds = {
            kind: sum(bad.kind == kind for bad in data.bad) for kind in dict.fromkeys(b.kind for b in data.bad)
        }
        lines.append(
            f"Skipped as bad: {len(data.bad)} (" + ", ".join(f"{n} {kind}" for kind, n in kinds.items()) + ")"
        )
    failed = outcome.failed
    if failed:
        lines.append(f"Failed: {len(failed)} of {len(outcome.records)} results")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


INDICATORS = "mismatch, /255", "disparity, /255"
HEADERS = (
    "variant",
    "patch size",
    "overlap",
    "PSNR, dB",
    "SSIM",
    "gain, dB",
    *INDICATORS,
    "s/megapixel",
    "peak, MB",
)


def rows(outcome: Outcome) -> list[list[str]]:
    """A row per cell, in the order of ``HEADERS`` (and LPIPS, failures, where there are any)."""
    changes = outcome.verdict.changes
    found = []
    for own in outcome.summaries:
        same = "as original" if own.cell.base_size is not None and own.images else ""
        gain = str(changes[own.cell]).replace(" dB", "") if own.cell in changes else same
        found.append(
            [
                own.cell.variant,
                own.cell.size,
                str(own.cell.overlap) if own.cell.patch_size is not None else "",
                own.shown_psnr,
                "–" if math.isnan(own.ssim) else f"{own.ssim:.4f}",
                "baseline" if own.cell == outcome.verdict.baseline else gain,
                *("" if value is None else f"{255 * value:.2f}" for value in (own.mismatch, own.disparity)),
                "" if own.seconds is None else f"{own.seconds:.2f}",
                "" if own.peak is None else f"{own.peak / 1e6:.0f}",
                *(["" if own.lpips is None else f"{own.lpips:.4f}"] if _has_lpips(outcome) else []),
                *([str(own.failed) if own.failed else ""] if outcome.failed else []),
            ]
        )
    return found


def _has_lpips(outcome: Outcome) -> bool:
    return any(own.lpips is not None for own in outcome.summaries)


def headers(outcome: Outcome) -> list[str]:
    """The names of the columns of :func:`rows`."""
    more = (["LPIPS"] if _has_lpips(outcome) else []) + (["failed"] if outcome.failed else [])
    return [*HEADERS, *more]


def filled(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows, without columns that are empty."""
    names, body = headers(outcome), rows(outcome)
    kept = [column for column in range(len(names)) if column == 0 or any(row[column] for row in body)]
    return [names[column] for column in kept], [[row[column] for column in kept] for row in body]


def best_row(outcome: Outcome) -> int | None:
    """The row with the highest mean PSNR, whatever the verdict advises; None where there are no figures."""
    means = [_mean(own) for own in outcome.summaries]
    return means.index(max(means)) if means and max(means) > -math.inf else None


def _mean(own: Summary) -> float:
    if own.images and own.identical == own.images:
        return math.inf
    return -math.inf if math.isnan(own.psnr) else own.psnr


def table(outcome: Outcome) -> str:
    """The figures of all cells; the highest PSNR is marked."""
    names, body = filled(outcome)
    best = best_row(outcome)
    if best is not None and len(body) > 1:
        body[best][0] += " *"
    align = ("left", *["right"] * (len(names) - 1))
    return str(tabulate(body, headers=names, disable_numparse=True, colalign=align))


def sweep_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Mean PSNR by variant and patch size: names of the columns, and rows."""
    cuts = list(dict.fromkeys((cell.patch_size, cell.overlap) for cell in outcome.cells))
    means = {own.cell: own.shown_psnr for own in outcome.summaries}
    states = dict.fromkeys(cell.state for cell in outcome.cells)
    names = ["whole" if size is None else f"{size}" + (f"/{overlap}" if overlap else "") for size, overlap in cuts]
    body = []
    for state in states:
        own = [replace(state, patch_size=size, overlap=overlap) for size, overlap in cuts]
        body.append([state.variant, *(means.get(cell, "") for cell in own)])
    return ["PSNR in dB at patch size", *names], body
