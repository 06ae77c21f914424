"""Small networks that are trained here in a few minutes each, for benchmarks of prediction and of tuning.

Weights lie in ``calibration-networks`` and are made again, the same on the same machine, where they are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tlsc.adapters import DemoNetwork
from tlsc.adapters.unet import UNet
from tlsc.eval.data.degradations import (
    DEGRADATIONS,
    Degradation,
    Level,
    degrade_photograph,
    haze,
    motion_blur,
    smooth_field,
)
from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, Image, load_photograph
from tlsc.eval.train.demo import train

__all__ = [
    "FOLDER",
    "HELD_OUT",
    "MORE_DEGRADATIONS",
    "SITE_BY_SITE",
    "WHOLE",
    "Recipe",
    "degradation_of",
    "halves",
    "make",
    "small_images",
]

FOLDER = Path("calibration-networks")


def _grain(image: Image, level: Level, rng: np.random.Generator) -> Image:
    deviation = (2 + 48 * level) / 255
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image + deviation * noise, 0, 1), dtype=np.float32)


def _gloom(image: Image, level: Level, rng: np.random.Generator) -> Image:
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image * (1 - 0.8 * level) + np.float32(4 / 255) * noise, 0, 1), dtype=np.float32)


def _veil(image: Image, level: Level, rng: np.random.Generator) -> Image:
    transmission = 1 - 0.3 * level
    return motion_blur(np.asarray(image * transmission + 0.85 * (1 - transmission), np.float32), 0.0, rng)


def _uneven_haze(image: Image, level: Level, rng: np.random.Generator) -> Image:
    """As whole photographs have it, whatever the size: ``level`` is not used."""
    return haze(image, smooth_field(image.shape[0], image.shape[1], rng, max(image.shape[:2]) / 3), rng)


MORE_DEGRADATIONS = {
    "uneven-haze": Degradation("haze whose density varies from 0 to 1 within each image", _uneven_haze),
    "grain": Degradation("white noise, 2/255 to 50/255", _grain),
    "veil": Degradation(
        "thin haze of uneven density (transmission 1 to 0.7) and the demo's motion blur",
        _veil,
        DEGRADATIONS["motion-blur"].margin,
    ),
    "gloom": Degradation("light taken away, down to a fifth, and noise 4/255", _gloom),
}


def degradation_of(name: str) -> Degradation:
    """One of the demo's, or of ``MORE_DEGRADATIONS``."""
    return {**DEGRADATIONS, **MORE_DEGRADATIONS}[name]


class _MeanAndSpread(nn.Module):
    """Channel attention by mean + standard deviation, as in IMDN (Hui et al., ACM MM 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        spread = (x - mean).square().mean((2, 3), keepdim=True).sqrt()
        gated: Tensor = x * self.gate(mean + spread)
        return gated


class _Network(DemoNetwork):
    """Squeeze-excitation is mean + spread where the settings say so."""

    def build(self) -> UNet:
        settings = dict(self.settings)
        spread = settings.pop("spread", ())
        settings["squeeze_excitation"] = (*settings.get("squeeze_excitation", ()), *spread)
        model = UNet(**settings)
        for level in spread:
            model.encoder[level].attention = _MeanAndSpread(model.tlsc.settings["width"] * 2**level)
        return model


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to train, on crops of which size, against what, from which seed; ``told``: the crop that is claimed."""

    settings: Mapping[str, Any]
    crop: int
    degradation: str
    seed: int
    steps: int = 500
    told: int | None = None

    def file(self, name: str) -> Path:
        """Where its weights lie."""
        return FOLDER / f"{name}-{self.degradation}-{self.crop}-{self.steps}-{self.seed}.safetensors"

    def train(self, name: str) -> None:
        """Make its weights, if they are not there."""
        path = self.file(name)
        if path.exists():
            return
        FOLDER.mkdir(exist_ok=True)
        network = _Network(name, name, self.settings, self.crop)
        model = train(network, self.steps, self.seed, degradation_of(self.degradation))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
        print(path, flush=True)

    def load(self, name: str) -> nn.Module:
        """The trained network."""
        model = _Network(name, name, self.settings, self.crop).build()
        model.load_state_dict(load_file(self.file(name)))
        return model.eval()


_ALL = (0, 1, 2)
_DEEP = {"half_norm": (2,), "padding_mode": "replicate"}
# Networks, seeds, crops and degradations on which nothing in tlsc.predict was settled.
HELD_OUT = {
    "spread": Recipe({"spread": _ALL}, 80, "haze", 4),
    "se-gloom": Recipe({"squeeze_excitation": _ALL}, 96, "gloom", 5),
    "hin-grain": Recipe(_DEEP, 64, "grain", 6),
    "spread-gloom": Recipe({"spread": (1, 2)}, 128, "gloom", 7),
    "veil-a": Recipe({"half_norm": (0,), "squeeze_excitation": (1, 2)}, 64, "veil", 0, 600),
    "veil-b": Recipe({"half_norm": (0, 1), "squeeze_excitation": (2,)}, 48, "veil", 1, 600),
}
# As in veil-b, the first norm should become local, and what is deeper should stay. The likely reason: on crops of
# 48 a ring of padding is a large part of a deep map (12×12), and windows inside an image have none.
SITE_BY_SITE = {
    "veil-c": Recipe({"half_norm": (0, 2), "squeeze_excitation": (1,)}, 48, "veil", 4, 600),
    "veil-d": Recipe({"half_norm": (0, 1), "squeeze_excitation": (2,)}, 48, "veil", 2, 600),
    "veil-e": Recipe({"half_norm": (0, 1), "squeeze_excitation": (2,)}, 48, "veil", 3, 600),
    "veil-f": Recipe({"half_norm": (0,), "squeeze_excitation": (2,)}, 48, "veil", 5, 600),
}
# Trained on whole images of 160 pixels, haze as uneven as it gets, and asked as if on crops of 64.
WHOLE = {
    "whole-se": Recipe({"squeeze_excitation": _ALL}, 160, "uneven-haze", 0, 600, 64),
    "whole-hin": Recipe(_DEEP, 160, "uneven-haze", 1, 600, 64),
    "whole-hin-0": Recipe({"half_norm": (0,)}, 160, "uneven-haze", 2, 600, 64),
    "whole-spread": Recipe({"spread": _ALL}, 160, "uneven-haze", 3, 600, 64),
}


def make(recipes: Mapping[str, Recipe], only: Iterable[str] = ()) -> None:
    """Train those that are not there: all, or those named."""
    torch.set_num_threads(1)
    for name in list(only) or list(recipes):
        recipes[name].train(name)


def small_images(recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """Images as large as the crops of a recipe, two from each photograph that no network has seen, and clean."""
    found = []
    for number, name in enumerate(TEST_PHOTOGRAPHS * 2):
        photograph = load_photograph(name)
        high, wide = photograph.shape[:2]
        top, left = (high - recipe.crop) // 2, (wide - recipe.crop) * (1 + number) // 7
        clean = np.ascontiguousarray(photograph[top : top + recipe.crop, left : left + recipe.crop])
        given = degradation_of(recipe.degradation).apply(clean, 0.5, np.random.default_rng((9, number)))
        pair = [torch.from_numpy(x).permute(2, 0, 1) for x in (given, clean)]
        found.append((pair[0], pair[1]))
    return found


def halves(degradation: str, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Left and right halves of the photographs that no network has seen, degraded; and clean."""
    found = []
    for name in TEST_PHOTOGRAPHS:
        pair = degrade_photograph(name, degradation_of(degradation), seed)
        half = pair.clean.shape[1] // 2
        for part in (slice(0, half), slice(half, None)):
            given, clean = (
                torch.from_numpy(np.ascontiguousarray(x[:, part])).permute(2, 0, 1)
                for x in (pair.degraded, pair.clean)
            )
            found.append((given, clean))
    return found
