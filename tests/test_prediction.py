"""``tlsc.predict``: energies by hand, the size of the gain where it is known, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc._prediction.energies import crops_of
from tlsc._prediction.result import decibels


class Level(nn.Module):
    """Takes an image's mean away: right on crops of even haze, wrong on images where haze varies."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        centred: Tensor = x - self.pool(x) + 0.5
        return centred


def _hazy(number: int, sloped: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and targets: white texture around 0.5; a level that rises from left to right added."""
    rng = torch.Generator().manual_seed(0)
    targets = [0.5 + 0.05 * torch.randn(3, 48, 96, generator=rng) for _ in range(number)]
    level = torch.linspace(-0.3, 0.3, 96) if sloped else torch.zeros(96)
    return [target + level for target in targets], targets


def test_energies_are_those_of_a_loop() -> None:
    image = torch.rand(3, 40, 56, dtype=torch.float64)  # differences of 0.01: in float32 a loop agrees to 1e-5 only
    crops = crops_of(Level(), image, (16, 20), 5, 1, np.random.default_rng(0))
    whole = Level()(image[None])[0]
    assert len(crops.places) == 5
    outputs = {}
    for place, energy in zip(crops.places, crops.energies(whole), strict=True):
        i, j = place
        out = Level()(image[None, :, i : i + 16, j : j + 20])[0]
        expected = (out[:, 4:12, 5:15] - whole[:, i + 4 : i + 12, j + 5 : j + 15]).double().square().mean()
        assert energy == pytest.approx(float(expected), rel=1e-9)
        full = torch.full_like(image, torch.nan)
        full[:, i + 4 : i + 12, j + 5 : j + 15] = out[:, 4:12, 5:15]
        outputs[place] = full.double()
    pairs = [(a, b) for a in outputs for b in outputs if a < b]
    squares = torch.cat([(outputs[a] - outputs[b]).square().flatten() for a, b in pairs])
    assert crops.disagreement == pytest.approx(float(squares[~squares.isnan()].mean()), rel=1e-9)


def test_the_gain_is_predicted_where_it_is_known() -> None:
    images, targets = _hazy(5)
    found = tlsc.predict(Level(), images, [16, 24], crop=16, psnr=20)
    for one in found.changes:
        with tlsc.converted(Level(), one.base_size) as local:
            true = np.mean(
                [
                    float((local(x[None])[0] - y).square().mean() - (Level()(x[None])[0] - y).square().mean())
                    for x, y in zip(images, targets, strict=True)
                ]
            )
        assert one.high < 0
        assert one.low <= true <= one.high
    assert found.best is not None
    assert found.sentence.startswith(f"Convert at {found.best.name}: about +")
    assert json.loads(json.dumps(found.as_dict()))["best"] == found.best.name
    assert found == tlsc.predict(Level(), images, [16, 24], crop=16, psnr=20)


def test_where_nothing_moves_nothing_is_recommended() -> None:
    images, _ = _hazy(5, sloped=False)
    found = tlsc.predict(Level(), images, 24, crop=16, psnr=20)
    assert found.best is None or found.changes[0].change < 0
    assert abs(decibels(found.changes[0].change, 20)) < 0.05


def test_the_model_is_as_before() -> None:
    model = Level().train()
    tlsc.convert(model, 32)
    before = tlsc.plan(model)
    tlsc.predict(model, _hazy(1)[0], 24, crop=16)
    assert tlsc.plan(model) == before
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"crop": 96}, "no image is larger than the crop"),
        ({"crop": 0}, "crop"),
        ({"crop": 16, "base_size": []}, "base_size is empty"),
        ({"crop": 16, "crops_per_image": 0}, "crops_per_image"),
        ({"crop": 16, "seed": -1}, "seed"),
        ({"crop": 16, "call": lambda x: x.mean()}, "no image of the input's size"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(tlsc.TLSCError, match=said):
        tlsc.predict(Level(), _hazy(1)[0], **arguments)
    with pytest.raises(tlsc.TLSCError, match="no site becomes local"):
        tlsc.predict(nn.Conv2d(3, 3, 1), _hazy(1)[0], crop=16)


def test_decibels() -> None:
    assert decibels(0, 30) == 0
    assert decibels(10**-3 - 10**-3.1, 31) == pytest.approx(-1)
    assert decibels(-1, 30) == pytest.approx(20)
