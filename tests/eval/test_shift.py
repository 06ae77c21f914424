"""``tlsc shift``: statistics at sites, and how far they move."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tlsc
from tlsc.eval import cli
from tlsc.eval.data.datasets import find_pairs
from tlsc.eval.images.photographs import load_photograph
from tlsc.eval.judge.shift import CONDITIONS, Shift, distance, measure, shifts
from tlsc.eval.networks import Network
from tlsc.eval.show.shift import table

RNG = np.random.default_rng(0)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv((2 * x).mean((2, 3), keepdim=True)))


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(self.pool(3 * x).flatten(1)))[..., None, None]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
        _Functional(),
        _Linear(),
        nn.InstanceNorm2d(4),
        nn.AvgPool2d(2),
        nn.InstanceNorm2d(4),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 3, 1),
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, brighter to the right, on which a whole image is not what a crop is."""
    for number in range(2):
        image = RNG.uniform(0, 0.4, (40, 64, 3)) + np.linspace(0, 0.6, 64)[:, None]
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_what_is_seen_is_what_reaches_each_statistic(folder: Path) -> None:
    """Whole images: the map before each statistic computed layer by layer; converted: cut into windows by hand."""
    model = _net()
    data = find_pairs([folder], "noise:5").checked()
    plan, samples = measure(Network("net", model, crop=16), data, 16, 16, crops=3)
    assert [site.path for site in plan] == ["1", "2.pool", "3", "5"]
    assert sorted(samples) == [0, 1, 2, 3]
    assert all(own["crops"].mean.shape == (6, 4) for own in samples.values())
    assert all(own["whole, global"].mean.shape == (2, 4) for own in samples.values())
    assert all(own["whole, local"].std.shape == (32, 4) for own in samples.values())

    def maps(image: Tensor) -> list[Tensor]:
        first = model[0](image)
        second = model[1](first)
        third = model[2](second)
        fourth = model[4](model[3](third))
        return [2 * first, 3 * second, third, fourth]

    for number, pair in enumerate(data.pairs):
        image = torch.from_numpy(data.load(pair)[0]).permute(2, 0, 1).unsqueeze(0)
        with torch.no_grad():
            whole = maps(image)
            with tlsc.converted(model, 16):
                local = maps(image)
        for site in range(4):
            found = samples[site]
            x = whole[site][0].double()
            np.testing.assert_allclose(found["whole, global"].mean[number], x.mean((1, 2)), atol=1e-6)
            np.testing.assert_allclose(found["whole, global"].std[number], x.std((1, 2), correction=0), atol=1e-6)
            x, k = local[site][0].double(), 16 if site < 3 else 8
            height, width = x.shape[1:]
            corners = (0, 0), (height - k, width - k)
            for index, (top, left) in zip((0, 15), corners, strict=True):
                window = x[:, top : top + k, left : left + k]
                got = found["whole, local"]
                np.testing.assert_allclose(got.mean[16 * number + index], window.mean((1, 2)), atol=1e-5)
                np.testing.assert_allclose(
                    got.std[16 * number + index], window.std((1, 2), correction=0), atol=1e-5
                )
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert type(model[1]) is _Functional


def test_crops_are_as_large_as_training_crops(folder: Path) -> None:
    sizes = []
    model = _net()
    model[0].register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[2:])))
    measure(Network("net", model, crop=16), find_pairs([folder], "noise:5").checked(), 24, 16, crops=3)
    assert sizes == [*2 * [*3 * [(16, 16)], (40, 64)], (40, 64), (40, 64)]


def test_distance() -> None:
    """Of shifted samples: the shift in units of the spread; of equal ones 0; of a constant channel: finite."""
    crops = RNG.normal(5, 2, (400, 3))
    assert distance(crops, crops) == 0
    assert distance(crops, crops - 4) == pytest.approx(2, rel=0.1)
    assert distance(crops, RNG.permutation(crops)) == pytest.approx(0, abs=1e-9)
    assert distance(np.full((5, 1), 2.0), np.full((3, 1), 3.0)) == pytest.approx(0.5)
    assert distance(np.zeros((5, 1)), np.zeros((3, 1))) == 0


def test_local_statistics_are_closer(folder: Path) -> None:
    """Brightness varies across the image and not across a crop: standard deviations move, local ones do not."""
    data = find_pairs([folder], "noise:1").checked()
    plan, samples = measure(Network("net", _net(), crop=16), data, 16, 16, crops=20)
    found = shifts(plan, samples)
    assert [(one.site, one.statistic) for one in found][:2] == [("1", "mean"), ("1", "standard deviation")]
    for one in found:
        if one.statistic == "standard deviation" and one.site in ("1", "2.pool", "3"):
            assert one.local < 0.5 * one.whole


def test_similar_sites_are_one_row() -> None:
    """Of each statistic, with the mean of the distances; others, and all where each is asked for, stay."""
    sites = [f"encoder.{n}.CA.pool" for n in range(6)]
    found = [Shift(site, kind, n, 2 * n, 0.5) for n, site in enumerate(sites) for kind in ("mean", "spread")]
    found.append(Shift("head.pool", "mean", 1, 1, 1))
    _, rows = table(found, every=False)
    assert rows == [
        ["6 × encoder.*.CA.pool", "mean", "2.500", "5.000", "0.500"],
        ["6 × encoder.*.CA.pool", "spread", "2.500", "5.000", "0.500"],
        ["head.pool", "mean", "1.000", "1.000", "1.000"],
    ]
    assert len(table(found, every=True)[1]) == 13


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shift"
    argv = ["shift", "se", str(folder), "--degrade", "haze", "--crops", "2", "--crop", "32", "--out", str(out)]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "Wasserstein distance from the statistics on training crops" in said
    assert "base size 48x48" in said
    with (out / "shift.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    report: dict[str, Any] = json.loads((out / "shift.json").read_text(encoding="utf-8"))
    paths = [site["path"] for site in report["plan"]["sites"]]
    assert [row["site"] for row in rows] == [path for path in paths for _ in range(2)]
    for row, one in zip(rows, report["shifts"], strict=True):
        assert float(row["whole_global"]) == pytest.approx(one["whole"])
        assert f"{one['local']:.3f}" in said
    assert set(report["samples"][paths[0]]) == set(CONDITIONS)
    assert report["finding"] in said
    assert (out / "shift.png").read_bytes().startswith(b"\x89PNG")


def test_calibrating_brings_statistics_closer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a ring dominates, the corrected statistics are those of training crops."""
    out = tmp_path / "shift"
    (tmp_path / "photographs").mkdir()
    for name in ("chelsea", "coffee"):
        pixels = np.rint(load_photograph(name)[40:200, 60:260] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{name}.png")
    argv = [
        "shift",
        "hin-all",
        str(tmp_path / "photographs"),
        "--degrade",
        "noise:5",
        "--crops",
        "6",
        "--calibrate",
        "--crop",
        "32",
    ]
    assert cli.main([*argv, "--base-size", "32", "--out", str(out)]) == 0
    assert "whole, calibrated" in capsys.readouterr().out
    with (out / "shift.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    local, calibrated = (np.mean([float(row[f"whole_{name}"]) for row in rows]) for name in ("local", "calibrated"))
    assert calibrated < 0.7 * local
    report: dict[str, Any] = json.loads((out / "shift.json").read_text(encoding="utf-8"))
    assert any(site["fit"]["kept"] for site in report["plan"]["sites"])


def test_networks_without_sites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shift", "plain", str(folder), "--degrade", "haze", "--out", str(folder / "out")]) == 1
    assert "no site becomes local" in capsys.readouterr().err
    instance, data = nn.InstanceNorm2d(3, track_running_stats=True).eval(), find_pairs([folder], "noise:1")
    with pytest.raises(ValueError, match="no site becomes local"):
        measure(Network("x", instance), data.checked(), 16, 16)
