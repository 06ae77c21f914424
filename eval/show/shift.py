"""What ``tlsc shift`` prints, writes and draws."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from tlsc import Plan
from tlsc.eval.data.datasets import Dataset
from tlsc.eval.files import replacing
from tlsc.eval.judge.shift import CALIBRATED, CONDITIONS, Samples, Shift, site_name
from tlsc.eval.networks import Network, checksum
from tlsc.eval.run.cells import shown_size
from tlsc.eval.show.outputs import versions
from tlsc.eval.show.pictures import COLOURS, new_figure, save
from tlsc.eval.show.similar import end_of, in_groups, pattern
from tlsc.eval.telling import say as tell
from tlsc.eval.telling import wanted

__all__ = ["FILES", "as_dict", "say", "table", "write"]

FILES = ("shift.csv", "shift.json", "shift.png")


def table(found: Sequence[Shift], every: bool) -> tuple[list[str], list[list[str]]]:
    """Headers and rows; one row for a statistic of many sites that differ in their place only, unless ``every``."""
    more = [CALIBRATED] if any(one.calibrated is not None for one in found) else []
    names = ["site", "statistic", *CONDITIONS[1:], *more, "crops, two halves"]
    groups = [list(found[n : n + 1]) for n in range(len(found))] if every else in_groups(found, _likeness)
    return names, [_row(group) for group in groups]


def _likeness(one: Shift) -> tuple[object, ...]:
    return end_of(one.site.partition(" #")[0]), one.statistic, one.calibrated is None


def _row(group: Sequence[Shift]) -> list[str]:
    """Of several sites the mean."""
    one = group[0]
    figures = [[each.whole for each in group], [each.local for each in group], [each.noise for each in group]]
    if one.calibrated is not None:
        figures.insert(2, [each.calibrated for each in group if each.calibrated is not None])
    site = one.site if len(group) == 1 else f"{len(group)} × {pattern([each.site for each in group])}"
    return [site, one.statistic, *(f"{np.mean(values):.3f}" for values in figures)]


_CONVENTION = (
    "Wasserstein distance from the statistics on training crops, per channel in standard deviations over the "
    "crops, mean over channels"
)


def _finding(found: Sequence[Shift]) -> str:
    closer = sum(one.local < one.whole for one in found)
    whole, local = (float(np.mean([getattr(one, name) for one in found])) for name in ("whole", "local"))
    verb = "closer to" if local < whole else "further from"
    said = (
        f"Converting brings statistics {verb} those of training crops: mean distance {whole:.2f} on whole images, "
        f"{local:.2f} converted; closer in {closer} of {len(found)} statistics."
    )
    corrected = [one.calibrated for one in found if one.calibrated is not None]
    return f"{said} Calibrated: {np.mean(corrected):.2f}." if corrected else said


def say(out: Path, found: Sequence[Shift], plan: Plan, samples: Any, network: Network, data: Dataset) -> None:

    names, rows = table(found, wanted().verbose)
    tell(f"Network: {network.name}; crops of {network.crop}, base size {shown_size(plan.base_size)}")
    tell(f"Data: {data.name}: {data.layout}, {len(data.pairs)} images; skipped as bad: {len(data.bad)}\n")
    tell(
        tabulate(
            rows, headers=names, disable_numparse=True, colalign=("left", "left", *["right"] * (len(names) - 2))
        )
    )
    mean = "; of similar sites in one row the mean (-v: each)" if len(rows) < len(found) else ""
    tell(f"\n{_CONVENTION}{mean}.")
    for number, site in enumerate(plan):
        if number not in samples:
            reason = site.reason or "its input is not a map"
            tell(f"- {site.path or 'the model'} was not measured: {reason}")
    tell(f"\n{_finding(found)}\n\nWritten to {out}: {', '.join(FILES)}")


def write(
    out: Path,
    found: Sequence[Shift],
    plan: Plan,
    samples: dict[int, dict[str, Samples]],
    network: Network,
    data: Dataset,
) -> None:

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    more = ["whole_calibrated"] if any(one.calibrated is not None for one in found) else []
    writer.writerow(["site", "statistic", "whole_global", "whole_local", *more, "noise"])
    for one in found:
        corrected = [] if one.calibrated is None else [one.calibrated]
        figures = (f"{value:.8f}" for value in (one.whole, one.local, *corrected, one.noise))
        writer.writerow([one.site, one.statistic, *figures])
    with replacing(out / FILES[0]) as new:
        new.write_text(text.getvalue(), encoding="utf-8")
    with replacing(out / FILES[1]) as new:
        document = as_dict(found, plan, samples, network, data)
        new.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / FILES[2]) as new:
        _draw(new, found, plan, samples, network)


def as_dict(
    found: Sequence[Shift],
    plan: Plan,
    samples: dict[int, dict[str, Samples]],
    network: Network,
    data: Dataset,
) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    return {
        "network": network.name,
        "weights_sha256": checksum(network.model),
        "crop": network.crop,
        "convention": _CONVENTION,
        "finding": _finding(found),
        "data": {"folder": data.name, "images": len(data.pairs), "bad": [str(bad) for bad in data.bad]},
        "files_sha256": data.checksum,
        "plan": plan.as_dict(),
        "versions": versions(),
        "shifts": [asdict(one) for one in found],
        "samples": {
            site_name(plan, number): {
                condition: {
                    "count": len(value.mean),
                    "mean_per_channel": value.mean.mean(0).tolist(),
                    "std_per_channel": value.std.mean(0).tolist(),
                }
                for condition, value in own.items()
            }
            for number, own in samples.items()
        },
    }


def _draw(
    path: Path, found: Sequence[Shift], plan: Plan, samples: dict[int, dict[str, Samples]], network: Network
) -> None:
    """Distances of all sites; under them what the statistics of the sites that move most look like."""

    moved = {number: max(s.whole for s in found if s.site == site_name(plan, number)) for number in samples}
    shown = sorted(sorted(moved, key=lambda number: -moved[number])[:4])
    figure = new_figure(11, 3.4 + 2.4 * len(shown))
    grid = figure.add_gridspec(1 + len(shown), 2)
    for column, statistic in enumerate(("mean", "standard deviation")):
        own = [one for one in found if one.statistic == statistic]
        axes = figure.add_subplot(grid[0, column])
        places = np.arange(len(own))
        bars = [([one.whole for one in own], COLOURS[3], CONDITIONS[1])]
        bars += [([one.local for one in own], COLOURS[1], CONDITIONS[2])]
        if any(one.calibrated is not None for one in own):
            bars += [([one.calibrated or 0.0 for one in own], COLOURS[2], CALIBRATED)]
        width = 0.8 / len(bars)
        for number, (heights, colour, label) in enumerate(bars):
            axes.bar(places + (number - (len(bars) - 1) / 2) * width, heights, width, color=colour, label=label)
        axes.plot(places, [one.noise for one in own], "k_", markersize=18, label="crops, two halves")
        axes.set_xticks(places, [one.site for one in own], rotation=20, ha="right", fontsize=7)
        axes.set_ylabel("standard deviations over crops", fontsize=8)
        axes.set_title(f"{statistic}: distance from training crops", fontsize=10)
        axes.legend(fontsize=7)
        for row, number in enumerate(shown):
            axes = figure.add_subplot(grid[1 + row, column])
            _histogram(axes, samples[number], "mean" if column == 0 else "std")
            axes.set_title(f"{site_name(plan, number)}: {statistic}", fontsize=9)
            axes.set_xlabel("standard deviations from the mean over crops, all channels", fontsize=7)
    figure.suptitle(
        f"Statistics at the sites of {network.name}: crops of {network.crop} and whole images", fontsize=11
    )
    save(figure, path)


def _histogram(axes: Any, own: dict[str, Samples], statistic: str) -> None:

    reference = getattr(own["crops"], statistic)
    spread = reference.std(0)
    known = spread > 0
    if not known.any():
        return
    bins = np.linspace(-6, 6, 61)
    for condition, colour in zip(CONDITIONS, (COLOURS[0], COLOURS[3], COLOURS[1]), strict=True):
        values = (getattr(own[condition], statistic)[:, known] - reference.mean(0)[known]) / spread[known]
        axes.hist(
            np.clip(values, -6, 6).ravel(), bins, density=True, histtype="step", color=colour, label=condition
        )
    axes.legend(fontsize=7)
