"""Exported files compute what the model computes, at every size; what cannot be exported leaves nothing behind.

The oracles are ONNX Runtime and OpenVINO on one side and the converted model in eager PyTorch on the other, whose
statistics other tests compare with naive windows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tlsc
from tlsc import attention
from tlsc._export import export as _export
from tlsc._statistics import any_size as _graph
from tlsc._statistics import any_size_attention as _graph_attention
from tlsc._statistics import reference as _reference
from tlsc._statistics.correction import Correction
from tlsc._statistics.transposed_attention import EPS
from tlsc.adapters import FFDNet, HINet, NLMNet, UNet
from tlsc.errors import ArgumentTypeError, ArgumentValueError, ExportError, TLSCError
from tlsc.eval.cli import main

from .marks import slow


@pytest.fixture(scope="module", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """PyTorch's exporter describes five hundred operators at each export, for half a second: here once an opset."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        describe = ONNXRegistry.from_torchlib
        described: dict[int | None, dict[Any, list[Any]]] = {}
    except (ImportError, AttributeError):  # another version's, as slow as it is
        yield
        return

    def once(*args: Any, **options: Any) -> ONNXRegistry:
        opset = options.get("opset_version", args[0] if args else None)
        if opset not in described:
            described[opset] = describe(*args, **options).functions
        registry = ONNXRegistry()
        if opset is not None:
            registry._opset_version = opset
        registry.functions = {name: list(known) for name, known in described[opset].items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


BASE = 16
SIZES = ((1, 11, 9), (1, 16, 16), (1, 31, 40), (1, 33, 17), (1, 9, 41), (2, 24, 13))


class _Attention(nn.Module):
    """Restormer's."""

    def __init__(self, dim: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        q, k, v = (y.unflatten(1, (len(self.temperature), -1)) for y in parts)
        out = attention.transposed_attention(q, k, v, self.temperature)
        return self.project_out(out.flatten(1, 2))


class _Pools(nn.Module):
    """Functional sites of several kinds: a maximum, a deviation, a linear tail that runs on windows as a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        gate = self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = x * gate + x.amax((2, 3), keepdim=True)
        return x / (x.std((2, 3), keepdim=True) + 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "se": lambda: UNet(8, 2, squeeze_excitation=(1,)),
    "hinet": lambda: HINet(wf=8, depth=2, hin_position_right=1, padder_size=2),
    "nlm": lambda: NLMNet(8, 5, 3),
    "attention": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), _Attention()),
    "pools": _Pools,
}


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():
        # Published initial values switch some branches off.
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1)
        if parameter.dim() == 1:
            parameter.data += 0.5
    if isinstance(network, NLMNet):
        nn.init.constant_(network.gate[-1].bias, 3.0)  # a strength at which it does not leave the image as it is
    return network


def _result(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(image)
    describing = getattr(model, "tlsc", None)
    return out if isinstance(out, Tensor) else out[describing.output]


def _close(got: np.ndarray, expected: Tensor) -> None:
    span = float(expected.max() - expected.min())
    assert got.shape == tuple(expected.shape)
    assert float((torch.from_numpy(got) - expected).abs().max()) <= 1e-4 * span


# The usual run takes attention through torch.export, and non-local means in adapters/test_nlm.py.
CASES = [slow("nlm", 1), slow("attention", 1), ("pools", 2), slow("se", 3), slow("hinet", 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def exported(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[str, int], tuple[nn.Module, Path]]:
    """A network and its file, which takes seconds to write: the tests share it.

    Whichever test comes first sees to it that exporting says nothing.
    """

    def get(name: str, stride: int) -> tuple[nn.Module, Path]:
        model = tlsc.convert(_network(name), BASE, stride=stride)
        path = folder / f"{name}-{stride}.onnx"
        if not path.exists():
            with caplog.at_level(logging.WARNING):
                tlsc.export(model, path, sizes=SIZES[:1])
            assert capfd.readouterr() == ("", "")
            assert not caplog.records
        return model, path

    return get


Exported = Callable[[str, int], tuple[nn.Module, Path]]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_do_something(name: str) -> None:
    """What follows would hold of one that returns its input, or the same whatever it is given."""
    image = torch.rand(1, 3, 40, 56)
    out, other = (_result(_network(name), x) for x in (image, image.flip(2)))
    assert float(out.std()) > 1e-2
    assert float((out - other).abs().max()) > 1e-2
    assert out.shape != image.shape or float((out - image).abs().max()) > 1e-2


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_onnx_runtime_agrees_at_every_size(exported: Exported, name: str, stride: int) -> None:
    model, path = exported(name, stride)
    session = onnxruntime.InferenceSession(str(path))
    for batch, height, width in SIZES:
        image = torch.rand(batch, 3, height, width)
        _close(session.run(None, {"image": image.numpy()})[0], _result(model, image))


@pytest.mark.filterwarnings("ignore:converting moves the output")
@pytest.mark.parametrize(("name", "stride"), [slow("se", 1), slow("se", 3), ("pools", 2)])
def test_a_calibrated_model_is_exported_with_its_corrections(name: str, stride: int, tmp_path: Path) -> None:
    """At sizes below, at and beyond the window, on one axis and both; not what it would be without corrections."""
    model = tlsc.convert(_network(name), BASE, stride=stride)
    plain = _result(model, image := torch.rand(1, 3, 70, 90))
    images = torch.rand(4, 3, 6, 6).repeat_interleave(24, 2).repeat_interleave(24, 3)
    assert any(site.fit and site.fit.kept for site in tlsc.calibrate(model, images))
    assert float((_result(model, image) - plain).abs().max()) > 1e-2 * float(plain.std())
    tlsc.export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch, height, width in (*SIZES, (1, 70, 90)):
        image = torch.rand(batch, 3, height, width)
        _close(session.run(None, {"image": image.numpy()})[0], _result(model, image))


@pytest.mark.parametrize(("name", "stride"), [slow("hinet", 1), slow("nlm", 1), slow("attention", 1), ("pools", 2)])
def test_openvino_agrees(exported: Exported, name: str, stride: int) -> None:
    openvino = pytest.importorskip("openvino")
    model, path = exported(name, stride)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, height, width in (SIZES[i] for i in (0, 2, 5)):
        image = torch.rand(batch, 3, height, width)
        _close(compiled([image.numpy()])[0], _result(model, image))


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_no_graph_holds_a_cumulative_sum_or_a_private_operator(exported: Exported, name: str, stride: int) -> None:
    _, path = exported(name, stride)
    model = onnx.load(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert "CumSum" not in {node.op_type for node in nodes}
    assert {node.domain for node in nodes} == {""}
    assert not any(node.op_type in ("If", "Loop", "Scan") for node in nodes)


def _constants(path: Path) -> list[bytes]:
    model = onnx.load(path)
    found = [(t.dims, onnx.numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append((attribute.t.dims, onnx.numpy_helper.to_array(attribute.t).tobytes()))
            found.append((node.op_type, repr([*attribute.ints, attribute.i]).encode()))
    return sorted(str(item).encode() for item in found)


@pytest.mark.parametrize(
    ("name", "stride"),
    [slow("se", 3), slow("hinet", 1), slow("nlm", 1), slow("attention", 1), ("pools", 2)],
)
def test_no_constant_depends_on_the_size_that_was_traced(
    exported: Exported, name: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, first = exported(name, stride)
    monkeypatch.setattr(_export, "_SMALL", (22, 71))
    tlsc.export(model, tmp_path / "second.onnx", sizes=[(1, 16, 16)])
    assert _constants(first) == _constants(tmp_path / "second.onnx")


@pytest.mark.parametrize("form", [slow("shuffle"), "convolution"])
def test_ffdnet_takes_its_noise_level_as_an_input(form: Literal["shuffle", "convolution"], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "ffdnet.onnx"
    model = FFDNet(3, width=8, depth=3, form=form).eval()
    example = torch.rand(1, 3, 20, 20), torch.tensor([0.1])
    made = tlsc.export(model, path, example_input=example, sizes=[(1, 12, 12)])
    if form == "convolution":
        assert not {"SpaceToDepth", "DepthToSpace"} & made.operators.keys()
    session = onnxruntime.InferenceSession(str(path))
    for batch, height, width in ((1, 1, 1), (1, 7, 12), (3, 33, 20)):
        image, sigma = torch.rand(batch, 3, height, width), torch.rand(batch) * 0.2
        with torch.no_grad():
            expected = model(image, sigma)
        names = [entry.name for entry in session.get_inputs()]
        got = session.run(None, dict(zip(names, (image.numpy(), sigma.numpy()), strict=True)))[0]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


# -------------------------------------------------------------------------------- the graph's own arithmetic


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    window=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_the_graph_s_statistics_are_the_reference_s(
    height: int, width: int, window: tuple[int, int], stride: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, 2, height, width), generator=generator, dtype=torch.float64) + 3
    close = torch.testing.assert_close
    close(_graph.local_mean(x, window, stride), _reference.local_mean(x, window, stride))
    for ours, theirs in zip(_graph.local_var_mean(x, window), _reference.local_var_mean(x, window), strict=True):
        close(ours, theirs)
    close(_graph.local_group_norm(x, window, 1), _reference.local_group_norm(x, window, 1), rtol=1e-5, atol=1e-6)
    a, b, c, d, e, top, low, high = torch.rand((8, 2), generator=generator, dtype=torch.float64)
    correction = Correction.of(a, b, c, d, e, top, low + 2.5, high + 3)
    ours, theirs = (by.local_mean(x, window, stride, correction) for by in (_graph, _reference))
    close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours, theirs = (
        by.local_group_norm(x, window, 2, eps=0.1, correction=correction) for by in (_graph, _reference)
    )
    close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours = _graph.place(_graph.grid_maxima(x, window, stride), window, stride, height, width)
    theirs = _reference.place(_reference.grid_maxima(x, window, stride), window, stride, height, width)
    close(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    window=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    stride=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_the_graph_s_attention_is_the_eager_one(
    height: int, width: int, window: tuple[int, int], stride: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn((2, 2, 3, height, width), generator=generator, dtype=torch.float64) for _ in range(3))
    scale = torch.tensor([0.7, 1.3], dtype=torch.float64).reshape(2, 1, 1)
    expected = attention.local_transposed_attention(q, k, v, scale, window, stride)
    got = _graph_attention.sliding(q, k, v, scale, window, (stride, stride), EPS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    expected = attention.overlapping_transposed_attention(q, k, v, scale, window)
    got = _graph_attention.overlapping(q, k, v, scale, window, EPS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for weighting in ("softmax", "mean"):
        expected = attention.local_non_local(q[:, 0], k[:, 0], v[:, 0], window, 0.5, weighting)  # type: ignore[arg-type]
        got = _graph_attention.non_local(q[:, 0], k[:, 0], v[:, 0], window, 0.5, weighting == "softmax")
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("stride", [1, 4])
def test_a_nan_stays_in_the_windows_that_hold_it(stride: int) -> None:
    x = torch.rand(1, 1, 20, 20)
    x[0, 0, 3, 4] = float("nan")
    got = _graph.local_mean(x, (5, 6), stride).isnan()
    assert torch.equal(got, _reference.local_mean(x, (5, 6), stride).isnan())


# ------------------------------------------------------------------------------------- torch's own graphs

# PyTorch chooses another convolution for maps of up to 20480 elements, and compiles again: none of these has one.
COMPILED = (
    (200, 200),
    (209, 213),
    (256, 200),
    (200, 256),
    (232, 232),
    (201, 240),
    (224, 208),
    (240, 203),
    (216, 216),
    (248, 200),
)


@pytest.mark.parametrize(("name", "stride"), [slow("se", 4), slow("hinet", 1), slow("nlm", 1), ("pools", 1)])
def test_ten_sizes_take_two_compilations(name: str, stride: int) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = tlsc.convert(_network(name), 224, stride=stride)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for height, width in COMPILED:
            image = torch.rand(1, 3, height, width)
            got, expected = compiled(image), model(image)
            got, expected = (out if isinstance(out, Tensor) else out[-1] for out in (got, expected))
            assert float((got - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "options",
    [
        # One number at a time: three more runs of the C++ compiler only try out the processor's vectors, and one
        # makes a header that pays off with many graphs.
        {"cpp.simdlen": 1, "cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False},
        slow({}),
    ],
    ids=["scalars", "vectors"],
)
def test_the_default_backend_compiles_a_converted_model(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)).eval(), 32)
    known = torch._inductor.list_options()
    options = {name: value for name, value in options.items() if name in known}
    compiled = torch.compile(model, fullgraph=True, dynamic=True, options=options or None)
    with torch.no_grad():
        for size in ((40, 50), (20, 21)):
            image = torch.rand(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [slow("se"), slow("nlm"), "attention", "pools"])
def test_torch_export_holds_at_every_size(name: str) -> None:
    model = tlsc.convert(_network(name), BASE)
    side = torch.export.Dim.DYNAMIC
    image = torch.rand(2, 3, 24, 40)
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes=({0: side, 2: side, 3: side},)).module()
        for batch, height, width in [(max(n, 2), h, w) for n, h, w in SIZES]:
            image = torch.rand(batch, 3, height, width)
            got, expected = program(image), model(image)
            got, expected = (out if isinstance(out, Tensor) else out[-1] for out in (got, expected))
            assert float((got - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())


# ------------------------------------------------------------------------------------------------ what goes wrong


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0.5 else x


class _Lying(nn.Module):
    """Computes one thing in PyTorch and another one in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (1 if torch.compiler.is_exporting() else 0)


def _traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_Branching, "cannot be exported"),
        (_Lying, "differs from PyTorch at 1×24×24"),
        (_traced, "traced or scripted"),
        (lambda: nn.Conv2d(3, 3, 1, device="meta"), "meta device there are no values"),
    ],
)
def test_a_model_that_cannot_be_exported_leaves_no_file(
    make: Callable[[], nn.Module], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match=message) as raised:
        tlsc.export(make(), path, sizes=[(1, 24, 24)])
    assert len(str(raised.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "model.pt"}, ArgumentValueError, "must end in .onnx"),
        ({"path": "missing/model.onnx"}, ArgumentValueError, "no folder"),
        ({"path": 3}, ArgumentTypeError, "path"),
        ({"model": "model"}, ArgumentTypeError, "model"),
        ({"opset": 0}, ArgumentValueError, "opset"),
        ({"sizes": [(1, 0, 5)]}, ArgumentValueError, "sizes"),
        ({"sizes": [(1, 12, 12)], "multiple": 8}, ArgumentValueError, "multiples of 8"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, Any], error: type[TLSCError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": nn.Conv2d(3, 3, 1), "path": "model.onnx", **arguments}
    with pytest.raises(error, match=message):
        tlsc.export(given.pop("model"), given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


def test_a_cumulative_sum_of_the_network_s_own_is_refused_on_demand(tmp_path: Path) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).cumsum(3)

    made = tlsc.export(Summing(), tmp_path / "a.onnx", sizes=[(1, 9, 9)])
    assert made.operators["CumSum"] == 1
    with pytest.raises(ExportError, match="CumSum"):
        tlsc.export(Summing(), tmp_path / "b.onnx", sizes=[(1, 9, 9)], cumsum=False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.InstanceNorm2d(4))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tlsc.export(model, tmp_path / "model.onnx", sizes=[(1, 9, 12)])
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------- command line


def test_the_command_exports_a_checkpoint_and_the_file_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = UNet(4, 1, squeeze_excitation=(0,))
    checkpoint, out = tmp_path / "net.pth", tmp_path / "net.onnx"
    torch.save({"params": network.state_dict()}, checkpoint)
    assert main(["export", str(checkpoint), str(out), "--base-size", "20", "--no-cumsum"]) == 0
    assert str(out) in capsys.readouterr().out
    model = tlsc.convert(network.eval(), 20)
    image = torch.rand(1, 3, 31, 45)
    got = onnxruntime.InferenceSession(str(out)).run(None, {"image": image.numpy()})[0]
    _close(got, _result(model, image))
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    said = {"base_size": "20x20", "stride": "1", "network": "UNet", "scale": "1"}
    assert {f"tlsc.{name}": value for name, value in said.items()}.items() <= facts.items()
    assert {"tlsc.padding_multiple", "tlsc.version_torch", "tlsc.version_tlsc"} <= facts.keys()


@pytest.mark.parametrize(
    ("network", "out", "message"),
    [
        ("nothing.pth", "out.onnx", "nothing.pth"),
        ("text.pth", "out.onnx", "text.pth"),
        ("plain", "out.pt", ".onnx"),
        ("plain", "nowhere/out.onnx", "nowhere"),
    ],
)
def test_the_command_fails_in_one_line(
    network: str,
    out: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("not a checkpoint")
    assert main(["export", network, out]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["text.pth"]


def test_functions_exported_before_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another network's same operation is not exported anew, and both files are right; another window's is."""
    from tlsc._statistics import onnx_functions

    exported: list[str] = []
    export = onnx_functions._export

    def counted(onnx_ir: Any, function: Any, opset: int) -> Any:
        exported.append(function.key[0])
        return export(onnx_ir, function, opset)

    monkeypatch.setattr(onnx_functions, "_export", counted)
    monkeypatch.setattr(onnx_functions, "_exported", {})
    for window, times in ((7, 1), (7, 1), (9, 2)):
        model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2)).eval(), window, check=False)
        path = tmp_path / f"{window}-{len(exported)}.onnx"
        tlsc.export(model, path, example_input=torch.rand(1, 3, 16, 16))
        assert len(exported) == times
        session = onnxruntime.InferenceSession(path)
        x = torch.rand(2, 3, 19, 14)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)
