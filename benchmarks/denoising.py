"""The FFDNet that comes along, on a folder of clean images, beside the noisy image and total variation.

``uv run python -m benchmarks.denoising FOLDER``. White Gaussian noise, not clipped; PSNR in dB over all channels of
values in [0, 1], the result clipped; means over the images. Total variation (scikit-image,
``denoise_tv_chambolle``) gets the weight that is best for the whole folder, found with the clean images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from tabulate import tabulate

from tlsc.adapters import load_demo_ffdnet
from tlsc.eval.images import as_float, read_image, with_channels
from tlsc.eval.nlm import psnr

SIGMAS = (15, 25, 50)
WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # times sigma


def main(folder: Path) -> None:
    """Print the table."""
    model = load_demo_ffdnet()
    images = [as_float(with_channels(read_image(path), 3)) for path in sorted(folder.glob("*.png"))]
    if not images:
        raise SystemExit(f"{folder}: no PNG there")
    rows = []
    for sigma in SIGMAS:
        scores: dict[str, list[float]] = {"noisy": [], "FFDNet": []}
        variations: list[list[float]] = [[] for _ in WEIGHTS]
        for index, clean in enumerate(images):
            noise = np.random.default_rng(index).standard_normal(clean.shape, dtype=np.float32)
            noisy = clean + np.float32(sigma / 255) * noise
            truth = torch.from_numpy(clean)
            with torch.no_grad():
                out = model(torch.from_numpy(noisy).permute(2, 0, 1)[None], sigma / 255)[0].permute(1, 2, 0)
            scores["noisy"].append(psnr(torch.from_numpy(noisy).clamp(0, 1), truth))
            scores["FFDNet"].append(psnr(out.clamp(0, 1), truth))
            for found, weight in zip(variations, WEIGHTS, strict=True):
                smooth = denoise_tv_chambolle(noisy, weight=weight * sigma / 255, channel_axis=2)
                found.append(psnr(torch.from_numpy(smooth).clamp(0, 1), truth))
        best = max(range(len(WEIGHTS)), key=lambda i: float(np.mean(variations[i])))
        means = [float(np.mean(values)) for values in (scores["noisy"], variations[best], scores["FFDNet"])]
        rows.append((sigma, *means, WEIGHTS[best]))
    print(f"{folder}: {len(images)} images, {sum(p.numel() for p in model.parameters())} parameters\n")
    headers = ["sigma (of 255)", "noisy", "total variation", "FFDNet", "weight / sigma"]
    print(tabulate(rows, headers=headers, floatfmt=("d", ".2f", ".2f", ".2f", "g")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising", description=__doc__)
    parser.add_argument("folder", type=Path, help="of PNG images")
    main(parser.parse_args().folder)
