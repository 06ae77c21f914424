"""``tlsc demo``: PSNR against test patch size for four small networks, as trained and converted.

Everything it needs comes with the package or with scikit-image: photographs, networks, weights.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from tlsc.adapters import DEMO_NETWORKS
from tlsc.eval.data.degradations import DEGRADATIONS, degraded_test_photographs
from tlsc.eval.files import refuse_existing, replacing
from tlsc.eval.judge.metrics import psnr as _psnr
from tlsc.eval.judge.seams import tile_mismatch
from tlsc.eval.run.cells import Cell
from tlsc.eval.run.demo import PATCH_SIZES, Result, Swept, sweep
from tlsc.eval.run.demo import variant as in_words
from tlsc.eval.run.records import alone_in
from tlsc.eval.show.demo_pictures import Curve, Panel, Photograph, draw_gains, draw_photograph
from tlsc.eval.telling import hand_over, say

__all__ = ["FILES", "PATCH_SIZES", "PROTOCOL", "run"]

PROTOCOL = "PSNR in dB, data range 1, results clipped to [0, 1]; one figure per photograph, then their mean"
FILES = ("results.csv", "results.json", "psnr.png", "comparison.png")

Pixels = NDArray[np.float32]

ORIGINAL = in_words(Cell())


def run(out: Path, seed: int, overwrite: bool = False) -> int:
    """Sweep all networks, print the table and write the files to ``out``; returns the exit status.

    Raises:
        ArgumentValueError: a file is there already, and ``overwrite`` is not given; or another process
            writes there.
        OSError: ``out`` cannot be written to; found out before the work begins.
    """
    refuse_existing((out / name for name in FILES), overwrite)
    with alone_in(out):
        with replacing(out / FILES[0]):  # can it be written to?
            pass
        return _run(out, seed)


def _run(out: Path, seed: int) -> int:
    started = time.perf_counter()
    swept = {name: _swept(name, seed) for name in DEMO_NETWORKS}
    results = [result for own in swept.values() for result in own.results]

    say(_table(swept))
    say(f"\n{PROTOCOL}. *: the best of a network on whole photographs.")
    say("Columns: side of the patches that the degraded photograph is cut into, in pixels; whole: not cut.")
    say("Base size: window of a converted network at its input, in pixels. The training crop is in the plot.\n")
    say("\n".join(_findings(results)))

    _write_csv(out / FILES[0], results)
    with replacing(out / FILES[1]) as path:
        path.write_text(json.dumps(_report(results, seed), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / FILES[2]) as path:
        draw_gains(path, _panels(results))
    with replacing(out / FILES[3]) as path:
        draw_photograph(path, _photograph(swept))
    say(f"\nWritten to {out}: {', '.join(FILES)}")
    say(f"Took {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads.\n")
    say("\n".join(_against_tiles(swept)))
    hand_over(_report(results, seed))
    return 0


def _swept(name: str, seed: int) -> Swept:
    return sweep(name, degraded_test_photographs(DEMO_NETWORKS[name].degradation, seed), PATCH_SIZES)


# ------------------------------------------------------------------------------------------------ what is said


def _means(results: list[Result]) -> dict[tuple[str, str, int | None], float]:
    """Mean PSNR over the photographs, by (network, variant, patch size), in the order of the results."""
    gathered: dict[tuple[str, str, int | None], list[float]] = {}
    for result in results:
        gathered.setdefault((result.network, result.variant, result.patch_size), []).append(result.psnr)
    return {key: float(np.mean(values)) for key, values in gathered.items()}


def _gains(results: list[Result]) -> dict[tuple[str, str], float]:
    """PSNR on whole photographs minus the original's, by (network, variant)."""
    means = _means(results)
    return {
        (network, variant): mean - means[network, ORIGINAL, None]
        for (network, variant, size), mean in means.items()
        if size is None and variant != ORIGINAL
    }


def _table(swept: Mapping[str, Swept]) -> str:
    rows: list[list[str]] = []
    for network, own in swept.items():
        means, gains = _means(own.results), _gains(own.results)
        degraded = [_psnr(pair.clean, pair.degraded) for pair in own.pairs]
        rows.append(
            [network, "degraded photograph", *[""] * (len(PATCH_SIZES) - 1), f"{np.mean(degraded):.2f}", ""]
        )
        best = max(gains, key=lambda key: gains[key], default=None)
        for name in dict.fromkeys(result.variant for result in own.results):
            figures = [means.get((network, name, size)) for size in PATCH_SIZES]
            gain = gains.get((network, name))
            mark = " *" if (network, name) == best else ""
            rows.append(
                [
                    "",
                    name + mark,
                    *("" if figure is None else f"{figure:.2f}" for figure in figures),
                    "" if gain is None else f"{gain:+.2f}",
                ]
            )
    names = [str(size) if size else "whole" for size in PATCH_SIZES]
    align = ("left", "left", *["right"] * (len(names) + 1))
    return str(
        tabulate(rows, headers=["network", "variant", *names, "gain"], colalign=align, disable_numparse=True)
    )


def _best_converted(gains: Mapping[str, float]) -> str | None:
    """The converted variant that gains most; None where there is none."""
    return max((way for way in gains if way.startswith("converted")), key=lambda way: gains[way], default=None)


def _findings(results: list[Result]) -> list[str]:
    """A sentence for each network, in the figures of this run."""
    gains = _gains(results)
    lines = []
    for name, network in DEMO_NETWORKS.items():
        own = {variant: gain for (owner, variant), gain in gains.items() if owner == name}
        start = f"{name} ({network.description}; {DEGRADATIONS[network.degradation].description}):"
        if not own:
            lines.append(f"{start} it has no global layer, so there is nothing to convert.")
            continue
        best = max(own, key=lambda variant: own[variant])
        local = _best_converted(own)
        assert local is not None
        if own[local] > 0:
            said = f"converting gains {own[local]:+.2f} dB on whole photographs ({local})."
        else:
            said = f"converting HURTS, {own[local]:+.2f} dB at best ({local})."
        if best != local:
            said += f" Better: {best}, {own[best]:+.2f} dB."
        lines.append(f"{start} {said}")
    return lines


def _against_tiles(swept: Mapping[str, Swept]) -> list[str]:
    """Why not tile? Quality, seconds and seams of the best converted form and of overlapping tiles, a line each."""
    quality, seconds, seams = [], [], []
    for name, own in swept.items():
        crop = DEMO_NETWORKS[name].crop
        gains = {variant: gain for (_, variant), gain in _gains(own.results).items()}
        local = _best_converted(gains)
        if local is None:
            continue
        spent = {
            way: float(np.mean([r.seconds for r in own.results if r.variant == way and r.patch_size is None]))
            for way in (local, _tiles(crop))
        }
        image = torch.from_numpy(own.pairs[0].degraded).permute(2, 0, 1).unsqueeze(0)
        apart = tile_mismatch(own.job.network.model, image, min(crop, image.shape[2]), crop // 2)
        quality.append(f"{name} {gains[local]:+.2f} against {gains[_tiles(crop)]:+.2f}")
        seconds.append(f"{name} {spent[local]:.1f} against {spent[_tiles(crop)]:.1f}")
        seams.append(f"{name} {255 * apart:.1f}")
    return [
        f"Why not tile? Quality, gain in dB, converted against overlapping tiles: {', '.join(quality)}.",
        f"Seconds per whole photograph, converted against tiles: {', '.join(seconds)}.",
        "Seams: where tiles overlap, their results differ on average (of 255) by "
        f"{', '.join(seams)}; a converted network has one result at each pixel.",
    ]


def _write_csv(target: Path, results: list[Result]) -> None:
    with replacing(target) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "variant", "patch_size", "photograph", "psnr_db", "seconds"])
        for r in results:
            size = "whole" if r.patch_size is None else r.patch_size
            writer.writerow([r.network, r.variant, size, r.photograph, f"{r.psnr:.6f}", f"{r.seconds:.4f}"])


def _report(results: list[Result], seed: int) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tlsc", "torch", "numpy", "scikit-image")},
        },
        "networks": {
            name: {
                "description": network.description,
                "settings": dict(network.settings),
                "training_crop": network.crop,
                "degradation": DEGRADATIONS[network.degradation].description,
                "weights_sha256": hashlib.sha256(network.weights.read_bytes()).hexdigest(),
            }
            for name, network in DEMO_NETWORKS.items()
        },
        "mean_psnr_db": [
            {"network": network, "variant": variant, "patch_size": size or "whole", "psnr_db": mean}
            for (network, variant, size), mean in _means(results).items()
        ],
        "gain_db_whole": [
            {"network": network, "variant": variant, "gain_db": gain}
            for (network, variant), gain in _gains(results).items()
        ],
        "results": [asdict(result) | {"patch_size": result.patch_size or "whole"} for result in results],
    }


# ----------------------------------------------------------------------------------------------- what is drawn


def _panels(results: list[Result]) -> list[Panel]:
    """Few curves each: as trained, with the window that the paper recommends, and calibrated."""
    psnrs: dict[tuple[str, str], dict[int | None, list[float]]] = {}
    for result in results:
        own = psnrs.setdefault((result.network, result.variant), {})
        own.setdefault(result.patch_size, []).append(result.psnr)
    panels = []
    for name, network in DEMO_NETWORKS.items():
        ways = _ways(network.crop)
        curves = [Curve(way, psnrs[name, cell]) for way, cell in ways.items() if (name, cell) in psnrs]
        tiles = psnrs.get((name, _tiles(network.crop)), {}).get(None)
        told = (f"{name}: {network.description}", f"on {DEGRADATIONS[network.degradation].description}")
        title = "\n".join(textwrap.fill(line, 44) for line in told)
        panels.append(Panel(title, network.crop, curves, tiles))
    return panels


def _ways(crop: int) -> dict[str, str]:
    """The variants that pictures show, by what they are called there."""
    return {
        "as trained": ORIGINAL,
        "converted": in_words(Cell(crop * 3 // 2)),
        "converted and calibrated": in_words(Cell(crop, calibrated=True)),
    }


def _tiles(crop: int) -> str:
    return in_words(Cell(patch_size=crop, overlap=crop // 2))


def _photograph(swept: Mapping[str, Swept]) -> Photograph:
    """The network and the photograph on which converting changes most."""
    changes: dict[tuple[str, str], float] = {}
    for name, own in swept.items():
        psnrs = {(r.variant, r.photograph): r.psnr for r in own.results if r.patch_size is None}
        local = _ways(DEMO_NETWORKS[name].crop)["converted"]
        changes |= {
            (name, pair.name): psnrs[local, pair.name] - psnrs[ORIGINAL, pair.name]
            for pair in own.pairs
            if (local, pair.name) in psnrs
        }
    name, photograph = max(changes, key=lambda key: changes[key])
    network, own = DEMO_NETWORKS[name], swept[name]
    pair = next(pair for pair in own.pairs if pair.name == photograph)
    done = DEGRADATIONS[network.degradation].description
    ways = {way: cell for way, cell in _ways(network.crop).items() if "calibrated" not in way}
    ways[f"as trained, overlapping tiles of {network.crop}"] = _tiles(network.crop)
    ways[f"converted, window of {network.crop * 3 // 2} pixels"] = ways.pop("converted")
    states = {"input": (pair.degraded, _psnr(pair.clean, pair.degraded))}
    for way, cell in ways.items():
        (picture,) = own.pictures([cell], pair).values()
        states[way] = picture, _psnr(pair.clean, picture)
    return Photograph(f"{photograph}, {done}, restored by {name}: {network.description}", pair.clean, states)
