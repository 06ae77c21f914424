"""Calibrated statistics: the tables of ``docs/calibration.md``.

``python -m benchmarks calibration train`` trains the networks that do not come along, into
``calibration-networks``; ``python -m benchmarks calibration networks tiles borders guards hinet [FOLDER]`` prints
the tables, on the six photographs of scikit-image that no network was trained on, or on three of them and three of
a folder. ``python -m benchmarks calibration unets [FOLDER]``: see :mod:`benchmarks.unets`.

Every network is trained by ``tlsc.eval.train.demo``. Calibration sees four training photographs, degraded anew.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import skimage.io
import torch
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc.adapters import DEMO_NETWORKS, DemoNetwork, HINet
from tlsc.eval.data.degradations import DEGRADATIONS, degrade_photograph, smooth_field
from tlsc.eval.run.patches import restore
from tlsc.eval.train.demo import train

from . import unets

FOLDER = Path("calibration-networks")
SEEN = ("motorcycle_left", "rocket", "brick", "ihc")
OWN = ("coffee.png", "chelsea.png", "astronaut.png")
MORE = ("clock_motion.png", "cell.png", "page.png")


class _HINet(DemoNetwork):
    def build(self) -> Any:
        return HINet(**self.settings)


def _trained(name: str, **changes: Any) -> DemoNetwork:
    network = DEMO_NETWORKS[name]
    settings = {**network.settings, **changes.pop("settings", {})}
    return dataclasses.replace(network, settings=settings, **changes)


def _steps(name: str, degradation: str, seed: int) -> int | None:
    """None: the demo's own weights, 3000 steps."""
    if degradation != DEMO_NETWORKS[name].degradation:
        return 1000
    return (3000 if name == "hin-all" else 1000) if seed else None


# name: (what to train, steps, seed)
NETWORKS: dict[str, tuple[DemoNetwork, int | None, int]] = {
    f"{name}, {degradation}, seed {seed}": (
        _trained(name, degradation=degradation),
        _steps(name, degradation, seed),
        seed,
    )
    for name in ("hin-all", "se", "hin")
    for degradation in ("motion-blur", "haze")
    for seed in (0, 1)
}
BORDERS: dict[str, tuple[DemoNetwork, int | None, int]] = {
    "hin-all, crops of 64": (_trained("hin-all"), 1000, 1),
    "hin-all, crops of 128": (_trained("hin-all", crop=128), 1000, 0),
    "hin-all, crops of 64, reflection": (_trained("hin-all", settings={"padding_mode": "reflect"}), 1000, 0),
}
HINET = {
    "HINet, wf 8, crops of 256": (
        _HINet("hinet", "HINet", {"wf": 8, "hin_position_left": 3}, 256, "motion-blur"),
        2500,
        0,
    )
}


def main(parts: Sequence[str]) -> None:
    """Print the parts that are named, all tables if none is."""
    torch.set_num_threads(1)
    names = [part for part in parts if part in _PARTS]
    folders = [Path(part) for part in parts if part not in _PARTS]
    if any(not folder.is_dir() for folder in folders) or len(folders) > 1:
        raise SystemExit(f"calibration takes {', '.join(_PARTS)} and one folder of photographs, got {list(parts)}")
    for name in names or [name for name in _PARTS if name not in ("train", "unets")]:
        _PARTS[name](folders[0] if folders else None)


# ------------------------------------------------------------------------------------------- networks and images


def _file(network: DemoNetwork, steps: int | None, seed: int) -> Path:
    padding = network.settings.get("padding_mode", "zeros")
    return FOLDER / f"{network.name}-{network.degradation}-{network.crop}-{padding}-{steps}-{seed}.safetensors"


def _train(_: Path | None) -> None:
    FOLDER.mkdir(exist_ok=True)
    for network, steps, seed in {**NETWORKS, **BORDERS, **HINET}.values():
        path = _file(network, steps, seed)
        if steps is not None and not path.exists():
            model = train(network, steps, seed)
            save_file(model.state_dict(), path, {"steps": str(steps), "seed": str(seed)})
            print(path)


def _load(network: DemoNetwork, steps: int | None, seed: int) -> nn.Module:
    path = network.weights if steps is None else _file(network, steps, seed)
    if not path.exists():
        raise SystemExit(f"{path} is not there: python -m benchmarks calibration train")
    model: nn.Module = network.build()
    model.load_state_dict(load_file(path))
    return model.eval()


Photographs = list[tuple[str, Tensor, np.ndarray]]


def _photographs(degradation: str, folder: Path | None) -> Photographs:
    """Name, degraded (1, 3, H, W), clean (H, W, 3)."""
    data = Path(skimage.__file__).parent / "data"
    files = [data / name for name in OWN]
    files += [data / name for name in MORE] if folder is None else sorted(folder.glob("*.png"))[:3]
    found = []
    for number, path in enumerate(files):
        pixels = skimage.io.imread(path)
        pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
        # Cut to what the networks take without padding of their own, which no training crop had.
        pixels = pixels[: pixels.shape[0] // 16 * 16, : pixels.shape[1] // 16 * 16]
        clean = np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)
        rng = np.random.default_rng((7, number))
        level = smooth_field(*clean.shape[:2], rng)
        found.append((path.stem, _tensor(DEGRADATIONS[degradation].apply(clean, level, rng)), clean))
    return found


def _seen(degradation: str) -> list[Tensor]:
    return [_tensor(degrade_photograph(name, degradation, 7).degraded) for name in SEEN]


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)


class _Result(nn.Module):
    """A network's last output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        out = self.model(image)
        return out[-1] if isinstance(out, list) else out  # type: ignore[no-any-return]


def _psnr(
    model: nn.Module, photographs: Photographs, tile: int | None = None, overlap: int | None = None
) -> list[float]:
    """Of the whole photographs, or in tiles that overlap by half of their size or by ``overlap``."""
    out = []
    if overlap is None:
        overlap = tile // 2 if tile else 0
    for _, image, clean in photographs:
        restored = restore(_Result(model), image, tile, overlap)
        pixels = restored[0].permute(1, 2, 0).clamp(0, 1).numpy()
        out.append(float(peak_signal_noise_ratio(clean, pixels, data_range=1)))
    return out


def _corrected(model: nn.Module, images: Any, crop: int, **settings: Any) -> bool:
    """Calibrate, and say whether that changed anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        plan = tlsc.calibrate(model, images, crop, **settings)
    return any(site.fit is not None and site.fit.kept for site in plan)


def _on_itself(model: nn.Module, photographs: Photographs, crop: int) -> list[float]:
    out = []
    for photograph in photographs:
        _corrected(model, photograph[1], crop)
        out += _psnr(model, [photograph])
    return out


def _ratios(model: nn.Module, image: Tensor, crop: int, step: int) -> list[float]:
    """Of each instance norm: variance on crops over that of the same places inside, the median over all channels.

    Inside, every norm is given the crop's own statistics, so that nothing but the border differs.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.InstanceNorm2d)]
    rng = np.random.default_rng(0)
    ratios: list[list[Tensor]] = [[] for _ in norms]
    for _ in range(12):
        top, left = (int(rng.integers(step, n - crop - step)) // step * step for n in image.shape[2:])
        on_crop: list[Tensor] = []
        handles = [norm.register_forward_pre_hook(_keeping(on_crop)) for norm in norms]
        with torch.no_grad():
            model(image[..., top : top + crop, left : left + crop])
        for handle in handles:
            handle.remove()
        handles = [
            norm.register_forward_hook(_as_on_crop(x, (top, left), crop, own))
            for norm, x, own in zip(norms, on_crop, ratios, strict=True)
        ]
        with torch.no_grad():
            model(image)
        for handle in handles:
            handle.remove()
    return [float(torch.cat(own).median()) for own in ratios]


def _keeping(maps: list[Tensor]) -> Any:
    return lambda _, args: maps.append(args[0])


def _as_on_crop(x: Tensor, place: tuple[int, int], crop: int, ratios: list[Tensor]) -> Any:
    """Notes the ratio, and normalises with the statistics of ``x``."""
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)

    def hook(norm: nn.InstanceNorm2d, args: tuple[Tensor], _: Tensor) -> Tensor:
        top, left = (at * x.shape[2] // crop for at in place)
        part = args[0][..., top : top + x.shape[2], left : left + x.shape[3]]
        ratios.append(var.flatten() / part.var((2, 3), correction=0).flatten().clamp(min=1e-12))
        weight, bias = (p.view(-1, 1, 1) for p in (norm.weight, norm.bias))
        return (args[0] - mean) / (var + norm.eps).sqrt() * weight + bias

    return hook


# -------------------------------------------------------------------------------------------------- the tables


def _say(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print(tabulate(rows, headers=names, tablefmt="github", disable_numparse=True), flush=True)


def _shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f}"


def _networks(folder: Path | None) -> None:
    rows = []
    for name, (network, steps, seed) in NETWORKS.items():
        photographs, crop = _photographs(network.degradation, folder), network.crop
        model = _load(network, steps, seed)
        original, tiles = _psnr(model, photographs), _psnr(model, photographs, crop)
        tlsc.convert(model, crop)
        local = _psnr(model, photographs)
        own = _on_itself(model, photographs, crop) if steps is None else []
        calibrated = _psnr(model, photographs) if _corrected(model, _seen(network.degradation), crop) else local
        least = min(c - u for c, u in zip(calibrated, local, strict=True))
        figures = [_shown(values) if values else "" for values in (original, local, tiles, calibrated, own)]
        rows.append([name, str(steps or 3000), *figures, f"{least:+.2f}"])
        print(rows[-1], flush=True)
    names = ["network", "steps", "original", "local", "tiles", "calibrated", "on itself", "least gain over local"]
    _say("Networks: PSNR in dB, window = crop", names, rows)


def _tiles(folder: Path | None) -> None:
    rows = []
    overlaps = (0, 8, 16, 32, 56)
    for name, (network, steps, seed) in NETWORKS.items():
        if network.name != "hin-all":
            continue
        photographs, model = _photographs(network.degradation, folder), _load(network, steps, seed)
        figures = [_psnr(model, photographs, network.crop, overlap) for overlap in overlaps]
        tlsc.convert(model, network.crop)
        _corrected(model, _seen(network.degradation), network.crop)
        rows.append([name, *(_shown(values) for values in [*figures, _psnr(model, photographs)])])
        print(rows[-1], flush=True)
    _say("Tiles of 64 by their overlap", ["network", *map(str, overlaps), "calibrated"], rows)


def _borders(folder: Path | None) -> None:
    rows = []
    for name, (network, steps, seed) in BORDERS.items():
        photographs, crop = _photographs(network.degradation, folder), network.crop
        model = _load(network, steps, seed)
        ratios = _ratios(model, _seen(network.degradation)[0], crop, 4)
        original, tiles = _psnr(model, photographs), _psnr(model, photographs, crop)
        tlsc.convert(model, crop)
        local = _psnr(model, photographs)
        _corrected(model, _seen(network.degradation), crop)
        calibrated = _psnr(model, photographs)
        before = ", ".join(f"{site.fit.before:.2f}" for site in tlsc.plan(model) if site.fit and site.fit.before)
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append([name, shown, before, *(_shown(values) for values in (original, local, tiles, calibrated))])
        print(rows[-1], flush=True)
    names = ["network", "variance, crop over inside", "disagreement", "original", "local", "tiles", "calibrated"]
    _say("Borders: crop size and padding", names, rows)


def _guards(folder: Path | None) -> None:
    rows = []
    for name in ("se", "hin", "hin-all"):
        network = DEMO_NETWORKS[name]
        model, photographs = _load(network, None, 0), _photographs(network.degradation, folder)[:3]
        seen = _seen(network.degradation)
        given: dict[str, tuple[Any, dict[str, int]]] = {
            "two images of 80×80": ([image[..., 100:180, 100:180] for image in seen[:2]], {}),
            "one constant image": (torch.full((1, 3, 200, 200), 0.4), {}),
            "images of 48×48": ([image[..., 100:148, 100:148] for image in seen], {}),
            "8 crops in all": (seen[:1], {"crops_per_image": 8}),
            "four photographs": (seen, {}),
        }
        for window in (64, 96, 128):
            tlsc.convert(model, window)
            local = _psnr(model, photographs)
            row = []
            for images, settings in given.values():
                figures = _psnr(model, photographs) if _corrected(model, images, 64, **settings) else local
                row.append(f"{np.mean(figures) - np.mean(local):+.2f}")
            rows.append([name, str(window), _shown(local), *row])
            print(rows[-1], flush=True)
        tlsc.revert(model)
    _say("Guards: calibrated less local, dB", ["network", "window", "local", *given], rows)


def _hinet(folder: Path | None) -> None:
    for name, (network, steps, seed) in HINET.items():
        photographs = [
            found for found in _photographs(network.degradation, folder) if min(found[2].shape[:2]) > 300
        ]
        model = _load(network, steps, seed)
        seen = [image[..., :512, :512] for image in _seen(network.degradation)]
        ratios = _ratios(model, seen[0], 256, 16)
        figures: dict[str, list[float]] = {"original": _psnr(model, photographs)}
        for window in (256, 384):
            tlsc.convert(model, window)
            figures[f"local, {window}"] = _psnr(model, photographs)
            _corrected(model, seen, 256, crops_per_image=16)
            figures[f"calibrated, {window}"] = _psnr(model, photographs)
            print(tlsc.plan(model), flush=True)
        tlsc.revert(model)
        figures["tiles of 256, overlap 128"] = _psnr(model, photographs, 256)
        print("variance, crop over inside:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
        _say(name, list(figures), [[_shown(values) for values in figures.values()]])


_PARTS = {
    "train": _train,
    "networks": _networks,
    "tiles": _tiles,
    "borders": _borders,
    "guards": _guards,
    "hinet": _hinet,
    "unets": unets.main,
}
