"""Masks, grids and numbers that a forward keeps by the size of the map; what it looks up by a size."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc

from ..oracles import reference_local_mean

WINDOW = (5, 4)


def mask(height: int, width: int) -> Tensor:
    """As of a shifted window: regions, written part by part."""
    made = torch.zeros((height, width), dtype=torch.float64)
    count = 0
    for rows in (slice(0, -2), slice(-2, -1), slice(-1, None)):
        for columns in (slice(0, -2), slice(-2, None)):
            made[rows, columns] = count
            count += 1
    return made / 4


remembered = functools.lru_cache(maxsize=4)(mask)


class _Net(nn.Module):
    cache: Any

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def mask(self, height: int, width: int) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(*x.shape[2:]) + x.mean((2, 3), keepdim=True)


class _Each(_Net):
    def mask(self, height: int, width: int) -> Tensor:
        return mask(height, width)


class _Remembered(_Net):
    def mask(self, height: int, width: int) -> Tensor:
        return remembered(height, width)


class _ByAttribute(_Net):
    size: tuple[int, int]
    kept: Tensor

    def mask(self, height: int, width: int) -> Tensor:
        if not hasattr(self, "size") or self.size != (height, width):
            self.size, self.kept = (height, width), mask(height, width)
        return self.kept


class _ByDictionary(_Net):
    def mask(self, height: int, width: int) -> Tensor:
        if (height, width) not in self.cache:
            self.cache[height, width] = mask(height, width)
        return self.cache[height, width]  # type: ignore[no-any-return]


class _Parts(_Net):
    """Several things kept under a key."""

    def mask(self, height: int, width: int) -> Tensor:
        found = self.cache.get((height, width))
        if found is None:
            found = self.cache[height, width] = mask(height, width), torch.ones(height, width)
        return found[0] * found[1]  # type: ignore[no-any-return]


class _Raises(_Net):
    def mask(self, height: int, width: int) -> Tensor:
        try:
            return self.cache[height + 1000 * width]  # type: ignore[no-any-return]
        except KeyError:
            return self.cache.setdefault(height + 1000 * width, mask(height, width))  # type: ignore[no-any-return]


class _Bounded(_Net):
    """Two of the largest are kept, the one used last the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = OrderedDict()

    def mask(self, height: int, width: int) -> Tensor:
        if (height, width) in self.cache:
            self.cache.move_to_end((height, width))
        else:
            if len(self.cache) > 1:
                self.cache.popitem(last=False)
            self.cache[height, width] = mask(height, width)
        return self.cache[height, width]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [_Each, _Remembered, _ByAttribute, _ByDictionary, _Parts, _Raises, _Bounded])
@torch.no_grad()
def test_what_is_kept_by_size_is_that_of_the_map(kind: type[_Net]) -> None:
    remembered.cache_clear()
    model = kind().eval()
    model(torch.rand(1, 2, 6, 7, dtype=torch.float64))  # something is kept before
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model keeps tensors without values", tlsc.TLSCWarning)
        tlsc.convert(model, WINDOW, check=False)
    remembered.cache_clear()
    for size in ((7, 9), WINDOW, (6, 7), (7, 9), (9, 7)):
        x = torch.rand(2, 2, *size, dtype=torch.float64)
        torch.testing.assert_close(
            model(x), x * mask(*size) + reference_local_mean(x, WINDOW), rtol=1e-9, atol=1e-9
        )
    kept = [one for one in model.cache.values() if isinstance(one, Tensor)]
    assert all(torch.equal(one, mask(*one.shape)) for one in kept)
    assert kind is not _Bounded or len(kept) == 2


def test_what_is_kept_already_is_used() -> None:
    model = _ByDictionary().eval()
    model.cache[7, 9] = torch.full((7, 9), 3.0, dtype=torch.float64)
    tlsc.convert(model, WINDOW, check=False)
    x = torch.rand(1, 2, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), x * 3 + reference_local_mean(x, WINDOW), rtol=1e-9, atol=1e-9)


TABLE = {7: 2.0}


@pytest.mark.parametrize(
    ("says", "what"),
    [
        ("lambda self, x: TABLE.get(x.shape[2], 1.0)", "size of the map"),
        ("lambda self, x: self.cache.get(x.shape[2], 1.0)", "size of the map"),
        ("lambda self, x: 2.0 if x.shape[2] in {7, 9} else 1.0", "size of the map"),
        ("lambda self, x: 2.0 if str(x.shape[2]) == '7' else 1.0", "size of the map"),
        ("lambda self, x: 2.0 if f'{x.shape[2]}' == '7' else 1.0", "size of the map"),
        ("lambda self, x: sum(0.1 for _ in range(x.shape[2] // 4))", "size of the map"),
        ("lambda self, x: self.cache.setdefault(x.shape[2:], x.mean((0, 1)))", "not made of sizes alone"),
    ],
)
def test_what_depends_on_a_size_otherwise_is_left_and_the_line_named(says: str, what: str) -> None:
    class Net(_Net):
        factor = eval(says)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor(x) * x.mean((2, 3), keepdim=True)  # type: ignore[no-any-return]

    model = Net()
    model.cache[7] = 2.0
    (site,) = tlsc.plan(model, WINDOW).left
    assert what in site.reason
    assert "(line 1 of <string>)" in site.reason
    assert "tlsc.register(Net, factory)" in site.reason


class _Says(_Net):
    """Sizes in the message of an error."""

    def mask(self, height: int, width: int) -> Tensor:
        if height < 3:
            raise ValueError(f"{height}x{width} is too small")
        return torch.full((), 0.5 if type(height) is int else 2.0, dtype=torch.float64)


def test_a_size_in_the_message_of_an_error() -> None:
    model = tlsc.convert(_Says().eval(), WINDOW, check=False)
    x = torch.rand(1, 2, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), x / 2 + reference_local_mean(x, WINDOW), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="2x9 is too small"):
        model(x[:, :, :2])
