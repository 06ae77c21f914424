"""Local statistics against naive windows, through every kind of map, window and dtype, and where it hurts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import tlsc
from tlsc._statistics import reference as _reference
from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError
from tlsc.functional import local_group_norm, local_instance_norm, local_mean, local_var_mean

from .marks import slow
from .oracles import (
    assert_close,
    reference_large_var_mean,
    reference_local_group_norm,
    reference_local_instance_norm,
    reference_local_mean,
    reference_local_var_mean,
    reference_on_crops,
    reference_strided_mean,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Windows on a 7×9 map: inside, flat, even, covering one axis or the other, both.
WINDOWS = [(3, 3), (1, 4), (4, 1), (2, 6), (6, 8), (7, 4), (5, 30), (12, 12)]

# Every test here on every back end; Triton's interpreter has its own process (tests/test_kernels.py).
BACKENDS = os.environ.get("TLSC_TEST_BACKENDS", "torch numba").split()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

exhaustively = settings(max_examples=8 if INTERPRETED else 80, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True, scope="module", params=BACKENDS)
def back_end(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    with tlsc.backend(name):
        yield name


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On maps this small, threads do nothing but wait for each other: minutes of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------- naive windows


@dataclass
class Case:
    """A map in some layout, a window, and affine parameters for its channels."""

    x: Tensor
    window: int | tuple[int, int]
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def pair(self) -> tuple[int, int]:
        return self.window if isinstance(self.window, tuple) else (self.window, self.window)

    @property
    def is_torchs_own(self) -> bool:
        """Whether a norm is the global layer on half precision, which keeps its mean in that precision."""
        dtype, (height, width) = self.x.dtype, self.x.shape[2:]
        return (
            dtype in (torch.float16, torch.bfloat16)
            and self.pair[0] >= height
            and self.pair[1] >= width
            and height * width > 1
            and len(self.x) > 0
            and all(parameter is None or parameter.dtype == dtype for parameter in (self.weight, self.bias))
        )


@st.composite
def cases(
    draw: st.DrawFn, layouts: tuple[str, ...] = ("channels_last", "transposed", "sliced", "expanded")
) -> Case:
    batch, depth, groups = draw(st.integers(0, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    channels = depth * groups
    size = st.integers(1, 12)
    window = draw(st.one_of(size, st.tuples(size, size)))
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(("contiguous", *layouts)))
    scale, offset = draw(st.sampled_from([1.0, 0.05, 30.0])), draw(st.sampled_from([0.0, 1.0, -20.0]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def values(*shape: int) -> Tensor:
        return ((torch.randn(shape, generator=random, dtype=torch.float64) + offset) * scale).to(dtype)

    if layout == "channels_last":
        x = values(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = values(channels, batch, width, height).transpose(2, 3).transpose(0, 1)
    elif layout == "sliced":
        x = values(batch, channels, 2 * height, width + 3)[:, :, 1::2, 2:-1]
    elif layout == "expanded":
        x = values(1, channels, height, 1).expand(batch, channels, height, width)
    else:
        x = values(batch, channels, height, width)
    assert x.shape == (batch, channels, height, width)
    parameter = st.sampled_from([None, dtype, torch.float32])
    kinds = draw(parameter), draw(parameter)
    weight, bias = (
        None if kind is None else torch.randn(channels, generator=random, dtype=torch.float64).to(kind)
        for kind in kinds
    )
    return Case(x, window, groups, weight, bias, draw(st.sampled_from([1e-5, 1e-2, 1.0])))


@exhaustively
@given(cases())
def test_local_mean_is_that_of_the_window(case: Case) -> None:
    """``mean(crop)``"""
    assert_close(local_mean(case.x, case.window), reference_local_mean(case.x, case.pair), case.x.dtype)


@exhaustively
@given(cases())
def test_local_var_mean_is_that_of_the_window(case: Case) -> None:
    """``mean((crop - mean(crop))²)`` and ``mean(crop)``"""
    var, mean = local_var_mean(case.x, case.window)
    expected_var, expected_mean = reference_local_var_mean(case.x, case.pair)
    assert_close(var, expected_var, case.x.dtype)
    assert_close(mean, expected_mean, case.x.dtype)
    assert bool((var >= 0).all())


@exhaustively
@given(cases())
def test_local_instance_norm_is_that_of_the_window(case: Case) -> None:
    """``(x - mean)/sqrt(var + eps)·weight + bias``"""
    out = local_instance_norm(case.x, case.window, case.weight, case.bias, case.eps)
    if case.is_torchs_own:
        expected = F.instance_norm(case.x, weight=case.weight, bias=case.bias, eps=case.eps).double()
    else:
        expected = reference_local_instance_norm(case.x, case.pair, case.weight, case.bias, case.eps)
    assert_close(out, expected, case.x.dtype)


@exhaustively
@given(cases())
def test_local_group_norm_is_that_of_the_window(case: Case) -> None:
    """``(x - mean)/sqrt(var + eps)·weight + bias``, over the channels of a group"""
    out = local_group_norm(case.x, case.window, case.groups, case.weight, case.bias, case.eps)
    if case.is_torchs_own:
        expected = F.group_norm(case.x, case.groups, case.weight, case.bias, case.eps).double()
    else:
        expected = reference_local_group_norm(case.x, case.pair, case.groups, case.weight, case.bias, case.eps)
    assert_close(out, expected, case.x.dtype)


@exhaustively
@given(cases(), st.integers(1, 11))
def test_strided_mean_interpolates_between_evaluated_windows(case: Case, stride: int) -> None:
    """Windows at 0, r, 2r, …, n − k, each over its true size; linear in between, by where a window starts."""
    out = local_mean(case.x, case.window, stride)
    assert_close(out, reference_strided_mean(case.x, case.pair, stride), case.x.dtype)


@settings(exhaustively, max_examples=50)
@given(n=st.integers(1, 60), k=st.integers(1, 64), stride=st.integers(1, 24), tall=st.booleans())
def test_strided_mean_on_a_long_axis(n: int, k: int, stride: int, tall: bool) -> None:
    x = torch.randn(1, 1, n, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    window = (k, 1)
    if not tall:
        x, window = x.transpose(2, 3), (1, k)
    assert_close(local_mean(x, window, stride), reference_strided_mean(x, window, stride))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_position_has_the_global_layer_run_on_its_crop(window: tuple[int, int]) -> None:
    """What a converted site means (design §3), said with PyTorch's own layers."""
    x = _random(2, 4, 7, 9) * 2 + 3
    weight, bias = _random(4), _random(4)

    def instance_norm(crop: Tensor) -> Tensor:
        # PyTorch refuses a single position, whose normalised value is 0.
        if crop.shape[2] * crop.shape[3] == 1:
            return bias.reshape(1, 4, 1, 1).expand(crop.shape)
        return F.instance_norm(crop, weight=weight, bias=bias)

    pool = partial(F.adaptive_avg_pool2d, output_size=1)
    group_norm = partial(F.group_norm, num_groups=2, weight=weight, bias=bias, eps=1e-3)
    assert_close(local_mean(x, window), reference_on_crops(pool, x, window))
    assert_close(local_instance_norm(x, window, weight, bias), reference_on_crops(instance_norm, x, window))
    assert_close(local_group_norm(x, window, 2, weight, bias, 1e-3), reference_on_crops(group_norm, x, window))


@pytest.mark.parametrize("window", [(7, 9), (7, 20), (50, 9), (2**40, 2**40)], ids=str)
def test_a_window_over_the_whole_map_is_the_global_operation(window: tuple[int, int]) -> None:
    x, weight, bias = _random(2, 4, 7, 9).float(), _random(4).float(), _random(4).float()
    pooled = F.adaptive_avg_pool2d(x, 1).expand(x.shape)
    for stride in (1, 3):
        torch.testing.assert_close(local_mean(x, window, stride), pooled, rtol=1e-6, atol=1e-6)
    assert torch.equal(local_instance_norm(x, window, weight, bias), F.instance_norm(x, weight=weight, bias=bias))
    assert torch.equal(local_group_norm(x, window, 2, weight, bias), F.group_norm(x, 2, weight, bias))


@pytest.mark.parametrize(
    "make", [lambda s: s, lambda s: (s, s), lambda s: [s, s], np.int64], ids=["int", "tuple", "list", "numpy"]
)
def test_equal_ways_to_write_a_window(make: Callable[[int], Any]) -> None:
    x = _random(1, 1, 6, 7)
    assert torch.equal(local_mean(x, make(3)), local_mean(x, (3, 3)))


@pytest.mark.parametrize(("stride", "bar"), [(4, 6e-3), (8, 1.2e-2)])
@pytest.mark.parametrize("window", [96, 100])
@pytest.mark.parametrize("size", [(400, 600), (397, 593)], ids=str)
def test_strided_mean_of_a_photograph(size: tuple[int, int], window: int, stride: int, bar: float) -> None:
    photograph = skimage.data.coffee()[: size[0], : size[1]] / np.float32(255)
    x = torch.from_numpy(photograph).movedim(-1, 0)[None]
    assert x.shape == (1, 3, *size)
    error = (local_mean(x, window, stride) - local_mean(x, window)).abs()
    assert 0 < error.max() <= bar


# ----------------------------------------------------------------------------------------- derivatives


def _statistics(window: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    """The four functions with that window, of a map, a weight and a bias."""
    return {
        "mean": lambda x, weight, bias: local_mean(x, window),
        "strided mean": lambda x, weight, bias: local_mean(x, window, 2),
        "var_mean": lambda x, weight, bias: local_var_mean(x, window),
        "instance norm": lambda x, weight, bias: local_instance_norm(x, window, weight, bias, 1e-2),
        "group norm": lambda x, weight, bias: local_group_norm(x, window, 2, weight, bias, 1e-2),
    }


def _naive_statistics(window: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    return {
        "mean": lambda x, weight, bias: reference_local_mean(x, window),
        "strided mean": lambda x, weight, bias: reference_strided_mean(x, window, 2),
        "var_mean": lambda x, weight, bias: reference_local_var_mean(x, window),
        "instance norm": lambda x, weight, bias: reference_local_instance_norm(x, window, weight, bias, 1e-2),
        "group norm": lambda x, weight, bias: reference_local_group_norm(x, window, 2, weight, bias, 1e-2),
    }


NAMES = list(_statistics((1, 1)))


@pytest.mark.parametrize("window", [(2, 2), (3, 1), (2, 9), (9, 2), (9, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name: str, window: tuple[int, int]) -> None:
    function = _statistics(window)[name]
    inputs = [_random(1, 2, 4, 3) + 2, _random(2), _random(2)]
    if "norm" not in name:
        inputs[1:] = [torch.zeros(0), torch.zeros(0)]
    for tensor in inputs:
        tensor.requires_grad_(tensor.numel() > 0)
    assert gradcheck(function, inputs)
    # Along random directions: all of them take ten times as long.
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_naive_formula(
    name: str, window: tuple[int, int], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if traced:
        _trace(monkeypatch)
    both = []
    for functions in (_statistics(window), _naive_statistics(window)):
        inputs = [_random(2, 4, 7, 9) + 2, _random(4), _random(4)]
        for tensor in inputs:
            tensor.requires_grad_()
        out = functions[name](*inputs)
        out = torch.cat(out) if isinstance(out, tuple) else out
        upstream = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape)
        both.append(torch.autograd.grad((out * upstream).sum(), inputs, allow_unused=True))
    for actual, expected in zip(*both, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_keep_shape_and_dtype_even_without_images(name: str, dtype: torch.dtype) -> None:
    for batch in (0, 2):
        x = _random(batch, 4, 7, 9).to(dtype).requires_grad_()
        out = _statistics((3, 4))[name](x, torch.ones(4), torch.zeros(4))
        sum(part.float().sum() for part in (out if isinstance(out, tuple) else [out])).backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert x.grad.dtype == dtype
        assert bool(torch.isfinite(x.grad).all())


# -------------------------------------------------------------------------------------------- numerics


def test_instance_norm_far_from_zero_on_a_large_map() -> None:
    """Design §6's bar: mean 1000 standard deviations, 2160×3840, float32: error ≤ 1e-3 against float64."""
    noise = torch.randn(1, 1, 2160, 3840, generator=torch.Generator().manual_seed(0))
    x = noise * 0.1 + 100.0
    out = local_instance_norm(x, 384)
    plane = x[0, 0].numpy()
    var, mean = reference_large_var_mean(plane, (384, 384))
    assert abs(mean.mean() / np.sqrt(var.mean()) - 1000) < 1
    expected = (plane - mean) / np.sqrt(var + 1e-5)
    error = np.abs(out[0, 0].numpy() - expected)
    assert not np.isnan(error).any()
    assert error.max() <= 1e-3


def test_instance_norm_of_a_large_half_precision_map() -> None:
    """One rounding to float16 away from float64, at values whose squares and sums are far beyond float16."""
    random = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 4, 720, 1280, generator=random) * 500 + 5000).half()
    out = local_instance_norm(x, 384)
    assert out.dtype == torch.float16
    assert bool(torch.isfinite(out).all())
    for channel in range(4):
        plane = x[0, channel].numpy()
        var, mean = reference_large_var_mean(plane, (384, 384))
        expected = (plane.astype(np.float64) - mean) / np.sqrt(var + 1e-5)
        error = np.abs(out[0, channel].numpy() - expected)
        assert bool((error <= 2.0**-11 * np.abs(expected) * 1.01 + 1e-7).all())


@pytest.mark.parametrize("window", [(3, 4), (2, 20)], ids=str)
def test_moments_far_from_zero(window: tuple[int, int]) -> None:
    """The shift by each plane's mean: without it, float64 too loses half its digits at 1e7 standard deviations."""
    x = _random(2, 4, 12, 13) + torch.tensor([0.0, 1e7, -1e7, 3.0]).reshape(4, 1, 1)
    expected_var, expected_mean = reference_local_var_mean(x, window)
    var, mean = local_var_mean(x, window)
    torch.testing.assert_close(var, expected_var, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-14, atol=1e-14)
    expected = reference_local_instance_norm(x, window)
    torch.testing.assert_close(local_instance_norm(x, window), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_narrow_types_are_summed_in_float64(dtype: torch.dtype, offset: float) -> None:
    """Not one bit away from the float64 result, rounded."""
    x = (_random(2, 4, 20, 30) + offset).to(dtype)
    weight, bias = _random(4), _random(4)
    for window in ((5, 7), (20, 4)):
        assert torch.equal(local_mean(x, window), local_mean(x.double(), window).to(dtype))
        for actual, exact in zip(local_var_mean(x, window), local_var_mean(x.double(), window), strict=True):
            assert torch.equal(actual, exact.to(dtype))
        for norm in (local_instance_norm, partial(local_group_norm, num_groups=2)):
            actual = norm(x, window, weight=weight, bias=bias)
            assert torch.equal(actual, norm(x.double(), window, weight=weight, bias=bias).to(dtype))


@pytest.mark.parametrize("traced", [False, True])
def test_variance_is_never_negative(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat regions far from the plane's mean, where rounding alone decides the sign of ``E[x²] − E[x]²``."""
    if traced:
        _trace(monkeypatch)
    x = torch.zeros(1, 4, 24, 24, dtype=torch.float64)
    x[:, :, :, 12:] = torch.tensor([0.1, 1e3 / 3, -7e5 / 9, 1e-3 / 7]).double().reshape(4, 1, 1)
    x[:, :, 6:, :6] = 1 / 3
    for window in ((3, 3), (5, 4), (24, 3)):
        for dtype in (torch.float32, torch.float64):
            var, _ = local_var_mean(x.to(dtype), window)
            assert bool((var >= 0).all())
            # The smallest eps leaves rsqrt nothing to hide a negative variance behind.
            out = local_instance_norm(x.to(dtype), window, eps=1e-30)
            assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [(3, 4), (7, 4), (2, 9), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("constant", [0.1, -1000.3, 3e4])
def test_a_constant_map_gives_the_bias(dtype: torch.dtype, window: tuple[int, int], constant: float) -> None:
    x = torch.full((2, 4, 7, 9), constant).to(dtype)
    weight, bias = _random(4).to(dtype), torch.tensor([0.5, -2.0, 1e-3, 0.0]).to(dtype)
    expected = bias.reshape(4, 1, 1).expand(x.shape)
    # Where the window covers the map, PyTorch's own layer answers, and its rounding.
    covers = window == (7, 9)
    tolerance = {"rtol": 1e-2, "atol": 1e-2 * abs(constant)} if covers else {"rtol": 0.0, "atol": 0.0}
    if dtype == torch.float64:
        tolerance = {"rtol": 1e-12, "atol": 1e-8 if covers else 1e-12}
    for out in (local_instance_norm(x, window, weight, bias), local_group_norm(x, window, 2, weight, bias)):
        torch.testing.assert_close(out, expected, **tolerance)
    torch.testing.assert_close(local_mean(x, window), x, rtol=1e-6 if covers else 0.0, atol=0.0)


@pytest.mark.parametrize("window", [(16, 16), (31, 40), (64, 64)], ids=str)
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 60000.0), (torch.bfloat16, 1e30), (torch.float32, 1e30)]
)
def test_large_values_do_not_overflow(
    window: tuple[int, int], stride: int, dtype: torch.dtype, value: float
) -> None:
    x = (torch.rand(1, 2, 31, 50, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.95) * value
    x = x.to(dtype)
    assert_close(local_mean(x, window, stride) / value, reference_strided_mean(x, window, stride) / value, dtype)
    if window != (64, 64):  # there PyTorch's own layer answers, and overflows
        out = local_instance_norm(x, window)
        assert_close(out, reference_local_instance_norm(x, window))


# ------------------------------------------------------------------------------------- NaN and infinity

SPOILERS = [math.nan, math.inf, -math.inf]
# Corners, borders and inside of a 10×11 map.
PIXELS = [(0, 0), (0, 10), (9, 0), (9, 10), (0, 5), (6, 10), (4, 4), (5, 7)]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("value", SPOILERS)
@pytest.mark.parametrize("window", [(3, 3), (4, 5), (1, 2), (10, 4), (3, 20), (9, 10), (1, 1), (11, 12)], ids=str)
def test_one_pixel_spoils_the_windows_that_contain_it(
    window: tuple[int, int], value: float, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if traced:
        _trace(monkeypatch)
    clean = _random(2, 4, 10, 11)
    touched = torch.zeros(clean.shape, dtype=torch.bool)
    for image, channel, pixel in zip((0, 1) * 4, (0, 1, 2, 3) * 2, PIXELS, strict=True):
        x = clean.clone()
        x[image, channel, pixel[0], pixel[1]] = value
        touched[...] = False
        touched[image, channel] = _contains(window, pixel, (10, 11))
        # Group norm shares statistics between the channels of a group.
        group = touched.clone()
        group[image, channel ^ 1] = touched[image, channel]
        expected = {
            local_mean: touched,
            local_var_mean: touched,
            local_instance_norm: touched,
            partial(local_group_norm, num_groups=2): group,
        }
        for function, spoiled in expected.items():
            outs, before = function(x, window), function(clean, window)
            for out, good in zip(*((t if isinstance(t, tuple) else (t,)) for t in (outs, before)), strict=True):
                assert torch.equal(~torch.isfinite(out), spoiled), (function, pixel)
                assert_close(out[~spoiled], good[~spoiled])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("value", SPOILERS)
@pytest.mark.parametrize("stride", [2, slow(3), 7, slow(20)])
@pytest.mark.parametrize("window", [(3, 3), (4, 5), (1, 2), (10, 4), (3, 20), (9, 10), (1, 1)], ids=str)
def test_one_pixel_spoils_the_positions_that_read_a_window_with_it(
    window: tuple[int, int], stride: int, value: float, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if traced:
        _trace(monkeypatch)
    clean = _random(2, 2, 10, 11)
    good = local_mean(clean, window, stride)
    for pixel in PIXELS:
        x = clean.clone()
        x[1, 0, pixel[0], pixel[1]] = value
        out = local_mean(x, window, stride)
        spoiled = _spoiled_on_the_grid(window, stride, pixel, value)
        assert torch.equal(~torch.isfinite(out), spoiled), pixel
        assert_close(out[~spoiled], good[~spoiled])


@cache
def _spoiled_on_the_grid(
    window: tuple[int, int], stride: int, pixel: tuple[int, int], value: float
) -> torch.Tensor:
    """Which positions of (2, 2, 10, 11) read that pixel of the second image: the same for every back end."""
    x = torch.zeros(2, 2, 10, 11)
    x[1, 0, pixel[0], pixel[1]] = value
    return ~torch.isfinite(reference_strided_mean(x, window, stride))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_bad_pixels_in_every_dtype(dtype: torch.dtype) -> None:
    x = _random(2, 3, 12, 13).to(dtype)
    x[0, 1, 3, 4], x[0, 1, 9, 2], x[1, 2, 0, 0] = math.inf, -math.inf, math.nan
    spoiled = torch.zeros(x.shape, dtype=torch.bool)
    spoiled[0, 1] = _contains((5, 4), (3, 4), (12, 13)) | _contains((5, 4), (9, 2), (12, 13))
    spoiled[1, 2] = _contains((5, 4), (0, 0), (12, 13))
    for out in (local_mean(x, (5, 4)), *local_var_mean(x, (5, 4)), local_instance_norm(x, (5, 4))):
        assert torch.equal(~torch.isfinite(out), spoiled)
    # Infinities of one sign average to themselves, as in the global layer.
    assert local_mean(x, (5, 4))[0, 1, 3, 4] == math.inf
    assert local_mean(x, (5, 4))[0, 1, 9, 2] == -math.inf


def test_a_bad_pixel_far_from_zero_costs_no_precision() -> None:
    """Its plane is shifted by nothing then, and float64 must do alone."""
    x = _random(1, 1, 40, 40) + 1000
    x[0, 0, 0, 0] = math.nan
    expected = reference_local_instance_norm(x, (6, 6))
    out = local_instance_norm(x.float().double(), (6, 6))
    assert torch.equal(torch.isnan(out), torch.isnan(expected))
    assert (out - reference_local_instance_norm(x.float(), (6, 6))).nan_to_num().abs().max() <= 1e-6


# ------------------------------------------------------------------------------- graphs and plumbing


@exhaustively
@given(cases(), st.integers(1, 5))
def test_in_a_graph_the_same_comes_out(case: Case, stride: int) -> None:
    """Traced code cannot look at values: no shift, no second look at planes with a NaN, all in one piece."""

    def run() -> tuple[Tensor, ...]:
        return (
            local_mean(case.x, case.window, stride),
            *local_var_mean(case.x, case.window),
            local_instance_norm(case.x, case.window, case.weight, case.bias, case.eps),
            local_group_norm(case.x, case.window, case.groups, case.weight, case.bias, case.eps),
        )

    eager = run()
    with pytest.MonkeyPatch.context() as monkeypatch:
        _trace(monkeypatch)
        traced = run()
    for a, b in zip(eager, traced, strict=True):
        assert_close(b, a.double())


@pytest.mark.parametrize("piece", [1, 7 * 9 * 3, 2**60])
@pytest.mark.parametrize("window", [(3, 4), (7, 4), (20, 20)], ids=str)
def test_results_do_not_depend_on_the_pieces(
    piece: int, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = _random(3, 4, 7, 9).float(), _random(4), _random(4)

    def run() -> tuple[Tensor, ...]:
        return (
            local_mean(x, window),
            local_mean(x, window, 2),
            *local_var_mean(x, window),
            local_instance_norm(x, window, weight, bias),
            local_group_norm(x, window, 2, weight, bias),
        )

    normal = run()
    monkeypatch.setattr(_reference, "PIECE", piece)
    for a, b in zip(normal, run(), strict=True):
        assert torch.equal(a, b)


def test_compiles_without_a_graph_break() -> None:
    """The second size makes torch.compile try again with dynamic shapes."""
    functions = [
        (partial(local_mean, window=(4, 30), stride=3), [(13, 17), (19, 11)]),
        (partial(local_instance_norm, window=(3, 5), weight=_random(4), bias=_random(4)), [(13, 17)]),
    ]
    for function, sizes in functions:
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        for size in sizes:
            x = _random(2, 4, *size).float() + 2
            x[0, 0, 0, 0] = math.nan
            torch.testing.assert_close(compiled(x), function(x), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_runs_without_values() -> None:
    def check(x: Tensor) -> None:
        outs = (local_mean(x, 5), local_mean(x, 5, 3), *local_var_mean(x, 5), local_instance_norm(x, 5))
        for out in (*outs, local_group_norm(x, 5, 2)):
            assert out.shape == x.shape
            assert out.dtype == x.dtype
            assert out.device == x.device

    check(torch.empty(2, 4, 30, 40, device="meta"))
    with FakeTensorMode():
        check(torch.zeros(2, 4, 30, 40))


# ---------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_and_memory_format_are_kept(name: str, window: tuple[int, int], dtype: torch.dtype) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = _random(2, 4, 7, 9).to(dtype).contiguous(memory_format=memory_format)
        out = _statistics(window)[name](x, torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype))
        for part in out if isinstance(out, tuple) else (out,):
            assert part.shape == x.shape
            assert part.dtype == dtype
            # Where the window covers the map, a mean is an expanded view of one position.
            if window != (12, 12) or "norm" in name:
                assert part.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (20, 20)], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_the_input_is_left_as_it_was(name: str, window: tuple[int, int], batch: int) -> None:
    x = _random(batch, 4, 7, 9)
    before = x.clone()
    out = _statistics(window)[name](x, torch.ones(4).double(), torch.zeros(4).double())
    for part in out if isinstance(out, tuple) else (out,):
        if part.is_contiguous():
            part.add_(1)
    assert torch.equal(x, before)


def test_maps_without_channels() -> None:
    x = torch.zeros(2, 0, 7, 9)
    for out in (local_mean(x, 3), *local_var_mean(x, 3), local_instance_norm(x, 3), local_group_norm(x, 3, 2)):
        assert out.shape == x.shape


# ------------------------------------------------------------------------------------- bad arguments

X = torch.zeros(1, 4, 6, 6)


def _refuses(kind: type[TLSCError], *words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, TLSCError)
    assert isinstance(caught.value, TypeError if kind is ArgumentTypeError else ValueError)
    for word in words:
        assert word in str(caught.value)


def test_sparse_maps_are_refused() -> None:
    _refuses(ArgumentTypeError, "torch.sparse_coo", "to_dense", call=lambda: local_mean(X.to_sparse(), 3))


def _functions_of(x: Any, window: Any) -> list[Callable[[], Any]]:
    return [
        lambda: local_mean(x, window),
        lambda: local_mean(x, window, 2),
        lambda: local_var_mean(x, window),
        lambda: local_instance_norm(x, window),
        lambda: local_group_norm(x, window, 2),
    ]


@pytest.mark.parametrize(
    ("window", "kind", "words"),
    [
        (0, ArgumentValueError, ["0"]),
        (-3, ArgumentValueError, ["-3"]),
        ((3, 0), ArgumentValueError, ["window[1]", "0"]),
        ((-2, 3), ArgumentValueError, ["window[0]", "-2"]),
        ((3, 4, 5), ArgumentValueError, ["3 elements", "(3, 4, 5)"]),
        ((3,), ArgumentValueError, ["1 elements", "(3,)"]),
        ([], ArgumentValueError, ["[]"]),
        (3.0, ArgumentTypeError, ["3.0"]),
        ((3, 2.5), ArgumentTypeError, ["window[1]", "2.5"]),
        (True, ArgumentTypeError, ["True"]),
        ((3, False), ArgumentTypeError, ["window[1]", "False"]),
        ("3", ArgumentTypeError, ["'3'"]),
        (("3", 3), ArgumentTypeError, ["window[0]", "'3'"]),
        (None, ArgumentTypeError, ["None"]),
        (torch.tensor(3), ArgumentTypeError, ["tensor(3)"]),
        ({3: 4}, ArgumentTypeError, ["{3: 4}"]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("batch", [0, 1])
def test_bad_windows(window: Any, kind: type[TLSCError], words: list[str], batch: int) -> None:
    for call in _functions_of(X[:batch], window):
        _refuses(kind, "window", *words, call=call)


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        (X[0], ArgumentValueError, ["(4, 6, 6)"]),
        (X[0, 0], ArgumentValueError, ["(6, 6)"]),
        (X[None], ArgumentValueError, ["(1, 1, 4, 6, 6)"]),
        (torch.tensor(1.0), ArgumentValueError, ["()"]),
        (X.long(), ArgumentTypeError, ["torch.int64"]),
        (X.bool(), ArgumentTypeError, ["torch.bool"]),
        (X.byte(), ArgumentTypeError, ["torch.uint8"]),
        (X.to(torch.complex64), ArgumentTypeError, ["torch.complex64"]),
        (X[:, :, :0], ArgumentValueError, ["(1, 4, 0, 6)"]),
        (X[..., :0], ArgumentValueError, ["(1, 4, 6, 0)"]),
        (X.numpy(), ArgumentTypeError, ["ndarray"]),
        ([[1.0]], ArgumentTypeError, ["list"]),
        (None, ArgumentTypeError, ["NoneType"]),
    ],
    ids=lambda value: None if isinstance(value, (Tensor, np.ndarray)) else str(value),
)
def test_bad_maps(x: Any, kind: type[TLSCError], words: list[str]) -> None:
    for call in _functions_of(x, 3):
        _refuses(kind, "x must", *words, call=call)


@pytest.mark.parametrize("name", ["stride", "num_groups"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, ArgumentValueError),
        (-1, ArgumentValueError),
        (1.5, ArgumentTypeError),
        (2.0, ArgumentTypeError),
        (True, ArgumentTypeError),
        ("2", ArgumentTypeError),
        ((2, 2), ArgumentTypeError),
        (None, ArgumentTypeError),
    ],
    ids=repr,
)
def test_bad_counts(name: str, value: Any, kind: type[TLSCError]) -> None:
    function = local_mean if name == "stride" else local_group_norm
    _refuses(kind, name, repr(value), call=lambda: function(X, 3, value))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (torch.ones(3), ArgumentValueError, ["(4,)", "(3,)"]),
        (torch.ones(1), ArgumentValueError, ["(4,)", "(1,)"]),
        (torch.ones(1, 4, 1, 1), ArgumentValueError, ["(4,)", "(1, 4, 1, 1)"]),
        (torch.tensor(1.0), ArgumentValueError, ["(4,)", "()"]),
        (torch.ones(4, device="meta"), ArgumentValueError, ["meta", "cpu"]),
        (torch.ones(4).long(), ArgumentTypeError, ["torch.int64"]),
        (torch.ones(4).to(torch.complex64), ArgumentTypeError, ["torch.complex64"]),
        (np.ones(4), ArgumentTypeError, ["ndarray"]),
        (1.0, ArgumentTypeError, ["float"]),
        ([1.0] * 4, ArgumentTypeError, ["list"]),
    ],
    ids=lambda value: None if isinstance(value, (Tensor, np.ndarray)) else str(value),
)
@pytest.mark.parametrize("window", [3, 6])
def test_bad_affine_parameters(name: str, value: Any, kind: type[TLSCError], words: list[str], window: int) -> None:
    affine = {name: value}
    _refuses(kind, name, *words, call=lambda: local_instance_norm(X, window, **affine))
    _refuses(kind, name, *words, call=lambda: local_group_norm(X, window, 2, **affine))


@pytest.mark.parametrize(
    ("eps", "kind"),
    [
        (-1e-5, ArgumentValueError),
        (math.nan, ArgumentValueError),
        (math.inf, ArgumentValueError),
        ("1e-5", ArgumentTypeError),
        (None, ArgumentTypeError),
        (True, ArgumentTypeError),
        (torch.tensor(1e-5), ArgumentTypeError),
    ],
    ids=repr,
)
def test_bad_eps(eps: Any, kind: type[TLSCError]) -> None:
    _refuses(kind, "eps", repr(eps), call=lambda: local_instance_norm(X, 3, eps=eps))
    _refuses(kind, "eps", repr(eps), call=lambda: local_group_norm(X, 3, 2, eps=eps))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("num_groups", [3, 8])
def test_groups_that_do_not_divide_the_channels(num_groups: int, batch: int) -> None:
    _refuses(
        ArgumentValueError,
        "num_groups",
        str(num_groups),
        "4 channels",
        call=lambda: local_group_norm(X[:batch], 3, num_groups),
    )


# ---------------------------------------------------------------------------------------------- helpers


def _random(*shape: int) -> Tensor:
    """Standard normal values in float64, the same ones for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the branch-free path that graphs take."""
    monkeypatch.setattr(_reference, "is_traced", lambda x: True)


def _contains(window: tuple[int, int], pixel: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(H, W): whether the window of each position contains ``pixel``."""
    axes = []
    for k, here, n in zip(window, pixel, size, strict=True):
        k = min(k, n)
        starts = [min(max(i - (k - 1) // 2, 0), n - k) for i in range(n)]
        axes.append(torch.tensor([start <= here < start + k for start in starts]))
    return axes[0][:, None] & axes[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [None, 4])
def test_half_types_with_parameters_in_float32_give_what_pytorch_gives(
    dtype: torch.dtype, groups: int | None
) -> None:
    """So they come under autocast; where the window covers the map the layer is PyTorch's own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 11, generator=generator).to(dtype)
    weight, bias = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    if groups is None:
        expected = F.instance_norm(x, weight=weight, bias=bias)
        found = tlsc.functional.local_instance_norm(x, (9, 11), weight, bias)
    else:
        expected = F.group_norm(x, groups, weight, bias)
        found = tlsc.functional.local_group_norm(x, (9, 11), groups, weight, bias)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
