"""Statistics written inside ``forward``, and tails that replacing a pool alone cannot serve."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc

WINDOW = (8, 6)


class Written(nn.Module):
    """A module whose forward is ``function(self, x)``."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def convolutions(channels: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, channels, 1), nn.Sigmoid())


def linears() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(1, 8, 1, 1))


def mean_of(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.mean(*args, **kwargs)


def squeeze_linear(self: Any, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    y = self.pool(x).view(b, c)
    return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


def efficient(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
    return x * y.view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)


def contrast(self: Any, x: Tensor) -> Tensor:
    positions = x.size(2) * x.size(3)
    mean = x.sum(3, keepdim=True).sum(2, keepdim=True) / positions
    var = (x - mean).pow(2).sum(3, keepdim=True).sum(2, keepdim=True) / positions
    return x * self.body(var.pow(0.5) + mean)


def two_pass(self: Any, x: Tensor) -> Tensor:
    d = x - x.mean((2, 3), keepdim=True)
    return d / torch.sqrt((d * d).mean((2, 3), keepdim=True) + 1e-6)


def group_std(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    var = x.reshape(b, 2, c // 2, h, w).var(dim=(2, 3, 4), unbiased=False, keepdim=True)
    return x / (var + 1e-5).sqrt().expand(b, 2, c // 2, h, w).reshape(b, c, h, w)


def flattened(self: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    return (flat - flat.mean(-1, keepdim=True)).view(n, c, h, w)


def channels_last(self: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    g = y.norm(p=2, dim=(1, 2), keepdim=True)
    return (y * (g / (g.mean(-1, keepdim=True) + 1e-6)) + y).permute(0, 3, 1, 2)


def response_norm(self: Any, x: Tensor) -> Tensor:
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    return self.weight * (x * (g / (g.mean(dim=1, keepdim=True) + 1e-6))) + self.bias + x


def context(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    weights = torch.softmax(self.logits(x).view(b, 1, h * w), dim=-1).unsqueeze(-1)
    return x + self.body((x.view(b, c, h * w).unsqueeze(1) @ weights).view(b, c, 1, 1))


def weighted_sum(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    weights = torch.softmax(self.logits(x).reshape(b, 1, h * w), dim=2)
    return x + (x.reshape(b, c, h * w) * weights).sum(2).view(b, c, 1, 1)


def instance(self: Any, x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + 1e-5) * self.weight + self.bias


def halves(self: Any, x: Tensor) -> Tensor:
    first, second = self.body(F.adaptive_avg_pool2d(x, 1)).chunk(2, dim=1)
    return x * torch.cat([first + second, second], 1)


def norms(self: Any, x: Tensor) -> Tensor:
    weight, bias = self.weight.view(-1), self.bias.view(-1)
    return F.instance_norm(x, weight=weight, bias=bias) + F.group_norm(x, 2, eps=1e-3)


SPELLINGS: dict[str, Callable[[], Written]] = {
    "mean (2, 3) keepdim": lambda: Written(
        lambda s, x: x * s.body(x.mean((2, 3), keepdim=True)), body=convolutions()
    ),
    "mean [-1, -2]": lambda: Written(lambda s, x: x * torch.mean(x, dim=[-1, -2])[:, :, None, None]),
    "mean of mean": lambda: Written(lambda s, x: x * x.mean(3, keepdim=True).mean(2, keepdim=True)),
    "sum": lambda: Written(lambda s, x: x * x.sum(dim=(-2, -1), keepdim=True)),
    "sum in two steps": lambda: Written(lambda s, x: x * x.sum(3).sum(2).unsqueeze(-1).unsqueeze(-1)),
    "sum over the number of positions": lambda: Written(
        lambda s, x: x * (x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]))
    ),
    "var": lambda: Written(lambda s, x: x * x.var((2, 3), keepdim=True)),
    "var, biased": lambda: Written(lambda s, x: x * torch.var(x, (2, 3), correction=0, keepdim=True)),
    "std": lambda: Written(lambda s, x: x * x.std((2, 3), keepdim=True)),
    "std_mean": lambda: Written(lambda s, x: x * sum(torch.std_mean(x, (2, 3), keepdim=True))),
    "var_mean": lambda: Written(instance, weight=parameter(), bias=parameter()),
    "amax": lambda: Written(lambda s, x: x * x.amax((2, 3), keepdim=True)),
    "amin": lambda: Written(lambda s, x: x * x.amin((2, 3), keepdim=True)),
    "norm 2": lambda: Written(lambda s, x: x * torch.linalg.vector_norm(x, 2, (2, 3), True)),
    "norm 1": lambda: Written(lambda s, x: x * x.norm(p=1, dim=(2, 3), keepdim=True)),
    "norm inf": lambda: Written(lambda s, x: x * torch.linalg.vector_norm(x, float("inf"), (2, 3), True)),
    "view": lambda: Written(flattened),
    "flatten(2)": lambda: Written(lambda s, x: x * x.flatten(2).mean(2)[..., None, None]),
    "flatten(2) amax": lambda: Written(lambda s, x: x * x.flatten(2).amax(2).unsqueeze(-1).unsqueeze(-1)),
    "adaptive_avg_pool2d": lambda: Written(halves, body=convolutions()),
    "adaptive_max_pool2d": lambda: Written(lambda s, x: x * F.adaptive_max_pool2d(x, 1)),
    "AdaptiveMaxPool2d": lambda: Written(
        lambda s, x: x * s.body(s.pool(x)), pool=nn.AdaptiveMaxPool2d(1), body=convolutions()
    ),
    "avg_pool2d of the map's size": lambda: Written(lambda s, x: x * F.avg_pool2d(x, (x.size(2), x.size(3)))),
    "max_pool2d of the map's size": lambda: Written(lambda s, x: x * F.max_pool2d(x, x.shape[2:])),
    "instance_norm, group_norm": lambda: Written(norms, weight=parameter(), bias=parameter()),
    "InstanceNorm1d": lambda: Written(
        lambda s, x: s.norm(x.flatten(2)).view_as(x), norm=nn.InstanceNorm1d(8, affine=True)
    ),
    "softmax-weighted, matmul": lambda: Written(context, logits=nn.Conv2d(8, 1, 1), body=convolutions()),
    "softmax-weighted, sum": lambda: Written(weighted_sum, logits=nn.Conv2d(8, 1, 1)),
    "two-pass standard deviation": lambda: Written(contrast, body=convolutions()),
    "two-pass, product": lambda: Written(two_pass),
    "global response norm": lambda: Written(response_norm, weight=parameter(), bias=parameter()),
    "global response norm, channels last": lambda: Written(channels_last),
    "group standard deviation": lambda: Written(group_std),
    "squeeze-excitation by Linear": lambda: Written(squeeze_linear, pool=nn.AdaptiveAvgPool2d(1), fc=linears()),
    "1-D convolution over channels": lambda: Written(efficient, conv=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "mean and maximum through one body": lambda: Written(
        lambda s, x: x * torch.sigmoid(s.body(x.mean((2, 3), keepdim=True)) + s.body(x.amax((2, 3), keepdim=True))),
        body=convolutions(),
    ),
    "interpolated": lambda: Written(
        lambda s, x: x * F.interpolate(s.body(x.mean((2, 3), keepdim=True)), size=x.shape[2:]), body=convolutions()
    ),
}
every_spelling = pytest.mark.parametrize("spelling", SPELLINGS)


def network(spelling: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), SPELLINGS[spelling]()).double().eval()


def reference(model: nn.Module, x: Tensor, window: tuple[int, int]) -> Tensor:
    """At each position the model, pointwise but for its statistics, run on the crop that is its window."""
    height, width = x.shape[2:]
    out = None
    places = []
    for n, size in ((height, window[0]), (width, window[1])):
        k = min(size, n)
        places.append([(min(max(i - (k - 1) // 2, 0), n - k), k) for i in range(n)])
    for i, (top, rows) in enumerate(places[0]):
        for j, (left, columns) in enumerate(places[1]):
            value = model(x[:, :, top : top + rows, left : left + columns].contiguous())[:, :, i - top, j - left]
            out = value.new_empty(*value.shape, height, width) if out is None else out
            out[:, :, i, j] = value
    assert out is not None
    return out


@every_spelling
@torch.no_grad()
def test_every_position_is_the_original_on_its_window(spelling: str) -> None:
    model = network(spelling)
    original = copy.deepcopy(model)
    assert tlsc.plan(model, WINDOW).converted
    tlsc.convert(model, WINDOW)
    for size in ((11, 13), (8, 13), (5, 9)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(model(x), reference(original, x, WINDOW), rtol=1e-9, atol=1e-9)


@every_spelling
@torch.no_grad()
def test_inputs_no_larger_than_the_window_give_what_they_gave(spelling: str) -> None:
    model = network(spelling)
    original = tlsc.convert(copy.deepcopy(model), WINDOW)
    for size in (WINDOW, (5, 4), (8, 3)):
        x = torch.randn(3, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(original(x), model(x), rtol=1e-12, atol=1e-12)


@every_spelling
@torch.no_grad()
def test_state_and_identity(spelling: str) -> None:
    model = network(spelling)
    before, state, x = (
        dict(model.named_modules()),
        model.state_dict(),
        torch.randn(1, 3, 12, 9, dtype=torch.float64),
    )
    expected = model(x)
    tlsc.convert(model, WINDOW)
    assert list(model.state_dict()) == list(state)
    assert not torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    tlsc.revert(model)
    assert all(module is before[path] for path, module in model.named_modules())
    assert torch.equal(model(x), expected)


@every_spelling
@torch.no_grad()
def test_on_the_grid_windows_are_interpolated(spelling: str) -> None:
    """At stride 2 the positions whose window is evaluated keep their value where only pointwise layers follow."""
    exact = tlsc.convert(network(spelling), WINDOW)
    coarse = tlsc.convert(network(spelling), WINDOW, stride=2)
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    top, left = (WINDOW[0] - 1) // 2, (WINDOW[1] - 1) // 2
    assert coarse(x).isfinite().all()
    torch.testing.assert_close(coarse(x)[..., top, left], exact(x)[..., top, left], rtol=1e-9, atol=1e-9)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = convolutions()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x.mean((2, 3), keepdim=True))


@torch.no_grad()
def test_a_rewritten_module_pickles_and_keeps_its_class() -> None:
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 8, 1), Gated()), WINDOW)
    x = torch.randn(1, 3, 12, 9)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))
    assert isinstance(model[1], Gated)
    assert type(tlsc.revert(again)[1]) is Gated


def test_gradients_flow_and_hooks_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Gated())
    calls: list[str] = []
    model[1].register_forward_hook(lambda *_: calls.append("owner"))
    model[1].body.register_forward_hook(lambda *_: calls.append("body"))
    tlsc.convert(model, WINDOW)
    model(torch.randn(1, 3, 12, 9)).sum().backward()
    assert calls == ["body", "owner"]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_plan_names_owner_and_operation() -> None:
    (site,) = tlsc.plan(nn.Sequential(nn.Conv2d(3, 8, 1), Gated()), WINDOW)
    assert (site.path, site.operation, site.window, site.owner) == ("1", "mean", WINDOW, "1")


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "head": (lambda s, x: s.fc(x.mean((2, 3))), "leaves the module"),
    "weight of a convolution": (
        lambda s, x: F.conv2d(x, s.fc(x.mean((2, 3)))[:1].view(1, 8, 1, 1).expand(8, 8, 1, 1)),
        "one item per image",
    ),
    "branch on values": (lambda s, x: x if x.mean((2, 3)).sum() > 0 else -x, "one item per image"),
    "branch on the size": (lambda s, x: x * x.mean((2, 3), keepdim=True) if x.shape[2] > 4 else x, "size of the map"),
    "over the batch": (lambda s, x: x * x.mean(), "over the batch"),
    "another resolution": (lambda s, x: F.avg_pool2d(x, 2) * x.mean((2, 3), keepdim=True), "another size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_local_form_stays_global_with_the_reason(case: str) -> None:
    function, reason = REFUSED[case]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Written(function, fc=nn.Linear(8, 8)), nn.InstanceNorm2d(8))
    if case == "head":
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), Written(function, fc=nn.Linear(8, 8)))
    left = [site for site in tlsc.plan(model, WINDOW) if site.action == "left global"]
    assert [reason in site.reason for site in left] == [True], left
    tlsc.convert(model, WINDOW)
    assert any(isinstance(module, tlsc.LocalInstanceNorm2d) for module in model)


def test_a_mean_over_channels_is_no_site() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), Written(lambda s, x: x * x.mean(1, keepdim=True)))
    assert len(tlsc.plan(model, 4)) == 0


@torch.no_grad()
def test_one_pool_used_on_maps_of_two_sizes() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            small = x[..., ::2, ::2] * 1
            small = F.avg_pool2d(x, 2)
            small = small * self.pool(small)
            return x * self.pool(x) + F.interpolate(small, scale_factor=2)

    model = Pyramid().double()
    original = copy.deepcopy(model)
    sites = tlsc.plan(model, 8, example_input=lambda h, w: torch.zeros(1, 3, h, w, dtype=torch.float64))
    assert sorted(site.window or () for site in sites.converted) == [(4, 4), (8, 8)]
    tlsc.convert(model, 8)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), original(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x.repeat(1, 1, 2, 2) * 0 + torch.randn(1, 3, 16, 16)), original(x).mean())
