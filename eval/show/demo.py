"""``tlsc demo``: PSNR against test patch size for four small networks, as trained and converted.

Everything it needs comes with the package or with scikit-image: photographs, networks, weights.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio
from tabulate import tabulate
from torch import nn

import tlsc
from tlsc.adapters import DEMO_NETWORKS, DemoNetwork, load_demo_network
from tlsc.eval.data.degradations import DEGRADATIONS, Pair, degrade_photograph, degraded_test_photographs
from tlsc.eval.files import refuse_existing, replacing
from tlsc.eval.run.patches import restore
from tlsc.eval.show.pictures import Curve, Row, draw_comparison, draw_curves
from tlsc.eval.telling import hand_over, say
from tlsc.eval.telling import progress as progress_bar

__all__ = ["PATCH_SIZES", "PROTOCOL", "Result", "Variant", "run", "sweep", "variants_of"]

PROTOCOL = "PSNR in dB, data range 1, results clipped to [0, 1]; one figure per photograph, then their mean"
PATCH_SIZES: tuple[int | None, ...] = (32, 64, 96, 128, 256, None)
CALIBRATING = ("motorcycle_left", "rocket", "brick", "ihc")
"""Training photographs, degraded anew; of the test photographs calibration sees nothing."""
FILES = ("results.csv", "results.json", "psnr.png", "comparison.png")

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """One way to run a network: as trained, converted, or in overlapping tiles (``tile`` and ``overlap``).

    ``calibrated``: with corrected statistics (:func:`tlsc.calibrate`), from degraded training photographs.
    """

    name: str
    base_size: int | None = None
    stride: int = 1
    tile: int | None = None
    overlap: int = 0
    calibrated: bool = False


@dataclass(frozen=True)
class Result:
    """PSNR of one photograph in dB; ``patch_size`` None is the whole photograph at once."""

    network: str
    variant: str
    patch_size: int | None
    photograph: str
    psnr: float
    seconds: float


Restored = dict[tuple[str, str, str], Pixels]
"""Whole photographs by (network, variant, photograph)."""

ORIGINAL = Variant("original")


def variants_of(network: DemoNetwork, model: nn.Module) -> list[Variant]:
    """What is shown for a network: windows of 1, 1.5 and 2 training crops, strided, calibrated, and tiles."""
    crop = network.crop
    tiles = Variant(f"original, tiles of {crop}, overlap {crop // 2}", tile=crop, overlap=crop // 2)
    plan = tlsc.plan(model, crop, stride=4)
    if not plan.converted:
        return [ORIGINAL]
    windows = (crop, crop * 3 // 2, crop * 2)
    variants = [ORIGINAL, *(Variant(f"converted, base size {size}", size) for size in windows)]
    if any(site.action == "strided" for site in plan):
        variants.append(Variant(f"converted, base size {windows[1]}, stride 4", windows[1], stride=4))
    return [*variants, Variant(f"converted, base size {crop}, calibrated", crop, calibrated=True), tiles]


def run(out: Path, seed: int, overwrite: bool = False) -> int:
    """Sweep all networks, print the table and write the files to ``out``; returns the exit status.

    Raises:
        ArgumentValueError: a file is there already, and ``overwrite`` is not given.
        OSError: ``out`` cannot be written to; found out before the work begins.
    """
    refuse_existing((out / name for name in FILES), overwrite)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / FILES[0]):  # can it be written to?
        pass
    started = time.perf_counter()
    models = {name: load_demo_network(name) for name in DEMO_NETWORKS}
    pairs = {name: degraded_test_photographs(DEMO_NETWORKS[name].degradation, seed) for name in models}
    results, restored = sweep(models, pairs)

    say(_table(results, pairs))
    say(f"\n{PROTOCOL}.")
    say("Columns: side of the patches that the degraded photograph is cut into, in pixels; whole: not cut.")
    say("Base size: window of a converted network at its input, in pixels. The training crop is in the plot.\n")
    say("\n".join(_findings(results)))

    _write_csv(out / FILES[0], results)
    with replacing(out / FILES[1]) as path:
        path.write_text(json.dumps(_report(results, seed), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / FILES[2]) as path:
        draw_curves(
            path, _curves(results), _titles(), {name: DEMO_NETWORKS[name].crop for name in models}, PROTOCOL
        )
    with replacing(out / FILES[3]) as path:
        draw_comparison(path, _rows(results, restored, pairs))
    say(f"\nWritten to {out}: {', '.join(FILES)}")
    say(f"Took {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads.")
    hand_over(_report(results, seed))
    return 0


def sweep(models: Mapping[str, nn.Module], pairs: dict[str, list[Pair]]) -> tuple[list[Result], Restored]:
    """Restore every pair with every variant of its network at every patch size, with a progress bar.

    On patches no larger than its base size a converted network is the original (invariant I1, tested): it takes
    the original's figure and is not run again.
    """
    jobs = {
        (name, variant): [
            (size, pair) for size in ((None,) if variant.tile else PATCH_SIZES) for pair in pairs[name]
        ]
        for name, model in models.items()
        for variant in variants_of(DEMO_NETWORKS[name], model)
    }
    results: list[Result] = []
    restored: Restored = {}
    original: dict[tuple[str, int | None, str], Result] = {}
    with progress_bar(
        total=sum(map(len, jobs.values())), desc="demo", unit="image", smoothing=0, mininterval=0.5
    ) as progress:
        for (name, variant), cases in jobs.items():
            progress.set_postfix_str(f"{name}, {variant.name}", refresh=False)
            with _as(variant, models[name], DEMO_NETWORKS[name]) as model:
                for size, pair in cases:
                    progress.update()
                    if variant.base_size is not None and size is not None and size <= variant.base_size:
                        results.append(replace(original[name, size, pair.name], variant=variant.name))
                        continue
                    start = time.perf_counter()
                    image = _restore(model, variant, size, pair.degraded)
                    seconds = time.perf_counter() - start
                    psnr = _psnr(pair.clean, image)
                    results.append(Result(name, variant.name, size, pair.name, psnr, seconds))
                    if variant == ORIGINAL:
                        original[name, size, pair.name] = results[-1]
                    if size is None:
                        restored[name, variant.name, pair.name] = image
    return results, restored


def _as(variant: Variant, model: nn.Module, network: DemoNetwork) -> AbstractContextManager[nn.Module]:
    if variant.base_size is None:
        return nullcontext(model)
    images = None
    if variant.calibrated:
        photographs = [degrade_photograph(name, network.degradation, 0).degraded for name in CALIBRATING]
        images = [_image(photograph[100:420, 100:420]) for photograph in photographs]  # more would take longer
    return tlsc.converted(model, variant.base_size, stride=variant.stride, calibrate=images, crop=network.crop)


def _restore(model: nn.Module, variant: Variant, size: int | None, degraded: Pixels) -> Pixels:
    out = restore(model, _image(degraded), variant.tile or size, variant.overlap)
    return np.asarray(out[0].permute(1, 2, 0).clamp(0, 1).numpy())


def _image(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def _psnr(clean: Pixels, image: Pixels) -> float:
    return float(peak_signal_noise_ratio(clean, image, data_range=1))


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
        (network, variant): mean - means[network, ORIGINAL.name, None]
        for (network, variant, size), mean in means.items()
        if size is None and variant != ORIGINAL.name
    }


def _table(results: list[Result], pairs: dict[str, list[Pair]]) -> str:
    means, gains = _means(results), _gains(results)
    rows: list[list[str]] = []
    for network in dict.fromkeys(result.network for result in results):
        degraded = [_psnr(pair.clean, pair.degraded) for pair in pairs[network]]
        rows.append(
            [network, "degraded photograph", *[""] * (len(PATCH_SIZES) - 1), f"{np.mean(degraded):.2f}", ""]
        )
        for variant in dict.fromkeys(result.variant for result in results if result.network == network):
            figures = [means.get((network, variant, size)) for size in PATCH_SIZES]
            gain = gains.get((network, variant))
            rows.append(
                [
                    "",
                    variant,
                    *("" if figure is None else f"{figure:.2f}" for figure in figures),
                    "" if gain is None else f"{gain:+.2f}",
                ]
            )
    names = [str(size) if size else "whole" for size in PATCH_SIZES]
    align = ("left", "left", *["right"] * (len(names) + 1))
    return str(
        tabulate(rows, headers=["network", "variant", *names, "gain"], colalign=align, disable_numparse=True)
    )


def _findings(results: list[Result]) -> list[str]:
    """A sentence for each network, in the figures of this run."""
    gains = _gains(results)
    lines = []
    for name, network in DEMO_NETWORKS.items():
        own = {variant: gain for (owner, variant), gain in gains.items() if owner == name}
        start = f"{name} ({network.description}; {DEGRADATIONS[network.degradation].description}):"
        if not own:
            lines.append(f"{start} no site, nothing to convert.")
            continue
        best = max(own, key=lambda variant: own[variant])
        local = max((variant for variant in own if variant.startswith("converted")), key=lambda v: own[v])
        if own[local] > 0:
            said = f"converting gains {own[local]:+.2f} dB on whole photographs ({local})."
        else:
            said = f"converting HURTS, {own[local]:+.2f} dB at best ({local})."
        if best != local:
            said += f" Better: {best}, {own[best]:+.2f} dB."
        lines.append(f"{start} {said}")
    return lines


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


def _titles() -> dict[str, str]:
    return {
        name: f"{name}: {network.description}\n{DEGRADATIONS[network.degradation].description}"
        for name, network in DEMO_NETWORKS.items()
    }


def _curves(results: list[Result]) -> dict[str, list[Curve]]:
    curves: dict[str, dict[str, Curve]] = {}
    for (network, variant, size), mean in _means(results).items():
        curve = curves.setdefault(network, {}).setdefault(variant, Curve(variant, [], []))
        curve.sizes.append(size)
        curve.psnrs.append(mean)
    return {network: list(found.values()) for network, found in curves.items()}


def _rows(results: list[Result], restored: Restored, pairs: dict[str, list[Pair]]) -> list[Row]:
    """One photograph for each network that has sites: the one on which converting changes most."""
    psnrs = {(r.network, r.variant, r.photograph): r.psnr for r in results if r.patch_size is None}
    gains = _gains(results)
    rows = []
    for name, network in DEMO_NETWORKS.items():
        own = {variant: gain for (owner, variant), gain in gains.items() if owner == name}
        if not own:
            continue
        local = max((variant for variant in own if variant.startswith("converted")), key=lambda v: own[v])
        tiles = next(variant for variant in own if "tiles" in variant)
        change = {p.name: abs(psnrs[name, local, p.name] - psnrs[name, ORIGINAL.name, p.name]) for p in pairs[name]}
        pair = next(p for p in pairs[name] if p.name == max(change, key=lambda photograph: change[photograph]))
        degraded = _psnr(pair.clean, pair.degraded)
        states = {f"input\n{degraded:.2f} dB": pair.degraded}
        for variant in (ORIGINAL.name, local, tiles):
            title = variant.replace(", ", "\n", 1)
            states[f"{title}\n{psnrs[name, variant, pair.name]:.2f} dB"] = restored[name, variant, pair.name]
        states["truth"] = pair.clean
        rows.append(Row(f"{name}: {network.description}", states))
    return rows
