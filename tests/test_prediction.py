"""``tlsc.predict``: energies by hand, the size of the gain where it is known, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc._prediction.energies import _cells, _place, crops_of
from tlsc._prediction.predict import DOUBT, doubt, floor
from tlsc._prediction.result import Change, Prediction, decibels


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


class Ramp(Level):
    """Differs at every pixel of a crop: the mean times the distance from the left."""

    def forward(self, x: Tensor) -> Tensor:
        sloped: Tensor = x + self.pool(x) * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return sloped


def test_energies_are_those_of_a_loop() -> None:
    image = torch.rand(3, 40, 56, dtype=torch.float64)
    crops = crops_of(Ramp(), image, (16, 20), 12, 1, np.random.default_rng(0))
    whole = Ramp()(image[None])[0]
    outputs, total, number = [], 0.0, 0
    for (i, j), (top, left, bottom, right), energy in zip(
        crops.places, crops.cells, crops.energies(whole), strict=True
    ):
        full = torch.full_like(image, torch.nan)
        full[:, i : i + 16, j : j + 20] = Ramp()(image[None, :, i : i + 16, j : j + 20])[0]
        squares = (full - whole)[:, top:bottom, left:right].square()
        assert energy == pytest.approx(float(squares.mean()), rel=1e-9)
        total, number = total + float(squares.sum()), number + squares.numel()
        full[:, :top], full[:, bottom:], full[..., :left], full[..., right:] = [torch.nan] * 4
        outputs.append(full)
    assert crops.energy(whole) == pytest.approx(total / number, rel=1e-9)
    pairs = [(n, m) for n in range(len(outputs)) for m in range(n) if crops.places[n] != crops.places[m]]
    squares = torch.cat([(outputs[n] - outputs[m]).square().flatten() for n, m in pairs])
    assert crops.disagreement == pytest.approx(float(squares[~squares.isnan()].mean()), rel=1e-9)


@pytest.mark.parametrize(("crop", "step"), [((16, 20), 2), ((16, 16), 8), ((9, 33), 4), ((8, 40), 16)])
def test_borders_count_as_other_pixels_and_crops_hold_their_cells(crop: tuple[int, int], step: int) -> None:
    shape = (50, 70)
    counted = np.zeros(shape)
    for seed in range(200):
        cells = _cells(shape, crop, 6, step, np.random.default_rng(seed))
        assert cells
        for cell in cells:
            place = _place(cell, crop, shape, step)
            for axis in (0, 1):
                start, end = cell[axis], cell[axis + 2]
                assert 0 <= place[axis] <= start < end <= place[axis] + crop[axis] <= shape[axis]
            counted[cell[0] : cell[2], cell[1] : cell[3]] += 1
    ends = [(n - k) // min(step, k) * min(step, k) + k for n, k in zip(shape, crop, strict=True)]
    covered = counted[: ends[0], : ends[1]]
    edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
    assert edge.mean() == pytest.approx(covered.mean(), rel=0.25)


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


def test_where_windows_lose_the_sentence_names_corrected_statistics_until_they_were_tried() -> None:
    loses = Change((16, 16), False, 0.02, 0.01, 0.005, 0.015, (0.01,) * 6)
    unclear = replace(loses, low=-0.001)
    still = replace(loses, calibrated=True)
    hint = " Corrected statistics may not: try calibrate=True (--calibrate)."
    for changes, said in (((loses,), hint), ((unclear,), ""), ((loses, still), "")):
        sentence = Prediction((16, 16), 6, 90, None, 0.01, 0.001, changes).sentence
        assert sentence.endswith(")." + said)
        assert (hint in sentence) == bool(said)
        assert sentence.startswith("Leave the model as it is: converting ")


def test_where_nothing_moves_nothing_is_recommended() -> None:
    images, _ = _hazy(5, sloped=False)
    found = tlsc.predict(Level(), images, 24, crop=16, psnr=20)
    assert found.best is None or found.changes[0].change < 0
    assert abs(decibels(found.changes[0].change, 20)) < 0.05


def test_the_interval_is_wider_where_overlapping_crops_disagree() -> None:
    """By one amount times √(disagreement · mean square change of the output), and no less than rounding."""
    images, _ = _hazy(3)
    found = tlsc.predict(Level(), images, [16, 24], crop=16)
    with torch.no_grad():
        for one in found.changes:
            with tlsc.converted(Level(), one.base_size) as local:
                moved = np.mean([float((local(x[None]) - Level()(x[None])).square().mean()) for x in images])
            assert one.moved == pytest.approx(moved, rel=1e-4)
            assert doubt(one.moved, found.disagreement) == pytest.approx(
                DOUBT * (one.moved * found.disagreement) ** 0.5
            )
            least = doubt(one.moved, found.disagreement) + floor(None)
            assert min(one.high - one.change, one.change - one.low) > least - 1e-12
    alone = tlsc.predict(Level(), images, 24, crop=16, crops_per_image=1)
    assert alone.best is None
    assert "no two crops overlap" in alone.sentence


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
