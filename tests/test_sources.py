"""Sources of a statistic: each against a naive one in float64, and the invariants that each can hold.

The oracle is a network of two sites written as a function of its two statistics; where they come from is said in
loops over positions and tiles, with nothing of the package.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc import sources
from tlsc.errors import ArgumentTypeError, ArgumentValueError, ExportError, TLSCError

from .marks import slow_unless
from .oracles import assert_close

NAMES = ("map", "tile", "table", "centres", "thumbnail", "crops")
BASE = (12, 16)
CROP = (8, 12)
EPS = 0.01


class Two(nn.Module):
    """A norm, and behind it a gate from a mean that the forward takes itself, on a map of half the size."""

    def __init__(self, groups: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm: nn.Module = nn.InstanceNorm2d(4, eps=EPS, affine=True)
        if groups:
            self.norm = nn.GroupNorm(groups, 4, eps=EPS)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.norm(self.first(x)).relu())
        gate = torch.sigmoid(self.fc(x.mean((2, 3))))
        return self.last(x * gate[:, :, None, None])


Statistic = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(number of the site, map) → mean and variance of every position, (N, C, H, W) each."""


def by_hand(net: Two, x: Tensor, statistic: Statistic) -> Tensor:
    y = net.first(x)
    mean, var = statistic(0, y)
    norm: Any = net.norm
    y = (y - mean) / (var + EPS).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = net.down(y.relu())
    mean, _ = statistic(1, y)
    gate = torch.sigmoid(net.fc(mean.movedim(1, -1))).movedim(-1, 1)
    return net.last(y * gate)


def whole(groups: int, number: int, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the whole map; in group norm, the first site's, of a group."""
    parts = groups if groups and number == 0 else y.shape[1]
    z = y.reshape(y.shape[0], parts, -1)
    mean = z.sum(2, keepdim=True) / z.shape[2]
    var = (z - mean).square().sum(2, keepdim=True) / z.shape[2]
    times = y.shape[1] // parts
    return (
        mean.repeat_interleave(times, 1)[..., None].expand(y.shape),
        var.repeat_interleave(times, 1)[..., None].expand(y.shape),
    )


def starts(n: int, size: int, step: int) -> list[int]:
    if n <= size:
        return [0]
    count = math.ceil((n - size) / step) + 1
    return [math.floor(i * (n - size) / (count - 1) + 0.5) for i in range(count)]


def weights(source: str, at: float, centres: list[float]) -> list[float]:
    """What each tile counts at a position of one axis."""
    out = [0.0] * len(centres)
    if source in ("tile", "table"):
        out[min(range(len(centres)), key=lambda t: (abs(centres[t] - at), t))] = 1.0
        return out
    if at <= centres[0] or len(centres) == 1:
        out[0] = 1.0
    elif at >= centres[-1]:
        out[-1] = 1.0
    else:
        t = max(t for t in range(len(centres)) if centres[t] <= at)
        out[t + 1] = (at - centres[t]) / (centres[t + 1] - centres[t])
        out[t] = 1 - out[t + 1]
    return out


def read(source: str, tables: list[list[tuple[Tensor, Tensor]]], y: Tensor, places: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance at each position of ``y``; ``tables[i][j]`` those of a tile, (N, C) each.

    ``places``: for each axis the centres of the tiles, and the length of the axis in the same unit.
    """
    rows, columns = len(tables), len(tables[0])
    mean, var = torch.zeros_like(y), torch.zeros_like(y)
    for p in range(y.shape[2]):
        down = weights(source, (p + 0.5) * places[0][1] / y.shape[2], places[0][0])
        for q in range(y.shape[3]):
            across = weights(source, (q + 0.5) * places[1][1] / y.shape[3], places[1][0])
            for i in range(rows):
                for j in range(columns):
                    share = down[i] * across[j]
                    if share == 0:
                        continue
                    m, second = tables[i][j][0], tables[i][j][1]
                    if source == "table":
                        around = [
                            tables[min(max(i + a, 0), rows - 1)][min(max(j + b, 0), columns - 1)]
                            for a in (-1, 0, 1)
                            for b in (-1, 0, 1)
                        ]
                        m = sum(t[0] for t in around) / 9  # type: ignore[assignment]
                        second = (sum(t[1].sqrt() for t in around) / 9).square()  # type: ignore[union-attr]
                    if source == "centres":
                        second = (second + EPS).rsqrt()
                    mean[:, :, p, q] += share * m
                    var[:, :, p, q] += share * second
    return (mean, 1 / var.square() - EPS) if source == "centres" else (mean, var)


def one_pass(source: str, groups: int) -> Statistic:
    """Tiles of the map, as large to it as the crop to the image."""

    def statistic(number: int, y: Tensor) -> tuple[Tensor, Tensor]:
        size = [c // (1 + number) for c in CROP]
        at = [starts(n, s, s) for n, s in zip(y.shape[2:], size, strict=True)]

        def tile(i: int, j: int) -> tuple[Tensor, Tensor]:
            mean, var = whole(groups, number, y[:, :, i : i + size[0], j : j + size[1]])
            return mean[:, :, 0, 0], var[:, :, 0, 0]

        tables = [[tile(i, j) for j in at[1]] for i in at[0]]
        places = [([s + k / 2 for s in a], n) for a, k, n in zip(at, size, y.shape[2:], strict=True)]
        return read(source, tables, y, places)

    return statistic


def two_passes(net: Two, source: str, groups: int, x: Tensor) -> Statistic:
    """Tiles of the image, each run through the network alone."""
    steps = [c // 2 for c in CROP] if source == "crops" else list(CROP)
    at = [starts(n, s, step) for n, s, step in zip(x.shape[2:], CROP, steps, strict=True)]
    seen: list[list[dict[int, tuple[Tensor, Tensor]]]] = []
    for i in at[0]:
        seen.append([])
        for j in at[1]:
            noted: dict[int, tuple[Tensor, Tensor]] = {}

            def note(number: int, y: Tensor, noted: Any = noted) -> tuple[Tensor, Tensor]:
                mean, var = whole(groups, number, y)
                noted[number] = mean[:, :, 0, 0], var[:, :, 0, 0]
                return mean, var

            by_hand(net, x[:, :, i : i + CROP[0], j : j + CROP[1]], note)
            seen[-1].append(noted)
    places = [([s + k / 2 for s in a], n) for a, k, n in zip(at, CROP, x.shape[2:], strict=True)]

    def statistic(number: int, y: Tensor) -> tuple[Tensor, Tensor]:
        return read(source, [[noted[number] for noted in row] for row in seen], y, places)

    return statistic


def thumbnail(net: Two, groups: int, x: Tensor) -> Statistic:
    """The image made as small as the crop, in multiples of four as it is one."""
    small = nn.functional.interpolate(x, (8, 12), mode="bilinear", antialias=True)
    noted: list[tuple[Tensor, Tensor]] = []

    def note(number: int, y: Tensor) -> tuple[Tensor, Tensor]:
        noted.append(whole(groups, number, y))
        return noted[-1]

    by_hand(net, small, note)

    def statistic(number: int, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = noted[number]
        return mean[:, :, :1, :1].expand(y.shape), var[:, :, :1, :1].expand(y.shape)

    return statistic


@pytest.fixture
def net() -> Two:
    torch.manual_seed(0)
    return Two().double().eval()


@pytest.mark.parametrize(
    ("name", "groups"),
    slow_unless(lambda c: c[1] == 0 or c[0] in ("tile", "crops"), [(n, g) for n in NAMES for g in (0, 2)]),
)
def test_each_source_equals_its_naive_one(name: str, groups: int) -> None:
    torch.manual_seed(0)
    net = Two(groups).double().eval()
    nn.init.normal_(net.norm.weight)
    x = torch.rand(2, 3, 18, 30, dtype=torch.float64)
    if name == "map":
        statistic: Statistic = lambda number, y: whole(groups, number, y)  # noqa: E731
    elif name == "thumbnail":
        statistic = thumbnail(net, groups, x)
    elif name in ("tile", "table"):
        statistic = one_pass(name, groups)
    else:
        statistic = two_passes(net, name, groups, x)
    with torch.no_grad():
        expected = by_hand(net, x, statistic)
        actual = tlsc.convert(net, BASE, source=name, crop=CROP)(x)
    assert_close(actual, expected)


@pytest.mark.parametrize("source", [sources.Table(own_padding=True), sources.Centres(own_padding=False)], ids=str)
def test_tables_of_tiles_with_and_without_their_own_padding(net: Two, source: sources.Source) -> None:
    x = torch.rand(1, 3, 18, 30, dtype=torch.float64)
    statistic = two_passes(net, "table", 0, x) if source.own_padding else one_pass("centres", 0)
    with torch.no_grad():
        expected = by_hand(net, x, statistic)
        assert_close(tlsc.convert(net, BASE, source=source, crop=CROP)(x), expected)


@pytest.mark.parametrize("name", slow_unless(lambda name: name in ("table", "crops"), NAMES))
def test_invariants(name: str, net: Two) -> None:
    x = torch.rand(1, 3, 72, 96, dtype=torch.float64)
    small = x[..., : BASE[0], : BASE[1]]
    heard: list[int] = []
    net.register_forward_pre_hook(lambda module, args: heard.append(0))
    norm, keys, hooks = net.norm, list(net.state_dict()), dict(net._forward_pre_hooks)
    with torch.no_grad():
        original, as_it_was = net(x), net(small)
        assert tlsc.convert(net, BASE, source=name) is net
        assert_close(net(small), as_it_was)  # I1
        assert list(net.state_dict()) == keys  # I3
        local = net(x)
        changed = x.clone()
        changed[..., -1, -1] += 1
        moved = bool((net(changed) - local)[..., 0, 0].abs().max() > 1e-9)
        assert moved == (name in ("map", "thumbnail"))  # I4
        assert torch.equal(copy.deepcopy(net)(x), local)
        assert [site.action for site in tlsc.plan(net)] == [name, name]  # I6
        assert f"source {name}: 2 of 2 sites" in str(tlsc.plan(net))
        assert tlsc.plan(net, BASE, source=name) == tlsc.plan(net)
        with tlsc.converted(net, BASE):
            assert tlsc.plan(net).source == "window"
            window = net(x)
        assert (window - local).abs().max() > 1e-6
        assert torch.equal(net(x), local)
        tlsc.revert(net)
        assert net.norm is norm  # I5
        assert dict(net._forward_pre_hooks) == hooks  # I7
        assert not net._forward_hooks
        assert torch.equal(net(x), original)


@pytest.mark.parametrize("name", ["tile", "crops"])
def test_half_precision_large_means_and_nan(name: str) -> None:
    norm = nn.Sequential(nn.InstanceNorm2d(2, eps=0.0))
    x = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    exact = tlsc.convert(norm, 16, source=name)(x)
    off = norm((x + 1000).float())
    assert (off.double() - exact).abs().max() < 1e-3
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    x[..., -1, -1] = math.nan
    spoiled = norm(x)
    assert torch.equal(spoiled[..., :8, :8], exact[..., :8, :8])
    assert spoiled[..., -1, -1].isnan().all()


def test_statistics_are_kept_for_the_next_image_of_the_same_shape(net: Two) -> None:
    first, second = torch.rand(2, 1, 3, 24, 32, dtype=torch.float64)
    calls: list[Any] = []
    net.down.register_forward_hook(lambda *args: calls.append(args))
    tlsc.convert(net, BASE, source=sources.Crops(keep=True))
    with torch.no_grad():
        net(first)
        before = len(calls)
        kept = net(second)
        assert (before, len(calls)) == (10, 11)  # 3 · 3 crops
        tlsc.convert(net, BASE, source="crops")
        assert (net(second) - kept).abs().max() > 1e-6


def test_a_model_of_two_images_and_a_number() -> None:
    class Guided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor, guide: Tensor, strength: Tensor) -> Tensor:
            up = nn.functional.interpolate(guide, scale_factor=2)
            return self.norm(x + up) * strength.reshape(-1, 1, 1, 1)

    args = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 16, 24), torch.ones(1)
    model = tlsc.convert(
        Guided(),
        16,
        source="crops",
        example_input=lambda h, w: (args[0][..., :h, :w], args[1][..., : h // 2, : w // 2], args[2]),
    )
    one = nn.Sequential(nn.InstanceNorm2d(3))
    x = args[0] + nn.functional.interpolate(args[1], scale_factor=2)
    assert_close(model(*args), tlsc.convert(one, 16, source="crops")(x).double())


def test_what_is_refused(net: Two) -> None:
    before = net.norm
    top = nn.Sequential(nn.InstanceNorm2d(2), _Peak())
    with pytest.raises(ArgumentValueError, match=r"^1: amax takes no mean .*exclude='1'"):
        tlsc.convert(top, 8, source="table")
    assert type(top[0]) is nn.InstanceNorm2d
    assert tlsc.plan(tlsc.convert(top, 8, source="table", exclude="1"))[0].action == "table"
    with pytest.raises(ArgumentValueError, match="one of window, map, tile, table, centres, thumbnail, crops"):
        tlsc.convert(net, 8, source="tiles")
    with pytest.raises(ArgumentTypeError, match="must be a name"):
        tlsc.convert(net, 8, source=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="stride is for windows"):
        tlsc.convert(net, 8, source="tile", stride=2)
    with pytest.raises(ArgumentValueError, match="calibrate is for windows"):
        tlsc.convert(net, 8, source="tile", calibrate=torch.rand(1, 3, 64, 64))
    with pytest.raises(ArgumentValueError, match="crop must not be larger than base_size, got 9×9 and 8×8"):
        tlsc.convert(net, 8, source="tile", crop=9)
    with pytest.raises(ArgumentValueError, match="no first pass whose statistics could be kept"):
        tlsc.convert(net, 8, source=sources.Tile(keep=True))
    with pytest.raises(ArgumentValueError, match="kernel must be odd"):
        sources.Table(kernel=2)
    assert net.norm is before
    assert not net._forward_pre_hooks


def test_a_part_of_the_model_has_no_first_pass(net: Two) -> None:
    tlsc.convert(net, BASE, source="crops")
    with pytest.raises(TLSCError, match=r"^norm: its statistics come from a first pass"):
        net.norm(torch.rand(1, 4, 40, 40, dtype=torch.float64))
    with pytest.raises(TLSCError, match="5 channels"):
        net(torch.rand(1, 5, 40, 40, dtype=torch.float64))
    net(torch.rand(1, 3, 40, 40, dtype=torch.float64))  # what failed left nothing behind


@pytest.mark.parametrize("name", ["tile", "crops"])
def test_graphs_are_refused(name: str, net: Two, tmp_path: Path) -> None:
    tlsc.convert(net, BASE, source=name)
    with pytest.warns(FutureWarning), pytest.raises(ExportError, match="for PyTorch alone"):
        torch.jit.trace(net, torch.rand(1, 3, 40, 40, dtype=torch.float64))
    with pytest.raises(ExportError, match="for PyTorch alone"):
        tlsc.export(net, tmp_path / "net.onnx")
    with pytest.raises(TLSCError, match="calibration is of windows"):
        tlsc.calibrate(net, torch.rand(1, 3, 40, 40, dtype=torch.float64))


def test_a_plan_is_saved_with_its_source_and_older_ones_are_read(net: Two, tmp_path: Path) -> None:
    plan = tlsc.plan(net, BASE, source=sources.Crops(step=4))
    assert plan.source == "crops (step=4)"
    plan.save(tmp_path / "plan.json")
    assert tlsc.Plan.load(tmp_path / "plan.json") == plan
    old = tlsc.plan(net, BASE).as_dict()
    del old["source"]
    (tmp_path / "old.json").write_text(json.dumps({"format": "tlsc plan 1", **old}))
    assert tlsc.Plan.load(tmp_path / "old.json") == tlsc.plan(net, BASE)


def test_a_converted_model_can_be_pickled(net: Two) -> None:
    x = torch.rand(1, 3, 24, 40, dtype=torch.float64)
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)).double(), BASE, source="crops")
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


class _Peak(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.amax((2, 3), keepdim=True))
