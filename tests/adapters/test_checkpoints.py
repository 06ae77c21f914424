"""Files of weights: every container, whatever lies beside the weights, and files that mean harm or are damaged."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from tlsc import TLSCError
from tlsc.adapters import CheckpointError, HINet, load, load_demo_network, pickles, run
from tlsc.adapters.checkpoints import joined, read

NETWORK = HINet(wf=2, depth=2, hin_position_left=1).eval()
STATE: dict[str, Tensor] = dict(NETWORK.state_dict())


class _Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Settings(dict):  # type: ignore[type-arg]
    """A dictionary with attributes, as configuration libraries have them."""

    note = "beside"


class _Slots:
    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 1e-4


def _fails_in_one_line(path: Path, said: str = "") -> str:
    with pytest.raises(CheckpointError, match=said or None) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 1000
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TLSCError)
    return message


def _holds_the_network(path: Path) -> None:
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in STATE.items())


# ------------------------------------------------------------------------------------------ containers


def _saved(way: str, path: Path) -> None:
    if way == "zip":
        torch.save({"params": STATE}, path)
    elif way == "without checksums":
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(STATE, path)
        finally:
            torch.serialization.set_crc32_options(True)
    elif way == "recompressed":
        torch.save(STATE, path)
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in records.items():
                archive.writestr(name, content)
    elif way == "legacy":
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=False)
    elif way == "pickle":
        path.write_bytes(pickle.dumps(STATE))
    elif way == "protocol 0":
        path.write_bytes(pickle.dumps(STATE, protocol=0))
    elif way == "protocol 5":
        torch.save(STATE, path, pickle_protocol=5)
    elif way == "safetensors":
        save_file(STATE, path)
    elif way == "module":
        torch.save(nn.DataParallel(NETWORK), path)
    elif way == "parameters":
        torch.save(collections.OrderedDict(NETWORK.named_parameters()), path)
    elif way == "one storage":
        flat = torch.cat([value.flatten() for value in STATE.values()])
        parts = flat.split([value.numel() for value in STATE.values()])
        torch.save({k: part.view(STATE[k].shape) for k, part in zip(STATE, parts, strict=True)}, path)
    elif way == "transposed":
        torch.save({k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in STATE.items()}, path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(NETWORK, torch.rand(1, 3, 16, 16)), path)


WAYS = (
    "zip",
    "without checksums",
    "recompressed",
    "legacy",
    "pickle",
    "protocol 0",
    "protocol 5",
    "safetensors",
    "module",
    "parameters",
    "one storage",
    "transposed",
    "TorchScript",
)


@pytest.mark.parametrize("way", WAYS)
def test_every_container(way: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    _saved(way, path)
    _holds_the_network(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_dtypes_and_views_are_those_of_torch_load(legacy: bool, tmp_path: Path) -> None:
    """Oracle: PyTorch's own loader."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors: dict[str, Tensor] = {
        str(dtype): torch.arange(6).to(dtype).reshape(2, 3)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    }
    tensors |= {str(dtype): torch.randn(4).to(dtype) for dtype in (torch.complex64, torch.float32)}
    tensors |= {"view": base[1:3, ::2], "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3)}
    tensors |= {"expanded": torch.ones(1).expand(5), "parameter": nn.Parameter(torch.ones(2))}
    if not legacy:
        tensors["unsigned"] = torch.arange(3).to(torch.uint16)
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    found = read(tmp_path / "a.pth").weights[0].state
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@torch.no_grad()
def test_float64_weights_run_on_float32_images(tmp_path: Path) -> None:
    torch.save({key: value.double() for key, value in STATE.items()}, tmp_path / "a.pth")
    image = torch.rand(1, 3, 16, 16)
    restored = run(load(tmp_path / "a.pth"), image)
    assert restored.dtype == torch.float32
    assert (restored - run(NETWORK, image)).abs().max() < 1e-5


# ------------------------------------------------------------------------------ shards and folders


def _shards(folder: Path, binary: bool = False) -> Path:
    names = list(STATE)
    halves = {"1": names[::2], "2": names[1::2]}
    suffix = ".bin" if binary else ".safetensors"
    places = {}
    for number, half in halves.items():
        shard = f"model-0000{number}-of-00002{suffix}"
        part = {name: STATE[name] for name in half}
        if binary:
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard)
        places |= dict.fromkeys(half, shard)
    index = folder / f"{'pytorch_model' if binary else 'model'}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("binary", [False, True])
def test_shards_by_their_index_or_their_folder(binary: bool, tmp_path: Path) -> None:
    index = _shards(tmp_path, binary)
    (tmp_path / "config.json").write_text("{}")
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    _holds_the_network(index)
    _holds_the_network(tmp_path)


def test_a_hub_s_folder(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--me--net" / "snapshots"
    for revision in ("abc", "def"):
        (snapshots / revision).mkdir(parents=True)
    blob = tmp_path / "models--me--net" / "blob"
    save_file(STATE, blob)
    (snapshots / "abc" / "model.safetensors").symlink_to("../../blob")
    with pytest.raises(CheckpointError, match="2 snapshots"):
        load(tmp_path / "models--me--net")
    (tmp_path / "models--me--net" / "refs").mkdir()
    (tmp_path / "models--me--net" / "refs" / "main").write_text("abc")
    _holds_the_network(tmp_path / "models--me--net")
    _holds_the_network(snapshots / "abc")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: {"weight_map": {"a": "../other.safetensors"}}, "outside its folder"),
        (lambda index: {"weight_map": {"a": "/etc/passwd"}}, "outside its folder"),
        (lambda index: {"weight_map": {"a": "none.safetensors"}}, "none.safetensors, which is not there"),
        (
            lambda index: {"weight_map": index["weight_map"] | {"a": "model-00001-of-00002.safetensors"}},
            "holds no a",
        ),
        (lambda index: {"weight_map": ["a"]}, "no index of shards"),
        (lambda index: [], "no index of shards"),
        (lambda index: {"weight_map": {}}, "an index that names none"),
    ],
)
def test_an_index_that_lies(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    index = _shards(tmp_path)
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    with pytest.raises(CheckpointError, match=said) as caught:
        load(index)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", "is not there")
    _fails_in_one_line(tmp_path, "no checkpoint .* lies in it")
    os.mkfifo(tmp_path / "pipe.pth")
    _fails_in_one_line(tmp_path / "pipe.pth", "neither a file nor a folder")
    _fails_in_one_line(tmp_path / ("a" * 300), "cannot be read")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    _fails_in_one_line(tmp_path / "loop.pth", "cannot be read")
    for name in ("a.pth", "b.pth"):
        torch.save(STATE, tmp_path / name)
    _fails_in_one_line(tmp_path, "several checkpoints: name one of a.pth, b.pth")


# -------------------------------------------------------------------------- what lies beside the weights


BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(a=1)),
    "date": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "path": Path("/data"),
    "set": {1, 2, (3, 4)},
    "default": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "type": nn.Conv2d,
    "function": torch.relu,
    "own": Settings(a=1),
    "slots": _Slots(),
    "complex": 1j,
    "generator": random.Random(0),
    "tuple keys": {(1, 2): 3, None: 4},
    "optimizer": {
        "state": {0: {"exp_avg": torch.ones(2), "step": 3}},
        "param_groups": [{"lr": 1.0, "params": [0]}],
    },
    "device": torch.device("cuda"),
    "dtype": torch.float16,
    "layer": nn.Linear(2, 2),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_does_not_matter(name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(
        {"hyper_parameters": BESIDE[name], "state_dict": STATE}, path, _use_new_zipfile_serialization=not legacy
    )
    _holds_the_network(path)


def test_weights_within_a_dictionary_of_an_unknown_class(tmp_path: Path) -> None:
    torch.save(Settings(params=Settings(STATE)), tmp_path / "a.pth")
    _holds_the_network(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "protocol 0", "inside", "built"])
def test_nothing_is_run(way: str, suffix: str, tmp_path: Path) -> None:
    path, created = tmp_path / f"a{suffix}", tmp_path / "created"
    evil = _Touch(created)
    if way == "zip":
        torch.save(evil, path)
    elif way == "legacy":
        torch.save({"params": evil}, path, _use_new_zipfile_serialization=False)
    elif way == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": evil}))
    elif way == "protocol 0":
        path.write_bytes(pickle.dumps(evil, protocol=0))
    elif way == "built":
        # Sets an attribute of a class that unpickling imports.
        path.write_bytes(b"\x80\x02ccollections\nOrderedDict\n}U\x01aK\x01sb.")
    else:
        torch.save({"params": STATE, "extra": [evil]}, path)
    before = sorted(tmp_path.iterdir())
    if way == "inside" and suffix != ".safetensors":
        with pytest.warns(UserWarning, match=r"asks to run \w+\.system when it is loaded. That was not done"):
            _holds_the_network(path)
    elif suffix == ".safetensors":
        _fails_in_one_line(path, "not a safetensors file")
    else:
        _fails_in_one_line(path, "refused.*sandbox" if way != "built" else "holds a Name")
    assert sorted(tmp_path.iterdir()) == before
    assert not created.exists()
    assert not hasattr(collections.OrderedDict, "a")


# ------------------------------------------------------------------------------- damaged, crafted, absurd


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"<html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "unpack it"),
    ],
)
def test_what_is_taken_for_a_checkpoint_is_named(start: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(start)
    with pytest.raises(CheckpointError, match=what):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("at", [1, 40, -900, -20])
def test_truncated_pth(legacy: bool, at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:at])
    _fails_in_one_line(path, "truncated|not a checkpoint")


@pytest.mark.parametrize("at", [4, 40, -900, -20])
def test_truncated_safetensors(at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_model(NETWORK, str(path))
    path.write_bytes(path.read_bytes()[:at])
    _fails_in_one_line(path, "truncated")


def test_a_weight_changed_by_a_bit(tmp_path: Path) -> None:
    """The archive's checksums tell; PyTorch's loader does not look at them."""
    path = tmp_path / "a.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    weight = STATE["conv_01.weight"].numpy().tobytes()
    content[content.index(weight) + 5] ^= 4
    path.write_bytes(content)
    assert torch.load(path)["conv_01.weight"].ne(STATE["conv_01.weight"]).sum() == 1
    _fails_in_one_line(path, "checksum")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"<html>404</html>" * 9, "not a")], ids=str)
def test_files_that_are_no_checkpoints(suffix: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    _fails_in_one_line(path, said)


def test_bytes_flipped_and_cut(tmp_path: Path) -> None:
    """Six hundred files of six containers: weights or one line, and no other error."""
    good = []
    for way in ("zip", "legacy", "pickle", "safetensors", "module", "TorchScript"):
        _saved(way, tmp_path / "a.pt")
        good.append((tmp_path / "a.pt").read_bytes())
    chance = random.Random(0)
    refused = 0
    path = tmp_path / "bad.pt"
    for trial in range(600):
        content = bytearray(good[trial % len(good)])
        if trial % 4 == 3:
            del content[chance.randrange(len(content)) :]
        else:
            ends = [chance.randrange(len(content)), chance.randrange(4000), -1 - chance.randrange(3000)]
            for _ in range(chance.choice([1, 2, 8])):
                content[chance.choice(ends)] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            read(path)
            continue
        refused += 1
    assert 200 < refused < 600


def _view(shape: Any, strides: Any, offset: Any = 0, count: int = 4) -> bytes:
    """A pickle of one tensor as ``torch.save`` writes it, with any numbers for its shape."""

    class Reference:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Memory(), offset, shape, strides, False, {})

    class Memory:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Memory) else None

    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump({"a.weight": Reference()})
    return buffer.getvalue()


def _archive(path: Path, pickled: bytes, memory: bytes = bytes(16), **records: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", memory)
        for name, content in records.items():
            archive.writestr(f"a/{name}", content)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((2, 3), (3, 1)), "larger than its storage"),
        (((-2, 2), (2, 1)), "impossible shape"),
        (((1 << 40, 1 << 40), (0, 0)), "impossible shape"),
        (((1 << 62,), (1,)), "impossible shape"),
        (((2,), (1,), -1), "impossible shape"),
        (((2,), (1,), 1 << 61), "larger than its storage"),
        (((2,), (1, 1)), "impossible shape"),
        (((2.5,), (1,)), "impossible shape"),
        ((("a",), (1,)), "impossible shape"),
        ((None, None), "impossible shape"),
        (((1 << 30,), (0,)), "declares 4294967296 bytes"),
        (((2,), (1,), 0, 1 << 40), "less than it declares"),
    ],
    ids=str,
)
def test_shapes_that_cannot_be(arguments: Any, said: str, tmp_path: Path) -> None:
    _archive(tmp_path / "a.pth", _view(*arguments))
    _fails_in_one_line(tmp_path / "a.pth", said)


def test_the_crafted_archive_itself_is_sound(tmp_path: Path) -> None:
    _archive(tmp_path / "a.pth", _view((2, 2), (2, 1)), struct.pack("<4f", 1, 2, 3, 4), byteorder=b"little")
    assert read(tmp_path / "a.pth").weights[0].state["a.weight"].tolist() == [[1, 2], [3, 4]]
    _archive(tmp_path / "a.pth", _view((2, 2), (2, 1)), byteorder=b"big")
    _fails_in_one_line(tmp_path / "a.pth", "big-endian")


def test_archives_that_declare_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", _view((1 << 24,), (1,), 0, 1 << 24))
        archive.writestr("a/data/0", bytes(1 << 26))
    _fails_in_one_line(path, "declare more than its .* bytes can hold")
    _archive(path, _view((4,), (1,)))
    content = path.read_bytes()
    directory = content.rindex(b"PK\1\2")  # of the record data/0
    sizes = struct.pack("<2I", 1 << 30, 1 << 30)
    path.write_bytes(content[: directory + 20] + sizes + content[directory + 28 :])
    _fails_in_one_line(path, "declare more than its .* bytes can hold")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.txt", "none")
    _fails_in_one_line(path, "without the record data.pkl")


def test_meta_tensors_are_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        torch.save(HINet(wf=2, depth=2, hin_position_left=1).state_dict(), tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", "meta device: only shapes were saved")


def _shared(levels: int = 5, fan: int = 30) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {f"k{i}": inner for i in range(fan)}
    return inner


def _pickled_nest(depth: int) -> bytes:
    """A dictionary with a key that is a tuple of two tuples of two …: its hash takes 2^depth steps."""
    return b"\x80\x02})" + b"2\x86" * depth + b"K\x01s."


def test_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these took minutes or for ever; here the suite's own limit on time would tell."""
    weights = load_demo_network("se").state_dict()
    path = tmp_path / "a.pth"
    torch.save({**_shared(), "params": weights}, path)
    load(path)
    for extra in (
        {f"encoder.{i}.x": torch.ones(1) for i in range(4000)},
        {f"encoder.{i}.conv_1.weight": torch.ones(1) for i in range(3000)},
        {f"p{i}.{key}": torch.ones(1) for i in range(200) for key in weights},
    ):
        torch.save({**extra, **weights}, path)
        _fails_in_one_line(path)
    path.write_bytes(_pickled_nest(100))
    _fails_in_one_line(path, "holds no weights")
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 1000)
    path.write_bytes(b"\x80\x02" + b"N0" * 600 + b".")
    _fails_in_one_line(path, "more than 1000 instructions")


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module._modules["again"] = module
    torch.save(module, tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", "holds itself")


def test_numbers_of_blocks_that_no_tensors_stand_for(tmp_path: Path) -> None:
    """Spandrel would build a hundred million blocks."""
    state = {"intro.weight": torch.ones(8, 3, 3, 3), "ending.weight": torch.ones(3, 8, 3, 3)}
    state |= {
        f"middle_blks.{10**8}.{key}": torch.ones(1) for key in ("beta", "gamma", "norm1.weight", "conv1.weight")
    }
    names = (
        "intro.bias",
        "ending.bias",
        "encoders.0.0.beta",
        "decoders.0.0.beta",
        "downs.0.weight",
        "ups.0.0.weight",
    )
    torch.save(state | dict.fromkeys(names, torch.ones(1)), tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", "numbers more parts|unknown architecture")


def test_names_in_messages_are_one_line() -> None:
    assert "\n" not in joined(["a\nb", "c" * 5000])
    assert len(joined(["c" * 5000])) < 200
