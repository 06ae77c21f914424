"""Predicted against measured gain: the tables and the picture of ``docs/when-it-helps.md``.

``python -m benchmarks prediction train`` trains the networks that do not come along, into
``calibration-networks`` (each takes one to five minutes of a core; those that are there are left; those of
``calibration unets`` are taken, too, where they are there); ``python -m benchmarks prediction networks`` prints the
table, of the networks that are there; ``… picture FILE`` also draws predicted against measured changes; ``…
calibrated`` prints the table of calibrated statistics; ``… whole`` prints what is said of networks trained on whole
images. What was measured is kept beside the networks.

How wide an interval must be is found leaving one network out: for each network by all others. Of calibrated
statistics it is that of ``tlsc.predict``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc._prediction.predict import DOUBT, doubt, floor
from tlsc._prediction.result import decibels
from tlsc.adapters import DEMO_NETWORKS, DemoNetwork, load_demo_network
from tlsc.eval.files import replacing
from tlsc.eval.train.demo import train

from . import unets
from .small_networks import FOLDER, HELD_OUT, SITE_BY_SITE, WHOLE, halves, make, small_images

STEPS = 500


def _network(name: str, settings: Mapping[str, Any], crop: int, degradation: str) -> DemoNetwork:
    return dataclasses.replace(
        DEMO_NETWORKS["se"], name=name, settings=settings, crop=crop, degradation=degradation
    )


_SE: Mapping[str, Any] = {"squeeze_excitation": (0, 1, 2)}
_MIXED: Mapping[str, Any] = {"half_norm": (0,), "squeeze_excitation": (1, 2)}
_DEEP: Mapping[str, Any] = {"half_norm": (2,), "padding_mode": "replicate"}

# What to train, and with which seed.
TRAINED: dict[str, tuple[DemoNetwork, int]] = {
    "se, haze, crops of 96": (_network("se", _SE, 96, "haze"), 1),
    "hin, haze, crops of 64, seed 2": (_network("hin", _DEEP, 64, "haze"), 2),
    "mixed, haze, crops of 96": (_network("mixed", _MIXED, 96, "haze"), 0),
    "se, blur, crops of 64": (_network("se", _SE, 64, "motion-blur"), 1),
    "hin, blur, crops of 64": (_network("hin", _DEEP, 64, "motion-blur"), 1),
    "se, haze, crops of 128": (_network("se", _SE, 128, "haze"), 3),
    "hin-all, haze, crops of 64": (_network("hin-all", {"half_norm": (0, 1, 2)}, 64, "haze"), 1),
    "hin, haze, crops of 128": (_network("hin", _DEEP, 128, "haze"), 1),
    "mixed, blur, crops of 64": (_network("mixed", _MIXED, 64, "motion-blur"), 0),
}
# Trained on parts of 256, and asked with crops of 64: what is said where crops are no reference.
LARGE = {"se, haze, parts of 256": (_network("se-large", _SE, 256, "haze"), 0)}
TOLD = 64


def _file(name: str) -> Path:
    network, seed = {**TRAINED, **LARGE}[name]
    return FOLDER / f"prediction-{network.name}-{network.degradation}-{network.crop}-{STEPS}-{seed}.safetensors"


def _train() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (network, seed) in {**TRAINED, **LARGE}.items():
        path = _file(name)
        if not path.exists():
            model = train(network, STEPS, seed)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
            print(path, flush=True)
    make({**HELD_OUT, **WHOLE, **SITE_BY_SITE})


def _loaded(name: str) -> nn.Module:
    network, _ = {**TRAINED, **LARGE}[name]
    model = network.build()
    model.load_state_dict(load_file(_file(name)))
    return model.eval()


def _known() -> dict[str, tuple[Callable[[], nn.Module], int, str]]:
    """Name: network, training crop, degradation; those that are there."""
    found: dict[str, tuple[Callable[[], nn.Module], int, str]] = {}
    for name in ("se", "hin", "hin-all"):
        demo = DEMO_NETWORKS[name]
        found[f"{name} (demo)"] = partial(load_demo_network, name), demo.crop, demo.degradation
    for name, (network, _) in TRAINED.items():
        if _file(name).exists():
            found[name] = partial(_loaded, name), network.crop, network.degradation
    for name, recipe in HELD_OUT.items():
        if recipe.file(name).exists():
            found[name] = partial(recipe.load, name), recipe.crop, recipe.degradation
    for name, own in unets.NETWORKS.items():
        if (FOLDER / own.file("pt")).exists():
            found[name] = partial(own.load, FOLDER), unets.CROP, own.degradation
    return found


def _networks(calibrated: bool = False) -> dict[str, Any]:
    """What was measured, of every network trained on crops that is there."""
    known = {name: (load, crop, partial(halves, kind)) for name, (load, crop, kind) in _known().items()}
    file = "predicted-calibrated.json" if calibrated else "predicted.json"
    found: dict[str, Any] = _all_measured(file, known, calibrated)
    return found


def _whole() -> dict[str, Any]:
    """The same of networks trained on whole images, or on parts much larger than they are said to be."""
    known: dict[str, Any] = {
        name: (partial(recipe.load, name), recipe.told, partial(small_images, recipe))
        for name, recipe in WHOLE.items()
        if recipe.file(name).exists()
    }
    for name, (network, _) in LARGE.items():
        if _file(name).exists():
            known[name] = partial(_loaded, name), TOLD, partial(halves, network.degradation)
    found: dict[str, Any] = _all_measured("predicted-whole.json", known)
    return found


def _measured(
    model: nn.Module, crop: int, pairs: Sequence[tuple[Tensor, Tensor]], calibrated: bool = False
) -> dict[str, Any]:
    """Prediction and truth of each window, with calibrated statistics or as they are."""
    how: dict[str, Any] = {"calibrate": [given for given, _ in pairs], "crop": crop} if calibrated else {}
    windows = [crop, crop * 3 // 2, crop * 2]
    with torch.no_grad():
        before = [model(given[None])[0] for given, _ in pairs]
        errors = [float((out - clean).square().mean()) for out, (_, clean) in zip(before, pairs, strict=True)]
    psnr = float(-10 * np.log10(np.mean(errors)))
    images = [given for given, _ in pairs]
    found = tlsc.predict(model, images, windows, crop=crop, psnr=psnr, calibrate=calibrated)
    with torch.no_grad():
        rows = []
        for one in found.changes:
            if one.calibrated != calibrated:
                continue
            with tlsc.converted(model, one.base_size, check=False, **how):
                after = [model(given[None])[0] for given, _ in pairs]
            true = [float((out - clean).square().mean()) for out, (_, clean) in zip(after, pairs, strict=True)]
            change = [a - b for a, b in zip(true, errors, strict=True)]
            rows.append({**dataclasses.asdict(one), "true": change})
    return {
        "errors": errors,
        "whole": found.whole,
        "disagreement": None if np.isnan(found.disagreement) else found.disagreement,
        "unreliable": found.unreliable,
        "sentence": found.sentence,
        "windows": rows,
    }


def _all_measured(
    file: str,
    known: Mapping[str, tuple[Callable[[], nn.Module], int, Callable[[], Any]]],
    calibrated: bool = False,
) -> Any:
    """What was measured; goes on where it was stopped."""
    path = FOLDER / file
    FOLDER.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, (load, crop, pairs) in known.items():
        if name not in found:
            found[name] = _measured(load(), crop, [_cut(pair) for pair in pairs()], calibrated)
            with replacing(path) as new:
                new.write_text(json.dumps(found))
    return found


def _cut(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """To multiples of 16."""
    one, other = (x[:, : x.shape[1] // 16 * 16, : x.shape[2] // 16 * 16] for x in pair)
    return one, other


# ------------------------------------------------------------------------------------------------- leaving one out


def _cases(own: Mapping[str, Any]) -> Iterator[tuple[float, float, float, float, float]]:
    """For each window: interval of what was drawn alone, its unit of doubt, the floor, and the truth."""
    psnr = -10 * np.log10(np.mean(own["errors"]))
    for row in own["windows"]:
        unit = doubt(row["moved"], own["disagreement"] or 0.0)
        slack = unit + floor(psnr)
        yield row["low"] + slack, row["high"] - slack, unit / DOUBT, floor(psnr), float(np.mean(row["true"]))


def _needed(own: Mapping[str, Any]) -> list[float]:
    """How many units of doubt the interval needs to hold the truth, for each window."""
    return [
        max(low - least - true, true - high - least, 0.0) / max(unit, 1e-30)
        for low, high, unit, least, true in _cases(own)
    ]


def _left_out(found: Mapping[str, Any], name: str | None) -> float:
    """What nine in ten cases of all other networks need, and of those to come (conformal: one more is counted)."""
    needed = sorted(x for other, own in found.items() if other != name for x in _needed(own))
    return needed[min(math.ceil(0.9 * (len(needed) + 1)), len(needed)) - 1]


def _wide(own: Mapping[str, Any], units: float) -> list[tuple[float, float]]:
    return [(low - units * unit - least, high + units * unit + least) for low, high, unit, least, _ in _cases(own)]


def main(parts: Sequence[str]) -> None:
    """Train, or print the tables."""
    torch.set_num_threads(1)
    if parts and parts[0] == "train":
        _train()
    elif parts and parts[0] == "calibrated":
        found = _networks(calibrated=True)
        units = dict.fromkeys(found, DOUBT)
        print(_table(found, units))
        _summary(found, units)
    elif parts and parts[0] == "whole":
        found = _whole()
        print(_table(found, dict.fromkeys(found, DOUBT)))
        for name, own in found.items():
            print(f"{name}: {own['sentence']}")
    else:
        found = _networks()
        units = {name: _left_out(found, name) for name in found}
        print(_table(found, units))
        _summary(found, units)
        if parts and parts[0] == "picture":
            _draw(found, units, Path(parts[1]))


def _table(found: Mapping[str, Any], units: Mapping[str, float]) -> str:
    rows = []
    for name, own in found.items():
        psnr = -10 * np.log10(np.mean(own["errors"]))
        row = [name, f"{psnr:.2f}"]
        for one, (low, high) in zip(own["windows"], _wide(own, units[name]), strict=True):
            true = float(np.mean(one["true"]))
            predicted, least, most, measured = (
                f"{decibels(x, psnr):+.2f}" for x in (one["change"], high, low, true)
            )
            most = "…" if decibels(low, psnr) > 19.9 else most
            row.append(
                f"{predicted} [{least}, {most}] / {measured}" + ("" if low <= true <= high else " **outside**")
            )
        rows.append(row)
    head = ["network", "PSNR, dB", "window = crop", "1.5 ×", "2 ×"]
    return str(tabulate(rows, headers=head, tablefmt="github", disable_numparse=True))


def _summary(found: Mapping[str, Any], units: Mapping[str, float]) -> None:
    inside = total = shown = right = 0
    images: list[tuple[float, float]] = []
    for name, own in found.items():
        psnr = -10 * np.log10(np.mean(own["errors"]))
        for row, (low, high) in zip(own["windows"], _wide(own, units[name]), strict=True):
            true = float(np.mean(row["true"]))
            inside, total = inside + (low <= true <= high), total + 1
            sure = low > 0 or high < 0
            shown, right = shown + sure, right + (sure and (true > 0) == (low > 0))
            pairs = zip(row["per_image"], row["true"], strict=True)
            images += [(a, b) for a, b in pairs if min(abs(decibels(x, psnr)) for x in (a, b)) > 0.02]
    print(f"inside the 90% interval: {inside} of {total}")
    print(f"the interval excludes zero in {shown}, with the right sign in {right}")
    same = sum((a > 0) == (b > 0) for a, b in images)
    print(f"single images that change by more than 0.02 dB: the sign is right in {same} of {len(images)}")
    print(f"units of doubt by all networks: {_left_out(found, None):.2f}; tlsc.predict takes {DOUBT:g}")


def _draw(found: Mapping[str, Any], units: Mapping[str, float], path: Path) -> None:
    """Networks (at 1.5 × the crop, with intervals) and single images, predicted against measured, in dB."""
    from tlsc.eval.show.pictures import COLOURS, new_figure, save

    figure = new_figure(6.5, 5.2)
    axes = figure.add_subplot()
    for number, (name, own) in enumerate(found.items()):
        psnr = -10 * np.log10(np.mean(own["errors"]))
        row, (low, high) = own["windows"][1], _wide(own, units[name])[1]
        x, low, high, y = (
            decibels(value, psnr) for value in (row["change"], high, low, float(np.mean(row["true"])))
        )
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([low, high], [y, y], color=colour, linewidth=1)
        axes.plot([x], [y], marker="o", color=colour, linestyle="none", label=name)
        images = zip(row["per_image"], row["true"], own["errors"], strict=True)
        single = [(decibels(a, -10 * np.log10(e)), decibels(b, -10 * np.log10(e))) for a, b, e in images]
        axes.plot(*np.array(single).T, marker=".", markersize=3, alpha=0.5, color=colour, linestyle="none")
    axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
    axes.set_xlabel("predicted without targets, dB (line: 90% interval)")
    axes.set_ylabel("measured with targets, dB")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    save(figure, path)
