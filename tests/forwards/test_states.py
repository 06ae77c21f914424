"""A rewritten forward follows what the original reads when it runs: flags, attributes, arguments, dtypes, modes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tlsc
from tlsc._forwards import variants
from tlsc._statistics import autocast

WINDOW = 32


class _Sign(torch.autograd.Function):
    """Clamps, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (0.1 + (x > 0))


class _Net(nn.Module):
    """``mean`` is the global one in the network, a local one in the oracle."""

    def __init__(self, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.strength, self.steps = 1.0, 0
        self.register_buffer("seen", torch.zeros(()))
        self.own_mean = mean

    def gated(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True) if self.own_mean is None else self.own_mean(x)
        return x * torch.sigmoid(mean)


class _Custom(_Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leave(self.gated(_Sign.apply(self.enter(x))))
        return y


class _Counts(_Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.steps += 1
        y: Tensor = self.leave(self.gated(self.enter(x)))
        return y


class _Keeps(_Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.enter(x)
        y: Tensor = self.leave(self.gated(self.last))
        return y


class _Detached(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        with torch.no_grad():
            mean = x.mean((2, 3), keepdim=True) if self.own_mean is None else self.own_mean(x)
        y: Tensor = self.leave(x - mean)
        return y


class _Keywords(_Net):
    def forward(self, x: Tensor, *, scale: float = 1.0, extra: Tensor | None = None, **more: Any) -> Tensor:
        y = self.gated(self.enter(x)) * scale * self.strength
        y = y if extra is None else y + extra
        result: Tensor = self.leave(y * 2 if more.get("twice") else y)
        return result


class _Deep(_Net):
    def forward(self, x: Tensor) -> Any:
        y = self.gated(self.enter(x))
        return {"out": self.leave(y), "deep": (y,)} if self.training else self.leave(y)


def _local(x: Tensor) -> Tensor:
    return tlsc.functional.local_mean(x, WINDOW)


def _agree(model: nn.Module, oracle: nn.Module, x: Tensor, tolerance: float, **keywords: Any) -> None:
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    got, expected = tree_leaves(model(ours, **keywords)), tree_leaves(oracle(theirs, **keywords))
    assert [tuple(leaf.shape) for leaf in got] == [tuple(leaf.shape) for leaf in expected]
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= tolerance
    gradients = [
        torch.autograd.grad(sum(leaf.float().square().sum() for leaf in leaves), given)[0]
        for leaves, given in ((got, ours), (expected, theirs))
    ]
    assert (gradients[0] - gradients[1]).abs().max() <= tolerance * gradients[1].abs().max()


@pytest.mark.parametrize("kind", [_Custom, _Counts, _Keeps, _Detached, _Keywords, _Deep])
def test_the_converted_forward_follows_the_state(kind: type[_Net]) -> None:
    oracle, x = kind(_local).eval(), torch.randn(2, 3, 60, 50, generator=torch.Generator().manual_seed(1))
    model = tlsc.convert(kind().eval(), WINDOW)
    assert [site.action for site in tlsc.plan(model)] == ["exact"]
    _agree(model, oracle, x, 1e-5)
    _agree(model, oracle, x[:1], 1e-5)
    _agree(model.train(), oracle.train(), x, 1e-5)
    model.eval(), oracle.eval()
    model.strength, oracle.strength = 0.3, 0.3  # type: ignore[assignment]
    _agree(model, oracle, x, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        _agree(model, oracle, x, 3e-2)
    _agree(model.double(), oracle.double(), x.double(), 1e-10)
    if kind is _Keywords:
        for keywords in ({"scale": 2.5}, {"extra": torch.ones(1)}, {"twice": True}):
            _agree(model, oracle, x.double(), 1e-10, **keywords)
    assert (model.steps, model.seen) == (oracle.steps, oracle.seen)


class _Numbers(_Net):
    """A counter, and a number on which the course depends, beside one on which it does not."""

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        if self.strength > 2:
            x = 2 * x
        mean = x.mean((2, 3), keepdim=True) if self.own_mean is None else self.own_mean(x)
        return x * (mean * self.strength + self.steps) * self.slope

    slope = 1.0  # read from the class until it is set


def test_counters_and_numbers_cost_no_recording_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, model = _Numbers(_local).eval(), tlsc.convert(_Numbers().eval(), WINDOW, check=False)
    recorded: list[Any] = []
    original = variants.trace

    def noted(*args: Any, **kwargs: Any) -> Any:
        recorded.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(variants, "trace", noted)
    x = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    counts = []
    for call, strength in enumerate((1.0, 1.0, 1.5, 3.0, 1.0, 3.0, 3.0, 3.0)):
        model.strength, oracle.strength = strength, strength
        model.slope, oracle.slope = 1.0 + call, 1.0 + call
        torch.testing.assert_close(model(x), oracle(x))
        counts.append(len(recorded))
    assert model.steps == oracle.steps == 8
    assert counts[-1] == counts[4]


class _Wide(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        return self.norm(x), x * x.sum((2, 3), keepdim=True), self.gated(x)


@torch.no_grad()
def test_what_autocast_has_in_float32_is_so_after_converting(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA; its list stands for the CPU's here, on which the original keeps the type."""
    model, x = tlsc.convert(_Wide().eval(), WINDOW, check=False), torch.rand(1, 3, 40, 50)
    with torch.autocast("cpu", torch.bfloat16):
        assert [out.dtype for out in model(x)] == [torch.bfloat16] * 3
        monkeypatch.setitem(autocast._WIDE, "cpu", autocast._WIDE["cuda"])
        assert [out.dtype for out in model(x)] == [torch.float32, torch.float32, torch.bfloat16]
    assert [out.dtype for out in model(x)] == [torch.float32] * 3


class _Numbered(_Net):
    """A number in a parameter, whether one asks for a gradient, the children in a list, a partial."""

    def __init__(self, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(mean)
        self.gain, self.blocks = nn.Parameter(torch.tensor(2.0)), nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.limit: Any = functools.partial(torch.clamp, max=0.5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        x = self.limit(x) * (self.gain.item() if self.gain * 2 > 1 else 1.0)
        x = self.gated(2 * x if self.enter.weight.requires_grad else x)
        y: Tensor = _scaled(x)
        return y


def _scaled(x: Tensor) -> Tensor:
    return x * 3


@torch.no_grad()
def test_what_else_a_forward_reads_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    models = tlsc.convert(_Numbered().eval(), WINDOW, check=False), _Numbered(_local).eval()
    assert [site.action for site in tlsc.plan(models[0])] == ["exact"]
    x = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    changes: list[Callable[[Any], Any]] = [
        lambda model: None,
        lambda model: model.gain.fill_(0.3),
        lambda model: model.blocks.append(nn.Identity()),
        lambda model: setattr(model, "limit", functools.partial(torch.clamp, max=0.1)),
        *(lambda model, k=k: setattr(model, "limit", lambda x: x * k) for k in (2.0, 3.0)),
        lambda model: model.requires_grad_(False),
        lambda model: monkeypatch.setitem(globals(), "_scaled", lambda x: x / 2),
    ]
    for change in changes:
        for model in models:
            change(model)
        torch.testing.assert_close(models[0](x), models[1](x))


class _Frames(_Net):
    """Frames in a dimension of their own, folded into the batch, and back."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return self.gated(x)
        y: Tensor = self.gated(x.flatten(0, 1)).view(x.shape)
        mean = (
            x.mean((3, 4), keepdim=True) if self.own_mean is None else self.own_mean(x.flatten(0, 1)).view(x.shape)
        )
        return y + mean


class _Shuffled(_Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return self.gated(x)
        images, frames, channels, height, width = x.shape
        rows = x.permute(0, 2, 1, 3, 4).reshape(images * channels, frames * height, width, 1)
        return x * rows.mean((1, 2)).view(images, 1, channels, 1, 1)


@torch.no_grad()
def test_frames_after_images() -> None:
    oracle, x = _Frames(_local).eval(), torch.rand(2, 3, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    for example in (None, lambda height, width: torch.zeros(1, 2, 3, height, width)):
        model = tlsc.convert(_Frames().eval(), WINDOW, check=False, example_input=example)
        torch.testing.assert_close(model(x), oracle(x))
    with pytest.raises(tlsc.TLSCError, match="mean is not understood"):
        tlsc.convert(_Shuffled().eval(), WINDOW, check=False)(x)


class _Gated(nn.Module):
    """A pool that becomes part of its owner's local form."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) + x.mean((2, 3), keepdim=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", ["gate", "gate.0"])
def test_a_hook_that_would_not_be_called_is_refused(path: str) -> None:
    model = tlsc.convert(_Gated().double().eval(), 5, check=False)
    large, small = (torch.rand(1, 2, n, n, dtype=torch.float64) for n in (9, 4))
    seen: list[str] = []
    expected = model(large)
    handle = model.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    with pytest.raises(
        tlsc.TLSCError, match=rf"the hooks of {path} changed .*has hooks, which would not be called"
    ):
        model(large)
    assert not seen
    model(small)  # as the original
    assert seen
    handle.remove()
    torch.testing.assert_close(model(large), expected, rtol=0, atol=0)


class _Gate(_Gated):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", ["gate", "gate.0"])
def test_a_hook_that_was_there_before_is_called(path: str) -> None:
    model, seen = _Gate().double().eval(), []
    expected = tlsc.convert(copy.deepcopy(model), 5, check=False)
    model.get_submodule(path).register_forward_hook(lambda module, given, out: seen.append(type(out)))
    tlsc.convert(model, 5, check=False)
    x = torch.rand(1, 2, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), expected(x))
    assert seen == [Tensor]


class _Counted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x > 0).sum((2, 3), keepdim=True)


class _Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(x, 2 * x)
        return (z * z.mean((2, 3), keepdim=True)).abs()


@pytest.mark.parametrize(
    ("kind", "what"), [(_Counted, "sum of whole numbers"), (_Complex, "mean of complex numbers")]
)
def test_statistics_of_numbers_that_are_not_floating_are_left(kind: type[nn.Module], what: str) -> None:
    assert what in tlsc.plan(nn.Sequential(nn.Conv2d(3, 2, 1), kind()), 5).left[0].reason


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_derivatives_forward() -> None:
    model = tlsc.convert(_Gated().double().eval(), 5, check=False)
    x, t = torch.rand(2, 1, 2, 7, 9, dtype=torch.float64)
    _, found = torch.func.jvp(model, (x,), (t,))
    expected = (model(x + 1e-6 * t) - model(x - 1e-6 * t)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
