"""Modules do what the functions do, keep what the layers they stand in for have, and correct their statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc
from tlsc import LocalAvgPool2d, LocalGroupNorm, LocalInstanceNorm2d
from tlsc._statistics.correction import Correction
from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError
from tlsc.functional import local_group_norm, local_instance_norm, local_mean

from .oracles import (
    assert_close,
    reference_local_group_norm,
    reference_local_instance_norm,
    reference_local_mean,
    reference_strided_mean,
)

# On a 7×9 map: inside, over one axis, over both.
WINDOWS = [(3, 4), (20, 4), (7, 9), (20, 20)]
DTYPES = [torch.float16, torch.float32, torch.float64]


# ---------------------------------------------------------------------------- modules and functions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [3, *WINDOWS], ids=str)
def test_modules_equal_functions(window: Any, dtype: torch.dtype) -> None:
    x = _random(2, 4, 7, 9).to(dtype)
    weight, bias = _random(4).to(dtype), _random(4).to(dtype)
    assert torch.equal(LocalAvgPool2d(window)(x), local_mean(x, window))
    assert torch.equal(LocalAvgPool2d(window, stride=3)(x), local_mean(x, window, 3))
    assert torch.equal(LocalInstanceNorm2d(4, window, eps=0.1)(x), local_instance_norm(x, window, eps=0.1))
    assert torch.equal(
        LocalGroupNorm(2, 4, window, eps=0.1, affine=False)(x), local_group_norm(x, window, 2, eps=0.1)
    )
    instance_norm = _with_affine(LocalInstanceNorm2d(4, window, affine=True).to(dtype), weight, bias)
    group_norm = _with_affine(LocalGroupNorm(2, 4, window).to(dtype), weight, bias)
    assert torch.equal(instance_norm(x), local_instance_norm(x, window, weight, bias))
    assert torch.equal(group_norm(x), local_group_norm(x, window, 2, weight, bias))


def test_defaults_are_those_of_the_global_layers() -> None:
    for local, layer in (
        (LocalInstanceNorm2d(4, 3), nn.InstanceNorm2d(4)),
        (LocalInstanceNorm2d(4, 3, affine=True), nn.InstanceNorm2d(4, affine=True)),
        (LocalGroupNorm(2, 4, 3), nn.GroupNorm(2, 4)),
        (LocalGroupNorm(2, 4, 3, affine=False), nn.GroupNorm(2, 4, affine=False)),
        (LocalAvgPool2d(3), nn.AdaptiveAvgPool2d(1)),
    ):
        assert getattr(local, "eps", None) == getattr(layer, "eps", None)
        ours, theirs = local.state_dict(), layer.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        layer.load_state_dict(ours)
        local.load_state_dict(theirs)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_maps_without_a_batch_dimension(window: tuple[int, int]) -> None:
    x = _random(4, 7, 9)
    pool, norm = nn.AdaptiveAvgPool2d(1), _norm(nn.InstanceNorm2d(4, affine=True))
    modules: list[nn.Module] = [
        LocalAvgPool2d(window),
        LocalAvgPool2d(window, stride=2),
        LocalAvgPool2d.from_module(pool, window),
        LocalInstanceNorm2d.from_module(norm, window),
    ]
    for module in modules:
        out = module(x)
        assert out.dim() == 3
        assert torch.equal(out, module(x[None])[0])


@pytest.mark.parametrize("window", [1, *WINDOWS], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda window: LocalAvgPool2d(window),
        lambda window: LocalAvgPool2d(window, stride=2),
        lambda window: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), window),
        lambda window: LocalInstanceNorm2d(4, window),
        lambda window: LocalGroupNorm(2, 4, window),
    ],
)
def test_an_in_place_activation_may_follow(make: Callable[[Any], nn.Module], window: Any) -> None:
    x = _random(2, 4, 7, 9).requires_grad_()
    before = x.detach().clone()
    module = make(window)
    expected = module(x).relu()
    out = nn.Sequential(module, nn.ReLU(inplace=True))(x)
    assert torch.equal(out, expected)
    assert torch.equal(x, before)
    gradients = [torch.autograd.grad(result.square().sum(), x)[0] for result in (out, expected)]
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_memory_format_is_kept(window: tuple[int, int]) -> None:
    modules: list[nn.Module] = [
        LocalAvgPool2d(window),
        LocalAvgPool2d(window, stride=2),
        LocalInstanceNorm2d(4, window),
        LocalGroupNorm(2, 4, window),
    ]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = _random(2, 4, 7, 9).float().contiguous(memory_format=memory_format)
        for module in modules:
            assert module(x).is_contiguous(memory_format=memory_format)


# -------------------------------------------------------------------------------------- from_module


@pytest.mark.parametrize("output_size", [1, (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 3])
def test_a_pool_stands_in_for_the_global_one(output_size: Any, stride: int) -> None:
    x = _random(2, 4, 7, 9)
    pool = nn.AdaptiveAvgPool2d(output_size)
    for window in ((7, 9), (20, 9)):
        out = LocalAvgPool2d.from_module(pool, window, stride)(x)
        assert out.shape == (2, 4, 1, 1)
        assert_close(out, pool(x))
    for window in ((6, 9), (20, 8)):
        out = LocalAvgPool2d.from_module(pool, window, stride)(x)
        assert out.shape == x.shape
        assert_close(out, reference_strided_mean(x, window, stride))
    # Without a pool to stand in for, the shape is always that of the map.
    assert LocalAvgPool2d(20)(x).shape == x.shape


def test_a_pool_that_covers_keeps_half_precision_from_overflowing() -> None:
    x = torch.full((1, 1, 20, 20), 60000.0, dtype=torch.float16)
    out = LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), 20)(x)
    assert out.dtype == torch.float16
    assert out.item() == x[0, 0, 0, 0].item()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_an_instance_norm_keeps_everything(affine: bool, training: bool) -> None:
    norm = _norm(nn.InstanceNorm2d(4, eps=0.03, affine=affine)).double().train(training)
    local = LocalInstanceNorm2d.from_module(norm, 3)
    _has_everything_of(local, norm)
    x = _random(2, 4, 7, 9)
    assert_close(local(x), reference_local_instance_norm(x, (3, 3), norm.weight, norm.bias, 0.03))
    assert torch.equal(LocalInstanceNorm2d.from_module(norm, (7, 9))(x), norm(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_keeps_everything(affine: bool, training: bool) -> None:
    norm = _norm(nn.GroupNorm(2, 4, eps=0.03, affine=affine)).double().train(training)
    local = LocalGroupNorm.from_module(norm, (3, 5))
    _has_everything_of(local, norm)
    x = _random(2, 4, 7, 9)
    assert_close(local(x), reference_local_group_norm(x, (3, 5), 2, norm.weight, norm.bias, 0.03))
    assert torch.equal(LocalGroupNorm.from_module(norm, (7, 9))(x), norm(x))


def test_weights_that_change_later_change_both() -> None:
    for norm, kind in (
        (nn.InstanceNorm2d(4, affine=True), LocalInstanceNorm2d),
        (nn.GroupNorm(2, 4), LocalGroupNorm),
    ):
        local = kind.from_module(norm, 3)
        state = {"weight": _random(4).float(), "bias": _random(4).float()}
        local.load_state_dict(state, assign=True)
        assert torch.equal(norm.weight, state["weight"])
        local.double()
        assert norm.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: LocalAvgPool2d(0), ArgumentValueError, ["window", "0"]),
        (lambda: LocalAvgPool2d(3, stride=0), ArgumentValueError, ["stride", "0"]),
        (lambda: LocalAvgPool2d(3, stride=1.5), ArgumentTypeError, ["stride", "1.5"]),
        (lambda: LocalInstanceNorm2d(4, (3, 4, 5)), ArgumentValueError, ["window", "(3, 4, 5)"]),
        (lambda: LocalInstanceNorm2d(0, 3), ArgumentValueError, ["num_features", "0"]),
        (lambda: LocalInstanceNorm2d(4, 3, eps=-1.0), ArgumentValueError, ["eps", "-1.0"]),
        (lambda: LocalInstanceNorm2d(4.0, 3), ArgumentTypeError, ["num_features", "4.0"]),
        (lambda: LocalGroupNorm(3, 4, 3), ArgumentValueError, ["num_groups", "3", "4"]),
        (lambda: LocalGroupNorm(0, 4, 3), ArgumentValueError, ["num_groups", "0"]),
        (lambda: LocalGroupNorm(2, -4, 3), ArgumentValueError, ["num_channels", "-4"]),
        (lambda: LocalGroupNorm(2, 4, "3"), ArgumentTypeError, ["window", "'3'"]),
        (lambda: LocalGroupNorm(2, 4, 3, eps="0"), ArgumentTypeError, ["eps", "'0'"]),
        (lambda: LocalAvgPool2d.from_module(nn.AvgPool2d(2), 3), ArgumentTypeError, ["AvgPool2d"]),
        (lambda: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(2), 3), ArgumentValueError, ["pool", "2"]),
        (lambda: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d((1, None)), 3), ArgumentValueError, ["None"]),
        (lambda: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), 3, -1), ArgumentValueError, ["stride", "-1"]),
        (lambda: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), 0), ArgumentValueError, ["window", "0"]),
        (lambda: LocalInstanceNorm2d.from_module(nn.GroupNorm(2, 4), 3), ArgumentTypeError, ["norm", "GroupNorm"]),
        (
            lambda: LocalInstanceNorm2d.from_module(nn.InstanceNorm2d(4, track_running_stats=True), 3),
            ArgumentValueError,
            ["norm", "track_running_stats"],
        ),
        (
            lambda: LocalGroupNorm.from_module(nn.InstanceNorm2d(4), 3),
            ArgumentTypeError,
            ["norm", "InstanceNorm2d"],
        ),
        (lambda: LocalGroupNorm.from_module(nn.GroupNorm(2, 4), 2.0), ArgumentTypeError, ["window", "2.0"]),
        (lambda: LocalAvgPool2d(3)(torch.zeros(4, 4)), ArgumentValueError, ["(4, 4)"]),
        (lambda: LocalInstanceNorm2d(4, 3)(torch.zeros(4, 4)), ArgumentValueError, ["(4, 4)"]),
        (lambda: LocalGroupNorm(2, 4, 3)(torch.zeros(4, 4, 4)), ArgumentValueError, ["(4, 4, 4)"]),
        (
            lambda: LocalInstanceNorm2d(4, 3, affine=True)(torch.zeros(1, 3, 4, 4)),
            ArgumentValueError,
            ["weight", "(3,)", "(4,)"],
        ),
    ],
)
def test_bad_arguments(call: Callable[[], Any], kind: type[TLSCError], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_they_print_what_they_do() -> None:
    assert repr(LocalAvgPool2d((3, 4), stride=2)) == "LocalAvgPool2d(window=(3, 4), stride=2)"
    assert (
        repr(LocalInstanceNorm2d(8, 5, eps=0.1, affine=True))
        == "LocalInstanceNorm2d(8, window=(5, 5), eps=0.1, affine=True)"
    )
    assert repr(LocalGroupNorm(2, 8, 5)) == "LocalGroupNorm(2, 8, window=(5, 5), eps=1e-05, affine=True)"
    norm = nn.GroupNorm(2, 8, affine=False)
    assert (
        repr(LocalGroupNorm.from_module(norm, 5)) == "LocalGroupNorm(2, 8, window=(5, 5), eps=1e-05, affine=False)"
    )


# --------------------------------------------------------------------------------------- correction


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_identity_corrects_nothing(window: tuple[int, int], dtype: torch.dtype) -> None:
    x = (_random(2, 4, 7, 9) + 1).to(dtype)
    for make, channels in _makers():
        plain, corrected = make(window).to(dtype), make(window).to(dtype)
        one, zero = torch.ones(channels), torch.zeros(channels)
        corrected.correction = Correction.unlimited(one, zero, zero, one, zero)
        # Where the window covers a map in half precision, PyTorch's own norm rounds more.
        covers = window[0] >= 7 and window[1] >= 9
        tolerance = {torch.float16: 4e-3 if covers else 0.0, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(corrected(x), plain(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_corrected_pool_changes_the_mean(window: tuple[int, int]) -> None:
    """``mean' = mean + w·((d − 1)·clip(mean) + e)``, per channel; w: see :func:`oracles.outline_inside`"""
    x = _random(2, 4, 7, 9)
    correction = _correction(4)
    for stride in (1, 2):
        expected = reference_strided_mean(x, window, stride, _naively(correction))
        for pool in (
            LocalAvgPool2d(window, stride),
            LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), window, stride),
        ):
            pool.correction = correction
            assert_close(pool(x).expand(x.shape), expected)
            assert_close(pool(x[0]).expand(x[0].shape), expected[0])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_corrected_instance_norm_changes_its_statistics(window: tuple[int, int]) -> None:
    """``var' = var + w·((a − 1)·min(var, top) + b + c·clip(mean)²)``, per channel"""
    x = _random(2, 4, 7, 9) + 3
    norm = _norm(nn.InstanceNorm2d(4, affine=True)).double()
    local = LocalInstanceNorm2d.from_module(norm, window)
    local.correction = correction = _correction(4)
    expected = reference_local_instance_norm(x, window, norm.weight, norm.bias, correct=_naively(correction))
    assert_close(local(x), expected)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_corrected_group_norm_changes_its_statistics(window: tuple[int, int]) -> None:
    """As instance norm, per group"""
    x = _random(2, 6, 7, 9) + 3
    norm = _norm(nn.GroupNorm(3, 6)).double()
    local = LocalGroupNorm.from_module(norm, window)
    local.correction = correction = _correction(3)
    expected = reference_local_group_norm(x, window, 3, norm.weight, norm.bias, correct=_naively(correction))
    assert_close(local(x), expected)


def test_a_corrected_variance_is_never_negative() -> None:
    x = _random(1, 2, 7, 9)
    local = LocalInstanceNorm2d(2, 3, eps=1e-2)
    zero, one = torch.zeros(2), torch.ones(2)
    local.correction = Correction.unlimited(one, -1e9 * one, zero, one, zero)
    # Only windows whose outline lies wholly inside count; all others are corrected in part, far enough here.
    assert_close(local(x), (x - reference_local_mean(x, (3, 3))) / 0.1)


def test_a_correction_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plane gets the coefficients of its own channel, whichever piece it is in."""
    x = _random(3, 4, 7, 9) + 1
    modules = [make((3, 4)).double() for make, _ in _makers()]
    for module, (_, channels) in zip(modules, _makers(), strict=True):
        module.correction = _correction(channels)
    normal = [module(x) for module in modules]
    monkeypatch.setattr(tlsc._statistics.reference, "PIECE", 1)
    for module, expected in zip(modules, normal, strict=True):
        assert torch.equal(module(x), expected)


# ------------------------------------------------------------------------------------------ helpers


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _norm(norm: Any) -> Any:
    """With weights and biases that are not 1 and 0."""
    return norm if norm.weight is None else _with_affine(norm, _random(len(norm.weight)), -_random(len(norm.bias)))


def _with_affine(module: Any, weight: Tensor, bias: Tensor) -> Any:
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


def _has_everything_of(local: Any, norm: Any) -> None:
    assert local.weight is norm.weight
    assert local.bias is norm.bias
    assert local.eps == norm.eps == 0.03
    assert local.affine == norm.affine
    assert local.training == norm.training
    assert dict(local.named_parameters()).keys() == dict(norm.named_parameters()).keys()
    assert list(local.state_dict()) == list(norm.state_dict())
    assert local.correction is None


def _makers() -> list[tuple[Callable[[Any], Any], int]]:
    """Each kind of module for 4 channels, and how many channels or groups a correction has there."""
    return [
        (lambda window: LocalAvgPool2d(window), 4),
        (lambda window: LocalAvgPool2d(window, 2), 4),
        (lambda window: LocalAvgPool2d.from_module(nn.AdaptiveAvgPool2d(1), window), 4),
        (lambda window: LocalInstanceNorm2d.from_module(_norm(nn.InstanceNorm2d(4, affine=True)), window), 4),
        (lambda window: LocalGroupNorm.from_module(_norm(nn.GroupNorm(2, 4)), window), 2),
    ]


def _correction(channels: int) -> Correction:
    """Maps that differ in each channel, keep variances positive, and have limits that some statistics exceed."""
    a, b, c, d, e = (_random(channels, 1 + i).mean(1) for i in range(5))
    top, low = 1 + 0.1 * _random(channels, 7).mean(1), 2.9 + 0.1 * _random(channels, 8).mean(1)
    return Correction.of(a.abs() + 0.5, b.abs(), c.abs() + 0.1, d + 1, e, top, low, low + 0.2)


def _naively(correction: Correction) -> Callable[..., tuple[Tensor, Tensor]]:
    def correct(var: Tensor, mean: Tensor, w: float) -> tuple[Tensor, Tensor]:
        a, b, c, d, e, top, low, high = correction
        m = torch.minimum(torch.maximum(mean, low), high)
        return var + w * ((a - 1) * torch.minimum(var, top) + b + c * m**2), mean + w * ((d - 1) * m + e)

    return correct
