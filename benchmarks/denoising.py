"""The FFDNet that comes along, on a folder of clean images, beside the noisy image and total variation.

``uv run python -m benchmarks.denoising FOLDER``. White Gaussian noise, not clipped; PSNR in dB over all channels of
values in [0, 1], the result clipped; means over the images. Total variation (scikit-image,
``denoise_tv_chambolle``) gets the weight that is best for the whole folder, found with the clean images.

``--dncnn STEPS`` trains a DnCNN of FFDNet's depth and width beside it, by FFDNet's own script: a step costs it four
times as much, because it works at full resolution.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from tabulate import tabulate
from torch import Tensor, nn

from tlsc.adapters import load_demo_ffdnet
from tlsc.eval.images import as_float, read_image, with_channels
from tlsc.eval.judge.metrics import psnr
from tlsc.eval.train.ffdnet import fit

SIGMAS = (15, 25, 50)
WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # times sigma


class DnCNN(nn.Module):
    """The blind denoiser of Zhang et al., "Beyond a Gaussian denoiser", IEEE TIP 2017: it predicts the noise."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        out: Tensor = x - self.noise(x)
        return out


def main(folder: Path, steps: int) -> None:
    """Print the table."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"FFDNet": load_demo_ffdnet()}
    if steps:
        networks["DnCNN"] = DnCNN(64, 9)
        fit(networks["DnCNN"], steps, 0)
    images = [as_float(with_channels(read_image(path), 3)) for path in sorted(folder.glob("*.png"))]
    if not images:
        raise SystemExit(f"{folder}: no PNG there")
    rows = []
    for sigma in SIGMAS:
        scores: dict[str, list[float]] = {name: [] for name in ("noisy", *networks)}
        variations: list[list[float]] = [[] for _ in WEIGHTS]
        for index, clean in enumerate(images):
            noise = np.random.default_rng(index).standard_normal(clean.shape, dtype=np.float32)
            noisy = clean + np.float32(sigma / 255) * noise
            truth = torch.from_numpy(clean)
            scores["noisy"].append(psnr(torch.from_numpy(noisy).clamp(0, 1), truth))
            for name, model in networks.items():
                with torch.no_grad():
                    out = model(torch.from_numpy(noisy).permute(2, 0, 1)[None], sigma / 255)[0].permute(1, 2, 0)
                scores[name].append(psnr(out.clamp(0, 1), truth))
            for found, weight in zip(variations, WEIGHTS, strict=True):
                smooth = denoise_tv_chambolle(noisy, weight=weight * sigma / 255, channel_axis=2)
                found.append(psnr(torch.from_numpy(smooth).clamp(0, 1), truth))
        best = max(range(len(WEIGHTS)), key=lambda i: float(np.mean(variations[i])))
        noisy_score, *others = (float(np.mean(values)) for values in scores.values())
        rows.append((sigma, noisy_score, float(np.mean(variations[best])), WEIGHTS[best], *others))
    sizes = ", ".join(f"{name} {sum(p.numel() for p in model.parameters())}" for name, model in networks.items())
    print(f"{folder}: {len(images)} images; parameters: {sizes}\n")
    headers = ["sigma (of 255)", "noisy", "total variation", "weight / sigma", *networks]
    print(tabulate(rows, headers=headers, floatfmt=("d", ".2f", ".2f", "g", *[".2f"] * len(networks))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising", description=__doc__)
    parser.add_argument("folder", type=Path, help="of PNG images")
    parser.add_argument("--dncnn", type=int, default=0, metavar="STEPS", help="train a DnCNN beside it")
    given = parser.parse_args()
    main(given.folder, given.dncnn)
