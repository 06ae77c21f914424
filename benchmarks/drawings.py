"""Drawings made in code: flat colours, outlines, hatching and dots, dense in places and empty in others."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["drawing", "enlarged_input"]

_FINE = 2  # drawn larger and made smaller: lines have no steps


def drawing(kind: str, height: int = 960, width: int = 1280) -> Tensor:
    """(1, 3, height, width) in [0, 1]: "landscape" or "page" (of panels with screen tones)."""
    canvas = Image.new("RGB", (width * _FINE, height * _FINE), (250, 247, 240))
    draw = ImageDraw.Draw(canvas)
    random = np.random.default_rng(5)
    {"landscape": _landscape, "page": _page}[kind](draw, height * _FINE, width * _FINE, random)
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    return torch.from_numpy(small.copy()).permute(2, 0, 1).unsqueeze(0)


def enlarged_input(image: Tensor, factor: int) -> Tensor:
    """``image`` made smaller by Pillow's bicubic kernel, in 8 bits: what an enlarging network gets."""
    pixels = Image.fromarray((image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    small = pixels.resize((pixels.width // factor, pixels.height // factor), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).copy() / 255).permute(2, 0, 1).unsqueeze(0)


def _landscape(draw: ImageDraw.ImageDraw, height: int, width: int, random: np.random.Generator) -> None:
    for row in range(height * 6 // 10):
        tone = row / (height * 0.6)
        draw.line([(0, row), (width, row)], fill=(int(90 + 120 * tone), int(150 + 70 * tone), 235))
    draw.ellipse([width * 0.7, height * 0.08, width * 0.8, height * 0.08 + width * 0.1], fill=(255, 232, 140))
    for k, colour in enumerate([(120, 170, 130), (80, 140, 95), (50, 105, 70)]):
        base = height * (0.5 + 0.13 * k)
        phase, waves = random.uniform(0, 6), random.uniform(2, 5)
        edge = [
            (x, base + height * 0.06 * math.sin(phase + waves * math.pi * x / width))
            for x in range(0, width + 8, 8)
        ]
        draw.polygon([*edge, (width, height), (0, height)], fill=colour)
        draw.line(edge, fill=(20, 30, 25), width=5)
    for _ in range(900):  # grass, at one side only
        x, y = width * random.beta(1, 3), height * random.uniform(0.78, 1.0)
        draw.line([(x, y), (x + random.uniform(-14, 14), y - random.uniform(15, 60))], fill=(20, 60, 35), width=3)
    for _ in range(14):
        x, y, size = width * random.uniform(0.05, 0.5), height * random.uniform(0.55, 0.75), random.uniform(40, 110)
        draw.rectangle(
            [x - size / 12, y, x + size / 12, y + size], fill=(95, 60, 40), outline=(20, 15, 10), width=4
        )
        draw.ellipse([x - size / 2, y - size, x + size / 2, y], fill=(45, 120, 60), outline=(15, 35, 20), width=5)


def _page(draw: ImageDraw.ImageDraw, height: int, width: int, random: np.random.Generator) -> None:
    for top, left, bottom, right in ((0.04, 0.04, 0.46, 0.5), (0.04, 0.54, 0.46, 0.96), (0.52, 0.04, 0.96, 0.96)):
        box = [left * width, top * height, right * width, bottom * height]
        draw.rectangle(box, fill=(255, 255, 255), outline=(0, 0, 0), width=8)
    for y in range(int(0.06 * height), int(0.44 * height), 14):  # a screen tone
        for x in range(int(0.06 * width), int(0.3 * width), 14):
            radius = 1 + 5 * (x / (0.3 * width))
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(30, 30, 30))
    for k in range(160):  # lines of speed
        angle = k / 160 * 2 * math.pi
        centre, near = (0.75 * width, 0.25 * height), random.uniform(0.06, 0.12) * width
        ends = [
            (centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle) * 0.8) for r in (near, 0.2 * width)
        ]
        draw.line(ends, fill=(0, 0, 0), width=int(random.integers(2, 7)))
    for k in range(60):  # hatching
        x = width * (0.55 + 0.4 * k / 60)
        draw.line([(x, height * 0.6), (x - 120, height * 0.93)], fill=(60, 60, 90), width=4)
    for _ in range(7):
        x, y, size = width * random.uniform(0.1, 0.45), height * random.uniform(0.62, 0.85), random.uniform(50, 150)
        colour = tuple(int(c) for c in random.integers(90, 250, 3))
        draw.ellipse([x - size, y - size / 2, x + size, y + size / 2], fill=colour, outline=(0, 0, 0), width=7)
