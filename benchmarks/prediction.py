"""Predicted against measured gain: the tables and the picture of ``docs/when-it-helps.md``.

``python -m benchmarks prediction train`` trains the networks that do not come along, into
``calibration-networks`` (each takes one to three minutes of a core; those that are there are left);
``python -m benchmarks prediction networks`` prints the tables, of the networks that are there; ``… picture FILE``
also draws predicted against measured changes. ``… train-held-out`` and ``… held-out`` do the same for networks,
crops and degradations on which nothing in the estimate was settled. What was measured is kept beside the networks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import nn

import tlsc
from tlsc._prediction.result import decibels
from tlsc.adapters import DEMO_NETWORKS, DemoNetwork, load_demo_network
from tlsc.eval.files import replacing
from tlsc.eval.train.demo import train

from .small_networks import FOLDER, HELD_OUT, halves, make

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


def _known() -> dict[str, tuple[nn.Module, int, str]]:
    """Name: network, training crop, degradation; those that are there."""
    found: dict[str, tuple[nn.Module, int, str]] = {}
    for name in ("se", "hin", "hin-all"):
        network = DEMO_NETWORKS[name]
        found[f"{name} (demo)"] = load_demo_network(name), network.crop, network.degradation
    for name, (network, _) in {**TRAINED, **LARGE}.items():
        if _file(name).exists():
            model = network.build()
            model.load_state_dict(load_file(_file(name)))
            found[name] = model.eval(), TOLD if name in LARGE else network.crop, network.degradation
    return found


def _measured(model: nn.Module, crop: int, degradation: str) -> dict[str, Any]:
    """Prediction and truth of each window."""
    pairs = halves(degradation)
    windows = [crop, crop * 3 // 2, crop * 2]
    with torch.no_grad():
        before = [model(given[None])[0] for given, _ in pairs]
        errors = [float((out - clean).square().mean()) for out, (_, clean) in zip(before, pairs, strict=True)]
    psnr = float(-10 * np.log10(np.mean(errors)))
    found = tlsc.predict(model, [given for given, _ in pairs], windows, crop=crop, psnr=psnr)
    with torch.no_grad():
        rows = []
        for one in found.changes:
            with tlsc.converted(model, one.base_size, check=False):
                after = [model(given[None])[0] for given, _ in pairs]
            true = [float((out - clean).square().mean()) for out, (_, clean) in zip(after, pairs, strict=True)]
            moved = float(np.mean([float((a - b).square().mean()) for a, b in zip(after, before, strict=True)]))
            change = [a - b for a, b in zip(true, errors, strict=True)]
            rows.append({**dataclasses.asdict(one), "moved": moved, "true": change})
    return {
        "errors": errors,
        "whole": found.whole,
        "disagreement": None if np.isnan(found.disagreement) else found.disagreement,
        "unreliable": found.unreliable,
        "sentence": found.sentence,
        "windows": rows,
    }


def _held_out() -> dict[str, Any]:
    """The same of networks on which nothing was settled."""
    there = {name: recipe for name, recipe in HELD_OUT.items() if recipe.file(name).exists()}
    known = {name: (recipe.load(name), recipe.crop, recipe.degradation) for name, recipe in there.items()}
    return _all_measured("held-out.json", known)


def _networks() -> dict[str, Any]:
    """What was measured, of every network that is there."""
    return _all_measured("prediction.json", _known())


def _all_measured(file: str, known: Mapping[str, tuple[nn.Module, int, str]]) -> dict[str, Any]:
    """What was measured; goes on where it was stopped."""
    path = FOLDER / file
    FOLDER.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, (model, crop, degradation) in known.items():
        if name not in found:
            found[name] = _measured(model, crop, degradation)
            with replacing(path) as new:
                new.write_text(json.dumps(found))
    return found


def main(parts: Sequence[str]) -> None:
    """Train, or print the tables."""
    torch.set_num_threads(1)
    if parts and parts[0] == "train":
        _train()
        return
    if parts and parts[0] == "train-held-out":
        make(HELD_OUT)
        return
    found = _held_out() if parts and parts[0] == "held-out" else _networks()
    _print(found)
    if parts and parts[0] == "picture":
        _draw(found, Path(parts[1]))


def _print(found: dict[str, Any]) -> None:
    rows, inside, total = [], 0, 0
    for name, own in found.items():
        psnr = -10 * np.log10(np.mean(own["errors"]))
        for row in own["windows"]:
            true = float(np.mean(row["true"]))
            predicted, low, high, measured = (
                f"{decibels(x, psnr):+.2f}" for x in (row["change"], row["high"], row["low"], true)
            )
            holds = row["low"] <= true <= row["high"]
            if not own["unreliable"]:
                inside, total = inside + holds, total + 1
            said = "no reference" if own["unreliable"] else "yes" if holds else "NO"
            rows.append([name, row["base_size"][0], f"{psnr:.2f}", f"{predicted} [{low}, {high}]", measured, said])
    print(tabulate(rows, headers=["network", "window", "PSNR", "predicted, dB", "measured", "inside"]))
    print(f"inside the 90% interval: {inside} of {total}")
    for name, own in found.items():
        print(f"{name}: {own['sentence']}")


def _draw(found: dict[str, Any], path: Path) -> None:
    """Networks (at 1.5 × the crop, with intervals) and single images, predicted against measured, in dB."""
    from tlsc.eval.show.pictures import COLOURS, new_figure, save

    figure = new_figure(6.5, 5.2)
    axes = figure.add_subplot()
    for number, (name, own) in enumerate(found.items()):
        psnr = -10 * np.log10(np.mean(own["errors"]))
        row = own["windows"][1]
        x, low, high, y = (
            decibels(value, psnr) for value in (row["change"], row["high"], row["low"], float(np.mean(row["true"])))
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
