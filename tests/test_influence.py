"""How far pixels reach: against receptive fields counted by hand, and culprits planted in small networks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc
from tlsc.adapters import UNet
from tlsc.errors import ArgumentTypeError, ArgumentValueError, ProbeError, TLSCError
from tlsc.eval.cli import main

# Of a U-Net of two levels, in pixels: blocks of two 3×3 convolutions at levels 0 (twice) and 1, and the last one.
RECEPTIVE_FIELD = 2 + 2 * 2 + 2 + 1 + 1  # one more for the 2×2 steps down and up


def _conv(out_channels: int = 4, in_channels: int = 4, kernel: Any = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding="same", **settings)


def _unet(**settings: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(4, levels=2, **settings)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class FunctionalMean(nn.Module):
    """A gate without a pooling module; children before and behind the call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class ScaledByMean(nn.Module):
    """No module behind the call."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True)


class SpatialAttention(nn.Module):
    """Every position attends to all."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(4, 12, 1)
        self.softmax = nn.Softmax(-1)
        self.project = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        attention = self.softmax(q.transpose(1, 2) @ k)
        return self.project((v @ attention.transpose(1, 2)).view_as(x))


class Tokens(nn.Module):
    """Layers over (N, positions, C), with a mean over positions between them."""

    def __init__(self, mix: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.inner(self.norm(x.flatten(2).transpose(1, 2)))
        if self.mix:
            tokens = tokens + tokens.mean(1, keepdim=True)
        return self.outer(tokens).transpose(1, 2).reshape_as(x)


class Windows(nn.Module):
    """Attention inside 8×8 windows, which go to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1)
        tokens = self.linear(self.norm(tokens.reshape(-1, 8, 8, c)))
        tokens = tokens + tokens.mean((1, 2), keepdim=True)
        tokens = tokens.view(n, h // 8, w // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4)
        return tokens.reshape(n, c, h, w)


class Halves(nn.Module):
    """Each half of the image by itself, as multi-patch networks do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(half) for half in x.chunk(2, 2)], 2)


def _network(body: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(_conv(4, 3), Residual(_conv()), body, _conv(3, 4))


# ------------------------------------------------------------------------------------------ local networks


@pytest.mark.parametrize(
    ("layers", "rows", "columns"),
    [
        ([(3, 1), (5, 1)], 3, 3),
        ([((1, 7), 1), (3, 2)], 2, 5),
        ([(3, 1)] * 12, 12, 12),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [32, (31, 40)], ids=str)
def test_convolutions_reach_as_far_as_their_receptive_field(
    layers: list[tuple[Any, int]], rows: int, columns: int, size: Any
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(_conv(2, 2, kernel, dilation=dilation) for kernel, dilation in layers))
    found = tlsc.influence(net, size)
    height, width = found.size
    assert found.size == (size if isinstance(size, tuple) else (size, size))
    assert found.reach_per_axis == (rows, columns)
    assert found.reach == max(rows, columns)
    assert not found.far
    assert found.culprit is None
    assert found.sources == ()
    assert found.distance.tolist() == list(range(max(height, width) // 2 + 1))
    assert (found.gradient_max[found.reach + 1 :] == 0).all()
    assert (found.gradient_max[: found.reach + 1] > 0).all()
    assert (found.gradient_mean <= found.gradient_max).all()
    assert (found.change[found.change_distance >= found.reach] == 0).all()
    assert (found.change[found.change_distance < found.reach] > 0).all()
    assert found.gradient_map.shape == found.size
    assert found.gradient_map.max() == found.gradient_max.max()


def test_the_gradient_is_that_of_the_output() -> None:
    net = nn.Conv2d(1, 1, 3, padding=1)
    found = tlsc.influence(net, 16)
    expected = net.weight.detach().abs()[0, 0].double().numpy()
    row, column = found.centre
    np.testing.assert_allclose(found.gradient_map[row - 1 : row + 2, column - 1 : column + 2], expected)
    ring = np.delete(expected.ravel(), 4)
    np.testing.assert_allclose(found.gradient_max[:2], [expected[1, 1], ring.max()])
    np.testing.assert_allclose(found.gradient_mean[:2], [expected[1, 1], ring.mean()])


def test_the_change_tells_where_gradients_vanish() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            blurred = F.avg_pool2d(x, 5, 1, 2)
            return (blurred > 0.4).to(x)

    found = tlsc.influence(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), Steps()), 24, samples=4)
    assert np.isnan(found.gradient_max).all() or (found.gradient_max == 0).all()
    assert 0 <= found.reach <= 2
    pooled = tlsc.influence(nn.Sequential(nn.MaxPool2d(7, 1, 3)), 24, samples=4)
    assert pooled.reach == 3


@pytest.mark.parametrize("body", [Tokens(mix=False), Windows(), Halves(Residual(_conv()))], ids=type)
def test_local_code_of_any_layout_is_not_blamed(body: nn.Module) -> None:
    found = tlsc.influence(_network(body), (48, 64), radius=20)
    assert not found.far


def test_no_module_is_blamed_for_a_sum_of_small_steps() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(Residual(_conv(3, 3)) for _ in range(8)))
    found = tlsc.influence(deep, 48, radius=5)
    assert found.far
    assert found.reach == 8
    assert found.culprit is None
    assert "windows and receptive fields add up" in str(found)


# ---------------------------------------------------------------------------------------- global networks


def test_a_squeeze_excitation_unet_before_after_and_with_one_site_left_out() -> None:
    window, size = 8, 64
    net = _unet(squeeze_excitation=(0, 1))
    before = tlsc.influence(net, size)
    assert before.far
    assert before.reach == size // 2
    assert str(before.culprit) == "encoder.0.attention.gate.0 (AdaptiveAvgPool2d)"
    assert [source.path for source in before.sources] == [f"encoder.{i}.attention.gate.0" for i in (0, 1)]

    after = tlsc.influence(tlsc.convert(net, window), size)
    # One window follows the other.
    assert window // 2 < after.reach <= 2 * (window // 2) + RECEPTIVE_FIELD
    assert not after.far
    assert after.culprit is None
    assert after.sources == ()
    assert (after.change[after.change_distance >= after.reach] <= 1e-10 * after.change.max()).all()
    assert before.change[-1] > 1e-10 * before.change.max()

    left = tlsc.influence(tlsc.convert(net, window, exclude="encoder.1.attention.gate.0"), size)
    assert left.far
    assert left.culprit is not None
    assert left.culprit.path == "encoder.1.attention.gate.0"
    assert left.sources == (left.culprit,)


def test_half_instance_norm_and_one_left_out() -> None:
    net = _unet(half_norm=(0, 1))
    assert str(tlsc.influence(net, 32).culprit) == "encoder.0.norm.norm (InstanceNorm2d)"
    assert not tlsc.influence(tlsc.convert(net, 8), 64).far
    left = tlsc.influence(tlsc.convert(net, 8, exclude="encoder.1.*"), 64)
    assert str(left.culprit) == "encoder.1.norm.norm (InstanceNorm2d)"
    assert len(left.sources) == 1


@pytest.mark.parametrize(
    ("body", "culprit"),
    [
        (FunctionalMean(), "2 (FunctionalMean, in its own forward)"),
        (Residual(FunctionalMean()), "2.body (FunctionalMean, in its own forward)"),
        (ScaledByMean(), "2 (ScaledByMean)"),
        (SpatialAttention(), "2 (SpatialAttention, in its own forward)"),
        (Tokens(mix=True), "2 (Tokens, in its own forward)"),
        (nn.GroupNorm(2, 4), "2 (GroupNorm)"),
        (Halves(ScaledByMean()), "2.body (ScaledByMean)"),
        (nn.Sequential(Windows(), nn.InstanceNorm2d(4)), "2.1 (InstanceNorm2d)"),
    ],
    ids=str,
)
def test_the_innermost_module_is_named(body: nn.Module, culprit: str) -> None:
    found = tlsc.influence(_network(body), 24)
    assert found.far
    assert str(found.culprit) == culprit
    assert found.culprit in found.sources
    # What joins the halves changes too, where their middle is not the image's.
    assert len(found.sources) == 1 or isinstance(body, Halves)
    assert culprit in str(found)


def test_depth_does_not_hide_the_module() -> None:
    # Before the pool, receptive fields add up to more than the region in which the inputs agree.
    torch.manual_seed(0)
    layers = [Residual(_conv(3, 3)) for _ in range(14)]
    net = nn.Sequential(*layers, ScaledByMean(), *(Residual(_conv(3, 3)) for _ in range(3)))
    assert str(tlsc.influence(net, 32).culprit) == "14 (ScaledByMean)"


def test_a_module_without_effect_on_the_output_is_not_the_culprit() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = _conv(3, 3)
            self.unused = nn.InstanceNorm2d(3)
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return 0 * self.unused(x) + self.norm(x)

    found = tlsc.influence(Unused(), 32)
    assert found.culprit is not None
    assert found.culprit.path == "norm"
    assert [source.path for source in found.sources] == ["unused", "norm"]


def test_a_shared_module_is_named_where_it_is_called() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.InstanceNorm2d(3)
            self.spare = nn.Sequential(norm)  # not called
            self.used = nn.Sequential(_conv(3, 3), norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert str(tlsc.influence(Twice(), 24).culprit) == "used.1 (InstanceNorm2d)"


def test_the_whole_model_may_be_the_culprit() -> None:
    assert str(tlsc.influence(nn.InstanceNorm2d(3), 16).culprit) == "(the model) (InstanceNorm2d)"


def test_one_axis_only() -> None:
    class Strips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean(3, keepdim=True)

    found = tlsc.influence(_network(Strips()), (32, 48))
    assert found.reach_per_axis == (3, 24)
    assert found.far
    assert str(found.culprit) == "2 (Strips)"
    local = tlsc.influence(tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3)), (8, 16)), (48, 64))
    assert local.reach_per_axis == (4, 8)
    assert not local.far


def test_the_radius_decides() -> None:
    net = tlsc.convert(nn.Sequential(_conv(3, 3), nn.InstanceNorm2d(3)), 16)
    assert not tlsc.influence(net, 64, radius=9).far
    found = tlsc.influence(net, 64, radius=(9, 7))
    assert found.far
    assert str(found.culprit) == "1 (LocalInstanceNorm2d)"
    assert "beyond 9 rows and 7 columns" in found.summary()


# -------------------------------------------------------------------------------------- inputs and outputs


class TwoImages(nn.Module):
    """Three outputs; the second input has half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(3, 3)
        self.norm = nn.InstanceNorm2d(2)

    def forward(self, image: Tensor, half: Tensor, scale: float) -> dict[str, Any]:
        vector = image.mean((2, 3))
        return {
            "vector": vector,
            "maps": [self.conv(image) * scale, F.interpolate(self.norm(half), scale_factor=4)],
        }


@pytest.mark.parametrize(
    ("output", "culprit"),
    [(None, None), (1, None), (2, "norm (InstanceNorm2d)"), (lambda out: out["maps"][1], "norm (InstanceNorm2d)")],
)
@pytest.mark.parametrize("form", [tuple, "function"])
def test_several_inputs_and_outputs(output: Any, culprit: str | None, form: Any) -> None:
    def args(height: int, width: int) -> Any:
        return torch.zeros(1, 3, height, width), torch.zeros(1, 2, height // 2, width // 2), 0.5

    example = args if form == "function" else args(20, 20)
    found = tlsc.influence(TwoImages(), 32, example_input=example, output=output)
    assert found.far == (culprit is not None)
    assert (None if found.culprit is None else str(found.culprit)) == culprit
    if culprit is None:
        assert found.reach == 1


@pytest.mark.parametrize(("channels", "scale"), [(1, 1), (5, 1), (4, 2)])
def test_channels_are_found_and_outputs_may_have_another_size(channels: int, scale: int) -> None:
    net = nn.Sequential(_conv(4 * scale**2, channels), nn.PixelShuffle(scale))
    found = tlsc.influence(net, 24)
    assert found.reach == 1
    assert found.centre == (12, 12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "net"}, ArgumentTypeError, ["model", "str"]),
        ({"size": 0}, ArgumentValueError, ["size", "0"]),
        ({"size": 2}, ArgumentValueError, ["size", "3", "2×2"]),
        ({"size": (3, 4, 5)}, ArgumentValueError, ["size"]),
        ({"radius": -1}, ArgumentValueError, ["radius", "-1"]),
        ({"samples": 0}, ArgumentValueError, ["samples"]),
        ({"seed": 0.5}, ArgumentTypeError, ["seed", "0.5"]),
        ({"output": "first"}, ArgumentTypeError, ["output", "first"]),
        ({"output": 3}, ArgumentValueError, ["output=3", "(1, 3, 16, 16)"]),
        ({"output": lambda out: out.mean()}, ArgumentValueError, ["output", "()"]),
        ({"example_input": "image"}, ArgumentTypeError, ["example_input", "str"]),
        ({"example_input": torch.zeros(3, dtype=torch.long)}, ArgumentValueError, ["example_input"]),
        ({"example_input": torch.zeros(1, 2, 16, 16)}, ProbeError, ["16×16", "example_input"]),
        ({"model": nn.Sequential(nn.LazyConv2d(3, 1))}, ProbeError, ["lazy"]),
        ({"model": nn.Sequential(_conv(3, 3), nn.Flatten())}, ArgumentValueError, ["no map", "(1, 768)"]),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 40))}, ProbeError, ["16×16"]),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[TLSCError], words: list[str]) -> None:
    settings: dict[str, Any] = {"model": nn.Sequential(_conv(3, 3)), "size": 16, **change}
    with pytest.raises(error) as caught:
        tlsc.influence(settings.pop("model"), settings.pop("size"), **settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_values_that_are_not_finite_are_an_error() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x - 2)

    with pytest.raises(ProbeError, match="not finite"):
        tlsc.influence(nn.Sequential(_conv(3, 3), Logarithm()), 16)


# ------------------------------------------------------------------------------------------- nothing changes


def _state(net: nn.Module) -> dict[str, Any]:
    return {
        "values": {name: (id(value), value.clone()) for name, value in net.state_dict(keep_vars=True).items()},
        "grads": {name: value.grad for name, value in net.named_parameters()},
        "requires": {name: value.requires_grad for name, value in net.named_parameters()},
        "modules": [
            (name, id(module), module.training, len(module.__dict__)) for name, module in net.named_modules()
        ],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in net.modules()
        ],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


class NotCopied(nn.Module):
    """Holds something that cannot be copied, and writes to a buffer in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)
        self.lines = (line for line in "abc")
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert x.dtype == torch.float32
        return self.norm(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_the_model_is_not_touched(training: bool, copied: bool) -> None:
    seen: list[Any] = []
    parts = [_conv(3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.InstanceNorm2d(3)]
    net = nn.Sequential(*parts, *([] if copied else [NotCopied()])).train(training)
    net[0].register_forward_hook(lambda *args: seen.append(args))
    net[0].weight.requires_grad_(False)
    net[1].weight.grad = torch.ones(3)
    before = _state(net)
    found = tlsc.influence(net, 24)
    assert _same(before, _state(net))
    assert seen == []
    assert str(found.culprit) == "4 (InstanceNorm2d)"
    assert found.dtype == (torch.float64 if copied else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_measured_in_double(dtype: torch.dtype) -> None:
    found = tlsc.influence(nn.Sequential(_conv(3, 3), nn.InstanceNorm2d(3)).to(dtype), 24)
    assert found.dtype == torch.float64
    assert str(found.culprit) == "1 (InstanceNorm2d)"


def test_the_seed_decides_all() -> None:
    net = nn.Sequential(_conv(3, 3), nn.InstanceNorm2d(3))
    one, same, other = (tlsc.influence(net, 16, seed=seed).as_dict() for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: nn.Sequential(nn.utils.weight_norm(net[0]), net[1]),
        lambda net: nn.Sequential(nn.utils.spectral_norm(net[0]), net[1]),
        lambda net: nn.Sequential(nn.utils.parametrizations.weight_norm(net[0]), net[1]),
        lambda net: nn.Sequential(torch.jit.trace(net[0], torch.zeros(1, 3, 24, 24)), net[1]),
        nn.DataParallel,
        torch.compile,
    ],
)
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    found = tlsc.influence(wrap(nn.Sequential(_conv(3, 3), nn.InstanceNorm2d(3))), 24)
    assert found.culprit is not None
    assert found.culprit.path.rpartition(".")[2] == "1"
    assert found.culprit.operation == "InstanceNorm2d"


# --------------------------------------------------------------------------------------- pictures, command line


def test_pictures_are_written(tmp_path: Path) -> None:
    net = nn.Sequential(_conv(3, 3), nn.InstanceNorm2d(3))
    before, after = tlsc.influence(net, 32), tlsc.influence(tlsc.convert(net, 8), 32)
    before.draw(tmp_path / "one.png")
    after.draw(str(tmp_path / "both.png"), before=before, labels=("global", "local"))
    for name in ("one.png", "both.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "both.png").stat().st_size > (tmp_path / "one.png").stat().st_size
    assert json.loads(json.dumps(before.as_dict()))["culprit"]["path"] == "1"


FACTORY = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3))
def plain():
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
def broken():
    raise RuntimeError("no weights\\nhere")
def number():
    return 3
constant = 3
class Nets:
    make = staticmethod(make)
"""


@pytest.fixture
def _factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factories.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_factories")
@pytest.mark.parametrize("name", ["my_factories:make", "my_factories:Nets.make"])
def test_inspect_shows_the_influence_of_any_network(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name, "--base-size", "8", "--influence", "--picture", "influence.png"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 site becomes local" in out
    before, after = out.split("after: ")
    assert "input 24×24 pixels" in before
    assert "the first module that lets distant pixels in: 1 (InstanceNorm2d)" in before
    assert "reach 5 pixels (rows 5, columns 5): short of the border" in after
    assert Path("influence.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("_factories")
def test_inspect_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "my_factories:make", "--base-size", "8", "--influence", "32x24", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["sites"][0]["path"] == "1"
    assert data["influence"]["before"]["culprit"]["path"] == "1"
    assert data["influence"]["before"]["size"] == [32, 24]
    assert data["influence"]["after"]["far"] is False
    assert main(["inspect", "my_factories:plain", "--base-size", "8", "--influence", "24"]) == 0
    assert "after: the same" in capsys.readouterr().out
    assert main(["inspect", "my_factories:plain", "--base-size", "8", "--json"]) == 0
    assert "influence" not in json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("_factories")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], ["nothing", "hin-all", "module:factory"]),
        (["no_such_module:make", "--base-size", "8"], ["no_such_module"]),
        (["my_factories:none", "--base-size", "8"], ["none", "my_factories"]),
        (["my_factories:broken", "--base-size", "8"], ["broken", "no weights"]),
        (["my_factories:number", "--base-size", "8"], ["number", "int"]),
        (["my_factories:constant", "--base-size", "8"], ["constant", "int"]),
        (["my_factories:make"], ["--base-size"]),
        (["my_factories:make", "--base-size", "8", "--influence", "2"], ["size", "2×2"]),
    ],
)
def test_what_cannot_be_inspected_is_one_line(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *args]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines


class Faint(nn.Module):
    """A mean so weak beside the values that float32 does not see it arrive."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 10 + 1e-4 * x.mean((2, 3), keepdim=True)


def test_in_the_model_s_own_precision() -> None:
    """The same answers from fewer digits; what is in doubt is looked for in float64."""
    for model, culprit in ((_unet(squeeze_excitation=(0,)), "gate.0"), (nn.Sequential(_conv(3, 3), Faint()), "1")):
        passes: list[int] = []
        quick = tlsc.influence(model, 32, exact=False, samples=1, progress=passes.append)
        exact = tlsc.influence(model, 32)
        assert (quick.dtype, exact.dtype) == (torch.float32, torch.float64)
        assert quick.culprit == exact.culprit
        assert culprit in str(quick.culprit)
        assert quick.reach == exact.reach
        assert passes == list(range(1, len(passes) + 1))
        assert len(passes) > 10
    local = tlsc.influence(tlsc.convert(_unet(squeeze_excitation=(0,)), 8), 64, exact=False, samples=1)
    assert not local.far
    assert local.culprit is None
