"""Sizes in a forward: at every position they are those of the position's window, in any order of operations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc

from ..oracles import assert_close, reference_at_every_position

WINDOW = (6, 8)


def _positions(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _total(x: Tensor) -> Tensor:
    return x.sum((2, 3), keepdim=True)


def _full(x: Tensor) -> Tensor:
    return torch.full((1, x.shape[1], 1, 1), 1 / _positions(x), dtype=x.dtype)


FORWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided last": lambda x: x * _total(x) / _positions(x),
    "divided first": lambda x: x * _total(x / _positions(x)),
    "by rows, then columns": lambda x: x * (_total(x) / x.shape[2]) / x.shape[3],
    "after a sum with the map": lambda x: (x + _total(x)) / _positions(x),
    "einsum": lambda x: torch.einsum("nchw,nc->nchw", x, x.sum((2, 3))) / _positions(x),
    "in place": lambda x: x.clone().mul_(_total(x)).div_(_positions(x)),
    "times a reciprocal": lambda x: x * _total(x) * (1 / _positions(x)),
    "ones counted": lambda x: x * _total(x) / torch.ones(1, 1, *x.shape[2:], dtype=x.dtype).sum(),
    "a tensor": lambda x: x * (_total(x) / torch.tensor(_positions(x))),
    "a new tensor": lambda x: x * (_total(x) / x.new_tensor(_positions(x))),
    "a tensor of channels": lambda x: x * (_total(x) * _full(x)),
    "a tensor of channels last": lambda x: (x * _total(x)) * _full(x),
    "nelement": lambda x: x * _total(x) / (x.nelement() // (x.shape[0] * x.shape[1])),
    "numel": lambda x: x * (_total(x) / (torch.numel(x) // (x.shape[0] * x.shape[1]))),
    "a root": lambda x: x / (x.norm(dim=(2, 3), keepdim=True) / _positions(x) ** 0.5),
    "a variance": lambda x: x * _total((x - _total(x) / _positions(x)) ** 2) / _positions(x),
    "ones of two sizes": lambda x: x * (_total(x) / torch.ones(x.shape[2], x.shape[3], dtype=x.dtype).sum()),
    "through a layer": lambda x: F.conv2d(x * _total(x), torch.ones(3, 3, 1, 1, dtype=x.dtype)) / _positions(x),
    "cat of channels": lambda x: F.instance_norm(torch.cat([x, x * x], 1))[:, 1:4],
}


class _Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _maps() -> Tensor:
    return torch.rand(2, 3, 12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5


def _converted(function: Callable[[Tensor], Tensor]) -> nn.Module:
    given = torch.rand(1, 3, *WINDOW, dtype=torch.float64)
    model = tlsc.convert(_Net(function).eval(), WINDOW, example_input=given)
    assert {site.action for site in tlsc.plan(model)} == {"exact"}
    return model


@pytest.mark.parametrize("name", FORWARDS)
def test_sizes_are_those_of_the_window(name: str) -> None:
    function, x = FORWARDS[name], _maps()
    model = _converted(function)
    small = x[..., : WINDOW[0], : WINDOW[1]]
    assert_close(model(small), function(small))
    assert_close(model(x), reference_at_every_position(lambda crop, i, j: function(crop)[:, :, i, j], x, WINDOW))


def test_an_encoding_of_positions_stays_that_of_the_map() -> None:
    def ramp(x: Tensor) -> Tensor:
        return torch.linspace(0, 1, x.shape[3], dtype=x.dtype)

    x = _maps()
    model = _converted(lambda x: x * x.mean((2, 3), keepdim=True) + ramp(x))
    assert_close(model(x), x * tlsc.functional.local_mean(x, WINDOW) + ramp(x))


@pytest.mark.parametrize("dim", [2, 3])
def test_maps_side_by_side_are_another_map(dim: int) -> None:
    model = _converted(lambda x: F.instance_norm(torch.cat([x, 2 * x], dim)))
    (site,) = tlsc.plan(model)
    window = tuple(n * (2 if d == dim else 1) for d, n in zip((2, 3), WINDOW, strict=True))
    assert site.window == window
    x = _maps()
    expected = tlsc.functional.local_instance_norm(torch.cat([x, 2 * x], dim), window)
    assert_close(model(x), expected)


def test_parts_of_a_map_are_other_maps() -> None:
    def halves(x: Tensor) -> Tensor:
        return torch.cat([F.instance_norm(half) for half in x.chunk(2, 2)], 2)

    x = _maps()
    model = _converted(halves)
    assert [site.window for site in tlsc.plan(model)] == [(3, 8), (3, 8)]
    parts = [tlsc.functional.local_instance_norm(half, (3, 8)) for half in x.chunk(2, 2)]
    assert_close(model(x), torch.cat(parts, 2))


def test_sizes_of_another_map() -> None:
    def of_half(x: Tensor) -> Tensor:
        half = F.avg_pool2d(x, 2)
        return half * _total(half) / (_positions(x) / 4)

    x = _maps()
    half = F.avg_pool2d(x, 2)
    assert_close(_converted(of_half)(x), half * tlsc.functional.local_mean(half, (3, 4)))


def test_a_statistic_with_a_constant_as_large_as_the_map_is_left_with_a_reason() -> None:
    (site,) = tlsc.plan(_Net(lambda x: x * (_total(x) + torch.ones(x.shape[2:]))), WINDOW)
    assert "as large as the map" in (site.reason or "")


class _Child(nn.Module):
    """Weighs a map by a sum over its positions, which it leaves undivided."""

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.total = total

    def forward(self, x: Tensor) -> Tensor:
        return x * self.total(x)


class _Around(nn.Module):
    """Divides by the number of positions what children made of sums over them, or only reads sizes."""

    def __init__(self, body: nn.Module, divides: bool) -> None:
        super().__init__()
        self.body = body
        self.divides = divides

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = self.body(x)
        return y / (height * width) if self.divides else y[..., :height, :width]


TOTALS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": _total,
    "einsum": lambda x: torch.einsum("nchw->nc", x)[..., None, None],
    "sum of tokens": lambda x: x.flatten(2).sum(-1)[..., None, None],
    "by halves": lambda x: x.sum(3, keepdim=True).sum(2, keepdim=True),
}


@pytest.mark.parametrize("divides", [True, False], ids=["divides", "reads"])
@pytest.mark.parametrize("deep", [False, True], ids=["child", "grandchild"])
@pytest.mark.parametrize("total", TOTALS)
def test_a_child_s_sum_that_a_parent_may_divide(total: str, deep: bool, divides: bool) -> None:
    child = _Child(TOTALS[total])
    model = _Around(nn.Sequential(child, nn.ReLU()) if deep else child, divides).double().eval()
    x = _maps()
    expected = reference_at_every_position(lambda crop, i, j: model(crop)[:, :, i, j], x, WINDOW)
    tlsc.convert(model, WINDOW)
    assert len(tlsc.plan(model).converted) == 1
    assert_close(model(x), expected)


# ------------------------------------------------------------------------------ a course that depends on the size


class _Course(nn.Module):
    """``mean`` is the global one in the network, a local one in the oracle."""

    def __init__(self, mean: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3), keepdim=True)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.down, self.mean = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, 2, 1), mean
        self.local = mean.__name__ != "<lambda>"

    def gated(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        return x * torch.sigmoid(self.mean(x) if self.local else x.mean((2, 3), keepdim=True))


class _Asserts(_Course):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2] % 2 == 0, "an odd height"
        if x.shape[-1] % 2:
            raise ValueError("an odd width")
        return self.gated(x)


class _Pads(_Course):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 8 != 0 or width % 8 != 0:
            x = F.pad(x, (0, (8 - width % 8) % 8, 0, (8 - height % 8) % 8), "reflect")
        return self.gated(x)[:, :, :height, :width]


class _PadsUntil(_Course):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        while x.shape[-1] % 4:
            x = F.pad(x, (0, 1))
        return self.gated(x)[..., :height, :width]


class _Fits(_Course):
    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.down(x), scale_factor=2)
        if y.shape != x.shape:
            y = F.interpolate(y, x.shape[-2:])
        return self.gated(y) + x


class _Halves(_Course):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 4:
            raise ValueError("too small")
        y = F.interpolate(x, (math.ceil(height / 2), max(width // 2, 1)))
        return F.interpolate(self.gated(y), (height, width))


class _Batch(_Course):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(2 * x if x.shape[0] > 1 else x)


@pytest.mark.parametrize("kind", [_Asserts, _Pads, _PadsUntil, _Fits, _Halves, _Batch])
@torch.no_grad()
def test_the_course_is_that_of_the_size_and_the_windows_those_of_base_size(kind: type[_Course]) -> None:
    window = 8 if kind is _Halves else 16

    def local(x: Tensor) -> Tensor:
        return tlsc.functional.local_mean(x, window)

    model, oracle = tlsc.convert(kind().eval(), 16, check=False), kind(local).eval()
    assert [site.window for site in tlsc.plan(model)] == [(window, window)]
    for batch, height, width in ((1, 32, 24), (1, 26, 22), (2, 26, 22), (1, 27, 22), (1, 26, 23), (1, 26, 22)):
        x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        try:
            expected = oracle(x)
        except (AssertionError, ValueError) as error:
            with pytest.raises(type(error), match=r"odd|small"):
                model(x)
        else:
            torch.testing.assert_close(model(x), expected)
    x = torch.rand(1, 3, 26, 22, generator=torch.Generator().manual_seed(1))
    copied = copy.deepcopy(model).double()
    torch.testing.assert_close(copied(x.double()), oracle.double()(x.double()))


@pytest.mark.slow
@torch.no_grad()
def test_a_size_is_compiled_after_it_was_run() -> None:
    model = tlsc.convert(_Pads().eval(), 16, check=False)
    x = torch.rand(1, 3, 26, 22, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(tlsc.TLSCError, match="or at a size"):
        compiled(x)
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected)
