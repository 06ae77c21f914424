"""``tlsc tune`` and calibration on networks that are called in ways of their own, and on what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc.adapters import Descriptor
from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval import cli
from tlsc.eval.images import Picture
from tlsc.eval.networks import Network
from tlsc.eval.restore import calibrate_on
from tlsc.eval.run.cells import Cell, as_cell
from tlsc.eval.tune.corrections import Corrections
from tlsc.eval.tune.groups import Local, groups_of
from tlsc.eval.tune.tune import tune

WINDOW = [(24, 24)]


class Ring(nn.Module):
    """A norm whose statistics a crop's padding spoils."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3)
        nn.init.ones_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        return 0.5 + 0.1 * self.norm(self.conv(x))


class Levelled(Ring):
    tlsc = Descriptor("Levelled", inputs=lambda height, width: (torch.zeros(1, 3, height, width), 0.1))

    def forward(self, x: Tensor, sigma: float) -> Any:  # type: ignore[override]
        return super().forward(x) + 0.0 * sigma


class Several(Ring):
    """What it gives beside the image leaves crop behaviour where the norm is corrected, and is larger by far."""

    def forward(self, x: Tensor) -> Any:
        aside = torch.linspace(0, 1e3, x.shape[2] * x.shape[3]).reshape(x.shape[2:]).expand_as(x)
        corrected = getattr(self.norm, "correction", None) is not None
        return {"aside": aside * corrected, "image": super().forward(x)}


class Choosy(Ring):
    def forward(self, x: Tensor) -> Any:
        if any(n % 24 for n in x.shape[2:]):
            raise ValueError("multiples of 24\nonly")
        return super().forward(x)


class WithMaximum(Ring):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + 0.1 * x / x.amax((2, 3), keepdim=True)


def _network(kind: Callable[[], nn.Module], **how: Any) -> Network:
    torch.manual_seed(0)
    return Network(kind.__name__, kind().eval().requires_grad_(False), crop=24, **how)


def _photographs(number: int) -> list[Tensor]:
    found = []
    for n in range(number):
        shade = np.linspace(0.3, 0.7, 120) + 0.1 * np.sin(np.arange(80) / (5 + n))[:, None]
        texture = 0.02 * np.random.default_rng(n).standard_normal((3, 80, 120))
        found.append(torch.from_numpy((shade + texture).astype(np.float32)))
    return found


# --------------------------------------------------------------------------------- networks and how they are called

KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "a level beside the image": (Levelled, {"sigma": 5.0}),
    "several outputs": (Several, {"output": "image"}),
    "multiples of a size": (Choosy, {"pad_to": 24}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_calibrated_as_it_is_called(name: str) -> None:
    """By all commands, with what is found for one that is called with an image and returns one."""
    kind, how = KINDS[name]
    network, plain = _network(kind, **how), _network(Ring, pad_to=how.get("pad_to", 1))
    images = _photographs(2)

    def tuned(one: Network) -> tlsc.Plan:
        planned = cache(lambda size: tlsc.plan(one.model, size))
        corrections = Corrections(one, images, groups_of(planned((24, 24))), (24, 24), 0)
        return corrections.corrected((Local((24, 24), 1.0),), lambda choice: planned((24, 24)))

    def evaluated(one: Network) -> tlsc.Plan:
        cell = Cell(24, calibrated=True)
        with as_cell(one, cell, lambda: images) as model:
            return tlsc.plan(model)

    def restored(one: Network) -> tlsc.Plan:
        with tlsc.converted(one.model, 24, check=False):
            assert calibrate_on(one, Picture(images[0].permute(1, 2, 0).numpy()), 24) == []
            return tlsc.plan(one.model)

    for found in (tuned, evaluated, restored):
        own, expected = found(network)[0].fit, found(plain)[0].fit
        assert expected is not None
        assert expected.kept
        assert own == expected


def test_restoring_calibrates_on_crops_that_fit_into_every_window() -> None:
    network = _network(WithMaximum)
    large, small = (tlsc.plan(network.model, size) for size in (32, 24))
    own = replace(large[1], window=small[1].window, base_size=(24, 24))
    tlsc.convert(network.model, plan=replace(large, sites=(large[0], own)))
    calibrate_on(replace(network, crop=None), Picture(_photographs(1)[0].permute(1, 2, 0).numpy()))
    about = tlsc.plan(network.model).calibration
    assert about is not None
    assert about.crop == (24, 24)


def test_a_prediction_with_corrections_is_of_the_network_as_it_is_called() -> None:
    images = _photographs(2)
    found = [
        tlsc.predict(one.model, images, 24, crop=24, calibrate=True, call=one)
        for one in (_network(Ring), _network(Levelled, sigma=5.0))
    ]
    assert found[0] == found[1]
    assert found[0].changes[1].calibrated
    assert found[0].changes[1].energy < 0.5 * found[0].changes[0].energy


def test_both_halves_have_images_from_which_corrections_can_be_found() -> None:
    """Large ones and such as have no room for crops in turn: one half would have had none of the large."""
    images = [image if n % 2 == 0 else image[:, :25, :25] for n, image in enumerate(_photographs(8))]
    network = _network(Ring)
    halves = Corrections(network, images, groups_of(tlsc.plan(network.model, 24)), (24, 24), 0).halves
    assert halves == ((0, 1, 4, 5), (2, 3, 6, 7))
    found = dict(tune(network, images, windows=WINDOW).scores)
    assert found["all at 24×24 corrected"] > 0.5 * found["all at 24×24"]


def test_a_prediction_of_corrections_that_nothing_can_be_learnt_for_gives_no_warning() -> None:
    images = [torch.full((3, 48, 64), 0.4) for _ in range(2)]
    found = tlsc.predict(_network(Ring).model, images, 24, crop=24, calibrate=True)
    assert found.changes[0].energy == found.changes[1].energy


def test_a_converted_network_is_tuned_as_the_original() -> None:
    network, images = _network(Ring), _photographs(4)
    expected = tune(network, images, windows=WINDOW, calibrate=False)
    tlsc.convert(network.model, 32)
    assert tune(network, images, windows=WINDOW, calibrate=False) == expected
    assert tlsc.plan(network.model).base_size == (32, 32)


def test_corrected_is_what_holds_a_site_with_a_correction() -> None:
    """A maximum has none, however well the choice with corrections does."""
    found = tune(_network(WithMaximum), _photographs(6), windows=WINDOW)
    assert found.found.choice == (Local((24, 24), 1.0),) * 2
    assert [site.fit is not None and site.fit.kept for site in found.plan] == [False, True]
    assert str(found).splitlines()[-4:-2] == ["(the model): 24×24", "norm: 24×24 corrected"]
    assert found.sentence.startswith("(the model): 24×24; norm: 24×24 corrected: +")
    assert [one["correction"] for one in found.as_dict()["choice"].values()] == [0.0, 1.0]


# ---------------------------------------------------------------------------------------------- what cannot be used


def test_what_cannot_be_tuned_is_said_in_a_line() -> None:
    network, images = _network(Ring), _photographs(3)
    spoilt = [images[0], images[1].clone()]
    spoilt[1][0, 3, 4] = torch.nan
    for given, targets, said in (
        ([], None, "there is no image"),
        (images, images[:2], "each image has a target, got 3 and 2"),
        (spoilt, None, "image 2 of 2 holds values that are not finite"),
        (images[:2], spoilt, "target 2 of 2 holds values that are not finite"),
        (images, [image[:1] for image in images], "makes 3×80×120 of image 1, .* but its target is 1×80×120"),
    ):
        with pytest.raises(ArgumentValueError, match=said):
            tune(network, given, targets, WINDOW)
    said = re.escape("Choosy fails on 80×120 pixels (ValueError: multiples of 24); if it takes multiples")
    with pytest.raises(TLSCError, match=f"^{said}.*--pad-to$"):
        tune(_network(Choosy), images, windows=WINDOW)
    with pytest.raises(TLSCError, match=r"the model fails on an image of 80×120 pixels .*multiples of 24\)"):
        tlsc.predict(Choosy(), images, 24, crop=24)
    endless = replace(network, model=nn.Sequential(network.model, nn.Threshold(1e9, torch.nan)))
    with pytest.raises(TLSCError, match="no finite result in any form"):
        tune(endless, images, windows=WINDOW)


@pytest.mark.parametrize("command", ["tune", "advise", "eval"])
def test_a_negative_seed_is_refused_before_anything_is_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "nowhere", "nothing", "--degrade", "noise:5", "--seed", "-1"])
    assert "argument --seed: must not be negative, got -1" in capsys.readouterr().err
