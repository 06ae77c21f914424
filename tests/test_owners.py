"""Statistics written inside ``forward``, and tails that replacing a pool alone cannot serve."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import einops
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


def weighing(how: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Written]:
    """Softmax weights (N, 1, H·W) and features (N, C, H·W), joined by ``how`` to (N, C, …)."""

    def function(self: Any, x: Tensor) -> Tensor:
        weights = self.softmax(self.logits(x).flatten(2))
        return x + how(x.flatten(2), weights).reshape(*x.shape[:2], 1, 1)

    return lambda: Written(function, logits=nn.Conv2d(8, 1, 1), softmax=nn.Softmax(dim=-1))


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


def positions(x: Tensor) -> Any:
    return x.shape[2] * x.shape[3]


def reversed_two_pass(self: Any, x: Tensor) -> Tensor:
    flat = x.view(*x.shape[:2], -1)
    distance = torch.abs(flat.sum(-1, keepdim=True) / flat.shape[-1] - flat)
    return x * (distance**2).mean(-1, keepdim=True).sqrt().unsqueeze(-1)


def normalised_then_mean(self: Any, x: Tensor) -> Tensor:
    """The second statistic is of a map that the first has entered."""
    y = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 0.1)
    return y + (y * x).mean((2, 3), keepdim=True) + (y + 2 * x - 1).sum((2, 3))[..., None, None]


def by_hand(self: Any, x: Tensor) -> Tensor:
    groups = x.view(x.shape[0], 2, -1)
    groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True) + 1e-5).sqrt()
    return groups.view_as(x) * self.weight


def extremes(self: Any, x: Tensor) -> Tensor:
    low, high = torch.aminmax(x.flatten(2), dim=-1, keepdim=True)
    both = x.flatten(2).max(-1)[0] + x.min(3, keepdim=True).values.min(2, keepdim=True)[0].flatten(1)
    return (x - low.unsqueeze(-1)) / (high - low + 1).unsqueeze(-1) + both.view(*both.shape, 1, 1)


def selective(self: Any, x: Tensor) -> Tensor:
    paths = torch.stack([x, x * x], 1)
    weights = self.fc(paths.sum(1).mean((2, 3))).view(-1, 2, 8, 1, 1).softmax(1)
    return (paths * weights).sum(1)


def with_einops(self: Any, x: Tensor) -> Tensor:
    rearrange, reduce = einops.rearrange, einops.reduce
    flat = rearrange(x, "b c h w -> b c (h w)")
    flat = flat - flat.mean(-1, keepdim=True)
    gate = rearrange(self.fc(reduce(x, "b c h w -> b c", "mean")), "b c -> b c 1 1")
    return gate * rearrange(flat, "b c (h w) -> b c h w", h=x.shape[2], w=x.shape[3]) + reduce(
        x, "b c h w -> b c 1 1", "max"
    )


def channel_attention(self: Any, x: Tensor) -> Tensor:
    """Of tokens of a map (N, H, W, C), in two heads, the first matrix transposed (RetinexFormer)."""
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c)
    q, k, v = (einops.rearrange(part, "b n (h d) -> b h d n", h=2) for part in self.qkv(tokens).chunk(3, -1))
    q, k = F.normalize(q, dim=-1, p=2), F.normalize(k, dim=-1)
    weights = ((k @ q.transpose(-2, -1)) * self.scale).softmax(dim=-1)
    out = (weights @ v).permute(0, 3, 1, 2).reshape(b, h * w, c)
    return self.project(out).view(b, h, w, c) + x


def channels_last_within(**parts: nn.Module | nn.Parameter) -> nn.Module:
    last = Written(channel_attention, **parts)
    return Written(lambda s, x: s.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), inner=last)


def channel_attention_unbound(self: Any, x: Tensor) -> Tensor:
    """q, k and v along a dimension of their own (XCiT)."""
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = self.qkv(tokens).reshape(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 4, 1).unbind(0)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.scale
    out = (weights.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, h * w, c)
    return x + out.transpose(1, 2).reshape(b, c, h, w)


def channel_attention_by_einsum(self: Any, x: Tensor) -> Tensor:
    """Without heads, beside a mean of the same map."""
    q, k = F.normalize(self.q(x).flatten(2), dim=2), F.normalize(x.flatten(2), dim=2)
    weights = self.softmax(0.7 * torch.einsum("bcn,bdn->bcd", q, k))
    return torch.einsum("bcd,bdn->bcn", weights, x.flatten(2)).view_as(x) * x.mean((2, 3), keepdim=True)


SPELLINGS |= {
    "channels in another order": lambda: Written(
        lambda s, x: x[:, torch.tensor([2, 0, 1])] * x[:, [1, 7, 2]].mean((2, 3), keepdim=True)
    ),
    "sum over one side": lambda: Written(
        lambda s, x: x * (x.sum((2, 3)) / x.shape[2]).tanh()[..., None, None] * (x.sum((2, 3), True) / x.size(3))
    ),
    "channel attention, heads, tokens": lambda: channels_last_within(
        qkv=nn.Linear(8, 24), project=nn.Linear(8, 8), scale=nn.Parameter(torch.rand(2, 1, 1) + 0.5)
    ),
    "channel attention, unbound": lambda: Written(
        channel_attention_unbound, qkv=nn.Linear(8, 24), scale=nn.Parameter(torch.rand(2, 1, 1) + 0.5)
    ),
    "channel attention, einsum": lambda: Written(
        channel_attention_by_einsum, q=nn.Conv2d(8, 8, 1), softmax=nn.Softmax(dim=-1)
    ),
    "mean of one image's number of positions": lambda: Written(
        lambda s, x: x * (x.sum((2, 3), keepdim=True) / x[0, 0].numel() + x.sum((2, 3), True) / x.shape[2:].numel())
    ),
    "mean by einsum": lambda: Written(
        lambda s, x: torch.einsum("nchw,nc->nchw", x, torch.einsum("nchw->nc", x) / positions(x))
    ),
    "mean of products and quotients": lambda: Written(normalised_then_mean),
    "two-pass, reversed and flat": lambda: Written(reversed_two_pass),
    "maxima and minima with their places": lambda: Written(extremes),
    "where": lambda: Written(lambda s, x: torch.where(x > x.mean((2, 3), keepdim=True), x, x * 0.1)),
    "logsumexp": lambda: Written(lambda s, x: x * torch.logsumexp(x.flatten(2), -1)[..., None, None]),
    "linalg.norm of the flat map": lambda: Written(
        lambda s, x: x * torch.linalg.norm(x.flatten(2), dim=-1, keepdim=True).unsqueeze(-1)
    ),
    "Frobenius norm": lambda: Written(lambda s, x: x * torch.linalg.matrix_norm(x, keepdim=True)),
    "norms 0 and -inf": lambda: Written(
        lambda s, x: (
            x * torch.linalg.vector_norm(x.relu(), 0, (2, 3), True)
            + torch.linalg.vector_norm(x, -float("inf"), (-1, -2), True)
        )
    ),
    "normalize": lambda: Written(lambda s, x: F.normalize(x.flatten(2), dim=-1).view_as(x)),
    "lp_pool2d of the map's size": lambda: Written(lambda s, x: x * F.lp_pool2d(x.abs(), 2, x.shape[2:])),
    "1-D pools": lambda: Written(
        lambda s, x: x * (F.adaptive_max_pool1d(x.flatten(2), 1) + s.pool(x.flatten(2))).unsqueeze(-1),
        pool=nn.AdaptiveAvgPool1d(1),
    ),
    "torch.instance_norm": lambda: Written(
        lambda s, x: torch.instance_norm(x, s.weight.view(-1), None, None, None, True, 0.1, 1e-3, False),
        weight=parameter(),
    ),
    "layer_norm over channels and positions": lambda: Written(lambda s, x: F.layer_norm(x, x.shape[1:])),
    "layer_norm over positions": lambda: Written(lambda s, x: F.layer_norm(x, x.size()[2:], eps=1e-3)),
    "GroupNorm of the flat map": lambda: Written(
        lambda s, x: s.norm(x.flatten(2)).view_as(x), norm=nn.GroupNorm(2, 8)
    ),
    "group norm by hand": lambda: Written(by_hand, weight=parameter()),
    "softmax-weighted, bmm": lambda: weighing(lambda x, w: torch.bmm(w, x.transpose(1, 2)))(),
    "softmax-weighted, mT": lambda: weighing(lambda x, w: x @ w.mT)(),
    "softmax-weighted, einsum": lambda: weighing(lambda x, w: torch.einsum("bcn,bkn->bck", x, w))(),
    "softmax-weighted, mean": lambda: weighing(lambda x, w: (x * w).mean(-1, keepdim=True) * x.shape[-1])(),
    "softmax-weighted, several heads": lambda: Written(
        lambda s, x: x + (x.flatten(2) @ s.logits(x).flatten(2).softmax(-1).mT).mean(-1)[..., None, None],
        logits=nn.Conv2d(8, 3, 1),
    ),
    "weighted by hand": lambda: Written(
        lambda s, x: x + (x * s.gate(x)).sum((2, 3), keepdim=True) / s.gate(x).sum((2, 3), keepdim=True),
        gate=nn.Sequential(nn.Conv2d(8, 1, 1), nn.Sigmoid()),
    ),
    "selective kernels": lambda: Written(selective, fc=nn.Linear(8, 16)),
    "einops": lambda: Written(with_einops, fc=nn.Linear(8, 8)),
}
every_spelling = pytest.mark.parametrize("spelling", SPELLINGS)


def network(spelling: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), SPELLINGS[spelling]()).double().eval()


def reference(model: Callable[[Tensor], Tensor], x: Tensor, window: tuple[int, int]) -> Tensor:
    """At each position the model, pointwise but for its statistics, run on the crop that is its window.

    The crops of all positions are images of one batch.
    """
    height, width = x.shape[2:]
    starts = [
        [(min(max(i - (k - 1) // 2, 0), n - k), k) for i in range(n)]
        for n, k in ((height, min(window[0], height)), (width, min(window[1], width)))
    ]
    crops, inside = [], []
    for i, (top, rows) in enumerate(starts[0]):
        for j, (left, columns) in enumerate(starts[1]):
            crops.append(x[:, :, top : top + rows, left : left + columns])
            inside.append((i - top, j - left))
    values = model(torch.cat(crops)).unflatten(0, (len(crops), -1))
    at_positions = [value[:, :, i, j] for value, (i, j) in zip(values, inside, strict=True)]
    return torch.stack(at_positions, -1).unflatten(-1, (height, width))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the maps are tiny
    yield
    torch.set_num_threads(threads)


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
    "branch on the size": (
        lambda s, x: x * x.mean((2, 3), keepdim=True) if x.shape[2] > 4 else x,
        "size of the map",
    ),
    "over the batch": (lambda s, x: x * x.mean(), "over the batch"),
    "deviation from the window's own mean": (
        lambda s, x: x * (x - x.mean((2, 3), keepdim=True)).abs().mean((2, 3), keepdim=True),
        "has entered already",
    ),
    "rows alone": (lambda s, x: x * x.mean(3, keepdim=True), "rows or columns alone"),
    "covariance": (
        lambda s, x: (s.fc(x.flatten(2) @ x.flatten(2).mT) @ x.flatten(2)).view_as(x),
        "matmul over all positions",
    ),
    "attention beside a mean": (
        lambda s, x: (
            ((x.flatten(2).mT @ x.flatten(2)).softmax(1) @ x.flatten(2).mT).mT.view_as(x)
            * x.mean((2, 3), keepdim=True)
        ),
        "matmul over all positions",
    ),
    "attention with heads in the batch": (
        lambda s, x: (
            torch.bmm(x.view(-1, 4, positions(x)), x.view(-1, 4, positions(x)).mT)
            .softmax(-1)
            .mean((1, 2))
            .view(-1, 2, 1, 1)
            .mean()
            * x
            * x.amax((2, 3), keepdim=True)
        ),
        "matmul over all positions",
    ),
    "Fourier transform beside a mean": (
        lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]) * x.mean((2, 3), keepdim=True),
        "fft over all",
    ),
    "running sum beside a mean": (
        lambda s, x: x.flatten(2).cumsum(-1).view_as(x) * x.mean((2, 3), keepdim=True),
        "cumsum over all",
    ),
    "Fourier transform": (lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]), "fft over all"),
    "median": (lambda s, x: x * x.flatten(2).median(-1)[0][..., None, None], "median over all positions"),
    "the place of a maximum": (lambda s, x: x * x.flatten(2).max(-1)[1][..., None, None], "the place of a"),
    "one image of the batch": (lambda s, x: x * x[0].mean((1, 2))[:, None, None], "one image of the batch"),
    "another resolution": (lambda s, x: F.avg_pool2d(x, 2) * x.mean((2, 3), keepdim=True), "another size"),
}


def test_a_tensor_made_on_the_way_is_kept() -> None:
    function = lambda s, x: x * x.mean((2, 3), keepdim=True) * torch.arange(8, dtype=x.dtype).view(1, 8, 1, 1)  # noqa: E731
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Written(function)).double()
    image = torch.rand(2, 3, 12, 9, dtype=torch.float64)
    x = model[0](image)
    mean = tlsc.functional.local_mean(x, WINDOW)
    expected = x * mean * torch.arange(8, dtype=x.dtype).view(1, 8, 1, 1)
    torch.testing.assert_close(tlsc.convert(model, WINDOW)(image), expected)


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_local_form_stays_global_with_the_reason(case: str) -> None:
    function, reason = REFUSED[case]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Written(function, fc=nn.Linear(8, 8)), nn.InstanceNorm2d(8))
    if case == "head":
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), Written(function, fc=nn.Linear(8, 8)))
    left = [site for site in tlsc.plan(model, WINDOW) if site.action == "left global"]
    # Beside what decides, the other statistics of the same forward are listed, too.
    assert left
    assert all(reason in site.reason for site in left), left
    assert {site.path for site in left} == {left[0].path}
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


@torch.no_grad()
def test_an_argument_may_decide_the_course() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None, twice: bool = False) -> Tensor:
            x = x if y is None else x + y
            gate = x.mean((2, 3), keepdim=True)
            return x * gate * gate if twice else x * gate

    original, x = Optional().double(), torch.randn(1, 3, 12, 9, dtype=torch.float64)
    model = tlsc.convert(Optional().double(), WINDOW)
    assert torch.equal(model(x), model(x, None, twice=False))
    twice, sum_of = (reference(lambda x, c=call: c(original, x), x, WINDOW) for call in CALLS)
    torch.testing.assert_close(model(x, twice=True), twice, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x, x), sum_of, rtol=1e-9, atol=1e-9)


CALLS: tuple[Callable[[Any, Tensor], Tensor], ...] = (lambda m, x: m(x, twice=True), lambda m, x: m(x, x))


@torch.no_grad()
def test_buffers_are_read_when_they_are_used() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.scale * 2).view(1, -1, 1, 1) * x.mean((2, 3), keepdim=True)

    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 8, 1), Scaled()), WINDOW)
    x = torch.randn(1, 3, 12, 9)
    before = model(x)
    model.load_state_dict(model.state_dict() | {"1.scale": torch.full((8,), 3.0)})
    torch.testing.assert_close(model(x), 3 * before)


@torch.no_grad()
def test_maps_in_a_list() -> None:
    class Fusion(nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            batch, channels, height, width = maps[0].shape
            both = torch.cat(maps, 1).view(batch, 2, channels, height, width)
            weights = both.sum(1).mean((2, 3)).view(batch, 1, channels, 1, 1)
            return (both * torch.cat([weights, 1 - weights], 1)).sum(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = Fusion()

        def forward(self, x: Tensor) -> Tensor:
            return self.fusion([x, x * x])

    original, x = Model(), torch.randn(2, 3, 11, 9, dtype=torch.float64)
    local = tlsc.convert(Model(), WINDOW)
    torch.testing.assert_close(local(x), reference(original, x, WINDOW), rtol=1e-9, atol=1e-9)
