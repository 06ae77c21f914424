"""U-Nets in which a norm on the first level stands before pools on deep ones: trained, calibrated, compared.

``python -m benchmarks calibration unets [FOLDER]`` trains them into ``calibration-networks`` (each takes some
minutes of a core, and goes on where it was stopped) and prints what whole images, plain local statistics,
calibrated ones, tiles and the statistics of crops themselves reach. FOLDER holds photographs (PNG): the first
eight are tested, four calibrate, all but these eight are trained on. Without it, those of scikit-image.

Zero padding, values not centred, crops of 96, instance norm on the first level, squeeze-excitation below; the
second kind has both on the deepest level. The seed of a network decides its weights, crops and degradations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import skimage.io
import torch
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc.adapters import UNet
from tlsc.eval.data.degradations import DEGRADATIONS, smooth_field
from tlsc.eval.files import replacing
from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load_photograph
from tlsc.eval.run.patches import restore
from tlsc.eval.train.demo import arithmetic, random_crop

__all__ = ["NETWORKS", "main"]

CROP = 96
STEPS = 500
BATCH = 4
SAVED_EVERY = 50
TESTED = 8
CALIBRATING = 4
WINDOWS = (CROP, CROP * 4 // 3, CROP * 3 // 2)
EVERY = (96, 48, 24)

Image = np.ndarray[Any, np.dtype[np.float32]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A network and its training: ``norms`` are the levels with instance norm, ``gates`` those with pools."""

    norms: tuple[int, ...]
    degradation: str
    seed: int
    gates: tuple[int, ...] = (1, 2)

    def build(self) -> nn.Module:
        torch.manual_seed(self.seed)
        inner = UNet(16, 3, squeeze_excitation=self.gates)
        for level in self.norms:
            inner.encoder[level].norm = nn.InstanceNorm2d(16 * 2**level, affine=True)
        return _NotCentred(inner)

    def load(self, folder: Path) -> nn.Module:
        """The trained network."""
        model = self.build()
        model.load_state_dict(torch.load(folder / self.file("pt"), weights_only=True))
        return model.eval()

    def file(self, suffix: str) -> str:
        levels = "-".join(map(str, self.norms))
        return f"unet-{levels}-{self.degradation}-{CROP}-{STEPS}-{self.seed}.{suffix}"


NETWORKS = {
    "norm 0, haze, seed 0": Settings((0,), "haze", 0),
    "norms 0 and 2, haze, seed 1": Settings((0, 2), "haze", 1),
    "norm 0, motion blur, seed 1": Settings((0,), "motion-blur", 1),
    "norms 0 and 2, motion blur, seed 0": Settings((0, 2), "motion-blur", 0),
    "norms 0 and 2, haze, seed 0": Settings((0, 2), "haze", 0),
}


class _NotCentred(nn.Module):
    """The demo's U-Net without its centring, which would make a ring of zeros mid-grey."""

    def __init__(self, inner: UNet) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> Tensor:
        restored: Tensor = self.inner(image + 0.5) - 0.5
        return restored


def photographs(folder: Path | None) -> tuple[list[Image], list[Image]]:
    """To train on and to test on, clean, cut to multiples of 16."""
    if folder is None:
        train, test = (
            [load_photograph(name) for name in names] for names in (TRAINING_PHOTOGRAPHS, TEST_PHOTOGRAPHS)
        )
    else:
        files = sorted(folder.glob("*.png"))
        if len(files) < 2 * TESTED:
            raise SystemExit(f"{folder} holds {len(files)} PNG files, {2 * TESTED} are needed")
        read = [np.asarray(skimage.io.imread(file)[..., :3], dtype=np.float32) / np.float32(255) for file in files]
        train, test = read[TESTED:], read[:TESTED]
    return train, [image[: image.shape[0] // 16 * 16, : image.shape[1] // 16 * 16] for image in test]


def degraded(images: Sequence[Image], degradation: str) -> list[Tensor]:
    """(1, 3, H, W) each; the density of the haze is a smooth random field."""
    found = []
    for number, image in enumerate(images):
        rng = np.random.default_rng((7, number))
        level = smooth_field(image.shape[0], image.shape[1], rng)
        found.append(_tensor([DEGRADATIONS[degradation].apply(image, level, rng)]))
    return found


def train(own: Settings, images: Sequence[Image], folder: Path) -> nn.Module:
    """The trained network: from its file, or trained on from the last saved state."""
    path, state_path = folder / own.file("pt"), folder / own.file("state.pt")
    model = own.build()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    step, average = 0, math.nan
    if state_path.exists():
        saved = torch.load(state_path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    while step < STEPS:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        clean, given = _batch(own, images, np.random.default_rng((own.seed, step)))
        with arithmetic():
            restored = model(given)
        loss = ((restored.float() - clean).square() + 1e-6).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        step += 1
        if step % SAVED_EVERY == 0:
            print(f"{own.file('pt')}: step {step}, loss {average:.4f}", flush=True)
            with replacing(state_path) as new:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
    with replacing(path) as new:
        torch.save(model.to(memory_format=torch.contiguous_format).state_dict(), new)
    state_path.unlink(missing_ok=True)
    return model.eval()


def _batch(own: Settings, images: Sequence[Image], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    degradation = DEGRADATIONS[own.degradation]
    inside = slice(degradation.margin, degradation.margin + CROP)
    clean, given = [], []
    for _ in range(BATCH):
        crop = random_crop(images[int(rng.integers(len(images)))], CROP + 2 * degradation.margin, rng)
        given.append(degradation.apply(crop, rng.random(), rng)[inside, inside])
        clean.append(crop[inside, inside])
    return _tensor(clean), _tensor(given)


def _tensor(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images))).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------- the statistics of crops themselves


class _OwnStatistics:
    """Each norm and pool of a network takes what real crops on a grid had there, interpolated over the image."""

    def __init__(self, model: nn.Module, image: Tensor, every: int) -> None:
        self.model, self.image = model, image
        self.starts = [_grid(n, every) for n in image.shape[2:]]
        self.found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self) -> Tensor:
        """The restored image, in two runs: crops, and the whole."""
        with self._hooks(self._noted):
            for top in self.starts[0]:
                self.model(torch.cat([self.image[..., top : top + CROP, i : i + CROP] for i in self.starts[1]]))
        with self._hooks(self._replaced):
            restored: Tensor = self.model(self.image)
        return restored

    @contextmanager
    def _hooks(self, hook: Any) -> Iterator[None]:
        sites = [m for m in self.model.modules() if isinstance(m, (nn.InstanceNorm2d, nn.AdaptiveAvgPool2d))]
        handles = [site.register_forward_hook(hook) for site in sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _noted(self, site: nn.Module, args: tuple[Tensor], _: Tensor) -> None:
        var, mean = torch.var_mean(args[0], (2, 3), correction=0)
        self.found.setdefault(site, []).append((var, mean))

    def _replaced(self, site: nn.Module, args: tuple[Tensor], _: Tensor) -> Tensor:
        x = args[0]
        ways = [self._between(axis, n) for axis, n in enumerate(x.shape[2:])]
        var, mean = (
            torch.einsum("iy,yxc,jx->cij", ways[0], torch.stack([row[which] for row in self.found[site]]), ways[1])
            for which in (0, 1)
        )
        if isinstance(site, nn.AdaptiveAvgPool2d):
            return mean[None]
        assert isinstance(site, nn.InstanceNorm2d)
        weight, bias = (p.view(-1, 1, 1) for p in (site.weight, site.bias))
        return (x - mean) / (var + site.eps).sqrt() * weight + bias

    def _between(self, axis: int, n: int) -> Tensor:
        """(n, crops): shares of the crops on either side of each position."""
        centres = (np.array(self.starts[axis]) + CROP / 2) * n / self.image.shape[2 + axis] - 0.5
        shares = [np.interp(np.arange(n), centres, row) for row in np.eye(len(centres))]
        return torch.from_numpy(np.stack(shares, 1).astype(np.float32))


def _grid(n: int, every: int) -> list[int]:
    """Where crops start on an axis: every so many pixels, and flush with the end."""
    return [*range(0, n - CROP, every), n - CROP]


# ------------------------------------------------------------------------------------------------------- the table


def main(folder: Path | None) -> None:
    """Train what is missing, and print the table. What was measured is kept beside the networks."""
    weights = Path("calibration-networks")
    weights.mkdir(exist_ok=True)
    seen, tested = photographs(folder)
    names = ["network", "whole", *(f"local {w}" for w in WINDOWS), *(f"calibrated {w}" for w in WINDOWS), "tiles"]
    kept = weights / f"unets-{folder.name if folder else 'scikit-image'}.json"
    found: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    rows = []
    for name, own in NETWORKS.items():
        with torch.enable_grad():
            model = train(own, seen, weights)
        if name not in found:
            found[name] = _measured(model, own, seen, tested)
            with replacing(kept) as new:
                new.write_text(json.dumps(found))
        rows.append([name, *(f"{value:.2f}" for value in found[name])])
        print(rows[-1], flush=True)
    headers = [*names, *(f"crops' own, every {n}" for n in EVERY)]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


@torch.no_grad()
def _measured(model: nn.Module, own: Settings, seen: Sequence[Image], tested: Sequence[Image]) -> list[float]:
    given = degraded(tested, own.degradation)
    calibrating = degraded(seen[:: len(seen) // CALIBRATING][:CALIBRATING], own.degradation)

    def psnr(restored: Iterable[Tensor]) -> float:
        pairs = zip(restored, tested, strict=True)
        errors = [float(np.square(x[0].permute(1, 2, 0).clamp(0, 1).numpy() - clean).mean()) for x, clean in pairs]
        return float(np.mean(-10 * np.log10(errors)))

    found = [psnr(map(model, given))]
    calibrated = []
    for window in WINDOWS:
        with tlsc.converted(model, window):
            found.append(psnr(map(model, given)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", tlsc.TLSCWarning)
                tlsc.calibrate(model, calibrating, CROP)
            calibrated.append(psnr(map(model, given)))
    tiles = psnr(restore(model, image, CROP, CROP // 2) for image in given)
    own_statistics = [psnr(_OwnStatistics(model, image, n)() for image in given) for n in EVERY]
    return [*found, *calibrated, tiles, *own_statistics]
