"""Images of any size in pieces that are the whole (``tlsc.adapters.Pieces``)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tlsc
from tlsc import adapters
from tlsc.adapters import Descriptor, Pieces
from tlsc.adapters.pieces import memory
from tlsc.adapters.pieces.grid import Grid, fitted, spans
from tlsc.adapters.pieces.parts import Image, Margins, _apart
from tlsc.adapters.pieces.planning import Budget, Planner
from tlsc.adapters.pieces.probing import Place, Probe, telling
from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError, TLSCWarning

from ..marks import slow


def _photograph(height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth and rough parts, bright and dark ones."""
    torch.manual_seed(3)
    coarse = torch.rand(1, channels, height // 24 + 2, width // 24 + 2)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (0.8 * smooth + 0.2 * torch.rand(1, channels, height, width) * smooth.mean(1, keepdim=True)).clamp(0, 1)


class _Twice(nn.Module):
    """A gate, and twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.tlsc = Descriptor("Twice", scale=2)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.enter(image))
        return nn.functional.pixel_shuffle(self.leave(features * self.gate(features)), 2)


def _made(name: str) -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "twice": _Twice,
        "hinet": lambda: adapters.HINet(wf=4, depth=3, padder_size=4),
        "mprnet": lambda: adapters.MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1),
        "hin-all": lambda: adapters.load_demo_network("hin-all"),
    }
    model: nn.Module = made[name]().eval()
    return tlsc.convert(model, 48)


def _whole(model: nn.Module, image: Tensor) -> Tensor:
    return adapters.run(model, image)


@pytest.mark.parametrize("name", ["twice", "hinet", slow("mprnet"), "hin-all"])
def test_pieces_are_the_whole_and_the_estimate_says_how_nearly(name: str) -> None:
    model, image = _made(name), _photograph(203, 246)
    pieces = Pieces(model, pieces=40)
    out = pieces.run(image)
    error = float((out - _whole(model, image)).abs().max())
    assert pieces.report is not None
    assert pieces.report.pieces > 8
    assert error <= 1 / 255
    assert error / 2 - 2e-6 <= pieces.report.error <= 2 * error + 2e-6
    assert f"{pieces.report.pieces} pieces" in str(pieces.report)


@pytest.mark.slow
def test_a_network_that_cuts_images_in_halves_cuts_pieces_where_it_cuts_the_whole() -> None:
    model, image = _made("mprnet"), _photograph(150, 130)
    out = adapters.run(model, image, pieces=48, margin=64)
    assert (out - _whole(model, image)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (30, 20), (48, 48), (49, 150), (16, 200)])
def test_images_smaller_than_a_piece_and_pieces_smaller_than_the_window(size: tuple[int, int]) -> None:
    model, image = _made("twice"), _photograph(*size)
    for side in (14, 500):
        out = adapters.run(model, image, pieces=side)
        assert (out - _whole(model, image)).abs().max() <= 1 / 255, side


def test_the_margin_grows_until_the_tolerance_is_reached() -> None:
    model, image = _made("hin-all"), _photograph(230, 180)
    whole, margins = _whole(model, image), []
    for tolerance in (1 / 10, 1e-3):
        pieces = Pieces(model, pieces=32, tolerance=tolerance)
        assert (pieces.run(image) - whole).abs().max() <= tolerance
        assert pieces.report is not None
        margins.append(pieces.report.margin)
    assert margins[0] < margins[1]


def test_a_margin_that_is_too_small_is_reported() -> None:
    model, image = _made("hin-all"), _photograph(200, 180)
    with pytest.warns(TLSCWarning, match="margins of 8×8 pixels differ from the whole image by up to"):
        adapters.run(model, image, pieces=32, margin=8)


def test_bands_are_the_result_from_top_to_bottom() -> None:
    model, image = _made("twice"), _photograph(100, 70)
    done: list[tuple[int, int]] = []
    pieces = Pieces(model, pieces=32, progress=lambda rows, of: done.append((rows, of)))
    bands = list(pieces.bands(lambda top, bottom, left, right: image[..., top:bottom, left:right], 100, 70))
    assert [top for top, _ in bands] == [0, 50, 100, 150]
    assert done == [(25, 100), (50, 100), (75, 100), (100, 100)]
    assert torch.equal(torch.cat([rows for _, rows in bands], 2), Pieces(model, pieces=32).run(image))


class _Small(nn.Module):
    """Has room for so many pixels."""

    def __init__(self, inner: nn.Module, pixels: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.pixels, self.error = inner, pixels, error

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] * image.shape[-2] > self.pixels:
            raise self.error
        out: Tensor = self.inner(image)
        return out


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory"), torch.OutOfMemoryError("x")]
)
def test_a_piece_that_does_not_fit_is_halved(error: Exception) -> None:
    inner, image = (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 1)),
        _photograph(400, 300),
    )
    model = tlsc.convert(_Small(inner.eval(), 200 * 200, error), 32)
    whole = inner(image).detach()
    with pytest.warns(TLSCWarning, match="did not fit in memory") as said:
        out = adapters.run(model, image, memory="2GiB")
    assert len(said) == 2  # 400 × 300, half of it, a quarter of it
    assert (out - whole).abs().max() <= 1 / 255


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    inner = tlsc.convert(_Small(nn.InstanceNorm2d(3), 10**6, RuntimeError("broken")), 32)
    inner.pixels = 1
    with pytest.raises(RuntimeError, match="broken"):
        adapters.run(inner, _photograph(90, 90), pieces=32)


def test_a_limit_to_memory_decides_the_size_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = _made("twice"), _photograph(600, 500)
    roomy, tight = Pieces(model, memory="8GiB"), Pieces(model, memory="8GiB")
    roomy.run(image)
    assert roomy.report is not None
    assert roomy.report.pieces == 1
    assert roomy.report.error == 0
    costs = memory.Model(fixed=10e6, each=2000.0)
    monkeypatch.setattr(Planner, "_budget", lambda planner: Budget(costs.pixels(60e6), costs))
    out = tight.run(image)
    assert tight.report is not None
    assert tight.report.predicted is not None
    assert tight.report.pieces > 4
    assert tight.report.predicted <= 60e6
    assert (out - _whole(model, image)).abs().max() <= 1 / 255


def test_a_limit_that_nothing_fits_names_the_least_that_would() -> None:
    with pytest.raises(ArgumentValueError, match=r"memory of 9\.\d KiB is too little for Twice .* needs .* MiB"):
        adapters.run(_made("twice"), _photograph(300, 300), memory=10_000)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives pieces room for so many pixels, whatever the memory asked for."""

    def give(pixels: int) -> None:
        costs = memory.Model(fixed=0.0, each=2000.0)
        monkeypatch.setattr(Planner, "_budget", lambda planner: Budget(pixels, costs))

    return give


def test_a_limit_whose_margins_are_too_small_is_refused_before_the_work(room: Callable[[int], None]) -> None:
    room(100 * 100)
    model, image, rows = _made("hin-all"), _photograph(300, 400), []
    pieces = Pieces(model, memory="20MB", tolerance=1e-5, progress=lambda done, _: rows.append(done))
    with pytest.raises(ArgumentValueError, match=r"UNet .* the largest that fit, .*/255 off.* need \d+\.\d MiB"):
        pieces.run(image)
    assert not rows
    adapters.run(model, image[..., :90, :90], memory="20MB", tolerance=1e-5)  # a single piece has no margins


def test_margins_that_are_most_of_the_work_are_told_of(room: Callable[[int], None]) -> None:
    room(81 * 81)
    model, image = _made("twice"), _photograph(300, 400)
    with pytest.warns(TLSCWarning, match=r"margins of 20×20 .* (\d+\.\d) times the image's pixels: with memory of"):
        out = adapters.run(model, image, memory="25MB")
    assert (out - _whole(model, image)).abs().max() <= 1 / 255
    room(300 * 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.run(model, image, memory="200MB")


def test_what_the_heap_keeps_of_trials_is_no_code() -> None:
    before = memory.used(torch.device("cpu"))
    small = [torch.ones(2**14) for _ in range(2**11)]  # 128 MiB that are no mappings of their own
    del small[::2]
    del small
    assert memory.kernels(torch.device("cpu"), before) == memory._HOLES


def test_networks_whose_pieces_are_not_the_whole_are_refused() -> None:
    image = _photograph(90, 90)
    with pytest.raises(TLSCError, match="not converted"):
        adapters.run(_Twice().eval(), image, pieces=32)
    part = tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3), nn.InstanceNorm2d(3)), 32, exclude="1")
    with pytest.raises(TLSCError, match=r"^1 \(InstanceNorm2d\) stays global: .*overlapping tiles"):
        adapters.run(part, image, pieces=32)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pieces": 0},
        {"pieces": 1.5},
        {"pieces": 32, "memory": "1GiB"},
        {"margin": 8},
        {"pieces": 32, "margin": -1},
        {"pieces": 32, "margin": "8"},
        {"pieces": 32, "tolerance": 0},
        {"pieces": 32, "tolerance": float("nan")},
        {"pieces": 32, "tolerance": "1"},
        {"memory": "many"},
        {"memory": "0"},
        {"memory": -5},
        {"memory": 1.5},
        {"memory": "5 i"},
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any]) -> None:
    with pytest.raises((ArgumentTypeError, ArgumentValueError)):
        adapters.run(_made("twice"), _photograph(64, 64), **arguments)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 400),
    number=st.integers(1, 50),
    margin=st.integers(0, 100),
    step=st.sampled_from([1, 4, 6, 16]),
    least=st.integers(1, 120),
)
def test_spans_tile_the_axis_and_have_their_margins(
    length: int, number: int, margin: int, step: int, least: int
) -> None:
    found = spans(length, number, margin, step, least)
    assert [i for span in found for i in range(span.start, span.stop)] == list(range(length))
    for span in found:
        assert 0 <= span.first <= span.start < span.stop <= span.last <= length
        assert span.first % step == 0
        assert span.last % step == 0 or span.last == length
        assert span.first == 0 or span.start - span.first >= margin
        assert span.last == length or span.last - span.stop >= margin
        assert span.extent >= min(least, length)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    pixels=st.integers(1, 900),
    margin=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    step=st.sampled_from([1, 4]),
)
def test_the_grid_with_the_least_work_is_found(
    size: tuple[int, int], pixels: int, margin: tuple[int, int], step: int
) -> None:
    every = [
        Grid(spans(size[0], down, margin[0], step), spans(size[1], across, margin[1], step))
        for down in range(1, size[0] + 1)
        for across in range(1, size[1] + 1)
    ]
    fitting = [grid for grid in every if grid.largest <= pixels]
    if fitting:
        assert fitted(size, pixels, margin, step).work == min(grid.work for grid in fitting)
    else:
        with pytest.raises(ArgumentValueError, match="too small"):
            fitted(size, pixels, margin, step)


@pytest.mark.parametrize("backwards", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_probe_tells_how_far_a_cut_reaches(backwards: tuple[bool, bool], scale: int) -> None:
    """A sum of 7×9 pixels reaches 3 rows and 4 columns; what is seen beyond each distance, by brute force."""
    picture, step = torch.rand(1, 1, 70, 90), 2

    def restored(part: Tensor, first: tuple[int, int]) -> Tensor:
        summed = nn.functional.conv2d(part, torch.ones(1, 1, 7, 9), padding=(3, 4))
        return summed.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    image = Image(restored, lambda *box: picture[..., box[0] : box[1], box[2] : box[3]], (70, 90), scale)
    place = Place((20, backwards[0]), (30, backwards[1]))
    probe = Probe.of(image, place, Margins((8, 8), step, (16, 16)), math.inf)
    turned = picture.flip([axis - 2 for axis in (0, 1) if backwards[axis]])  # and the sum is the same
    part, more = turned[..., 20:36, 30:46], turned[..., :36, :46]
    off = (restored(part, (0, 0)) - restored(more, (0, 0))[..., 20 * scale :, 30 * scale :])[0, 0].abs()
    off = off[::scale, ::scale]
    for margin in ((0, 0), (2, 1), (2, 4), (3, 3), (3, 4), (8, 8)):
        assert probe.error(margin) == pytest.approx(float(off[margin[0] :, margin[1] :].max()), abs=1e-5)
    assert probe.error((3, 4)) < 1e-5 < probe.error((2, 4))


def test_probes_are_where_the_image_changes_and_fit_in_the_memory() -> None:
    picture, given = torch.zeros(1, 1, 200, 300), []
    picture[..., 120:, 200:] = torch.rand(1, 1, 80, 100)

    def cut(top: int, bottom: int, left: int, right: int) -> Tensor:
        given.append((bottom - top) * (right - left))
        return picture[..., top:bottom, left:right]

    image = Image(lambda part, first: part, cut, (200, 300), 1)
    places = telling(image, Margins((32, 32), 8, (32, 32)), 60 * 60)
    assert places
    assert max(given) <= 60 * 60
    for place in places:
        (rows, columns) = place.corner((200, 300), Margins((32, 32), 8, (32, 32)), 60 * 60)
        assert rows.far[1] > 100
        assert columns.far[1] > 180
    assert telling(image, Margins((32, 32), 8, (200, 300)), 1e9) == [Place((0, False), (0, False))]


def test_memory_is_measured() -> None:
    cpu = torch.device("cpu")
    need, total = memory.measured(lambda: (torch.ones(25, 2**18) + 1).sum(), cpu)
    assert total == 2 * 25 * 2**18
    assert need == pytest.approx(memory._UNSEEN * 2 * 25 * 2**20, rel=0.01)
    with memory._Counting() as counted:
        (torch.ones(25, 2**18) + 1).sum()
    assert counted.peak == pytest.approx(2 * 25 * 2**20, rel=0.01)
    with memory._Counting() as counted:
        for _ in range(5):
            torch.ones(2**18)
    assert counted.peak <= 2 * 2**20 + 64
    image = torch.ones(2**20)
    with memory._Counting() as counted:  # a part of what is there already is none of it
        image[:1024] + 1
    assert counted.peak <= 1024 * 4 + 64


def test_a_number_beside_none_is_infinitely_far() -> None:
    numbers = torch.tensor([1.0, math.nan, math.inf])
    assert _apart(numbers, numbers) == 0
    assert _apart(numbers, torch.tensor([1.0, 0.0, math.inf])) == math.inf
    assert _apart(numbers, torch.tensor([3.0, math.nan, math.inf])) == 2


def test_sizes_of_memory() -> None:
    cpu = torch.device("cpu")
    assert [memory.as_bytes(text, cpu) for text in ("1KiB", "2 MB", "1.5g", "300")] == [
        1024,
        2_000_000,
        1_500_000_000,
        300,
    ]
    assert memory.as_bytes("free", cpu) > 2**20


def test_no_warning_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.run(_made("twice"), _photograph(120, 90), pieces=40)
