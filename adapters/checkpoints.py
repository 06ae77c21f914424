"""Weights on disk, read without trusting them: which tensors a file holds, and under which names."""

from __future__ import annotations

import collections
import json
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tlsc.adapters import ncnn, real_cugan
from tlsc.adapters.archives import Payload, read_archive, read_pickle
from tlsc.adapters.pickles import Damaged, Inert, TensorRef
from tlsc.errors import TLSCError

__all__ = ["Checkpoint", "CheckpointError", "Weights", "joined", "read"]

State = dict[str, Tensor]

# Where trainers put the weights, the likeliest first. Averaged ones go before all others.
_WRAPPERS = (
    "params",
    "state_dict",
    "model_state_dict",
    "net_g",
    "netg",
    "generator",
    "g",
    "model",
    "net",
    "network",
    "weights",
    "module",
)
_OTHERS = ("discriminator", "net_d", "netd", "d", "optimizer", "optimizers", "optimizer_states")
_DEPTH = 6  # wrappers around wrappers
_MOST_TENSORS = 1_000_000
_MOST_SHARDS = 10_000
_LARGEST_INDEX = 1 << 26
# Tensors may share memory, or repeat it by a stride of 0; what is built from them does not. A file may stand for
# this many times its size, and a small one for this many bytes.
_REPEATED, _REPEATED_SMALL = 4, 1 << 26

# The index of a set of shards ends like this, as the hub's libraries write it.
_INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# Beside the weights in a training run's folder.
_BESIDE = re.compile(r"(optimizer|scheduler|training_args|rng_state|scaler|random_states)[\w.-]*", re.IGNORECASE)

# Whoever writes these into a file means harm, or an object that does not belong there.
_HARM = re.compile(
    r"(os|posix|nt|subprocess|pty|socket|shutil|runpy|importlib|sys|ctypes|webbrowser|commands|code)\."
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|__import__|open|input|breakpoint)$"
)


class CheckpointError(TLSCError, ValueError):
    """A file does not hold what it should; the message names the file and what is wrong, in one line."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


class UnreadableCheckpointError(CheckpointError, OSError):
    """The operating system does not let the file be read."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the wrapping keys that they were found under."""

    where: tuple[str, ...]
    state: State

    @property
    def rank(self) -> tuple[int, int, int]:
        """Smaller is likelier to be the restorer's weights: averaged first, then by the wrappers' names."""
        parts = [part.lower().replace("-", "_") for part in self.where]
        averaged = any({"ema", "averaged"} & set(part.split("_")) for part in parts)
        other = any(part in _OTHERS for part in parts)
        known = [_WRAPPERS.index(part) if part in _WRAPPERS else len(_WRAPPERS) for part in map(_plain, parts)]
        return int(other), int(not averaged), max(known, default=-1)

    def under(self, prefix: str) -> Weights:
        """Those whose names start with ``prefix``, without it."""
        if not prefix:
            return self
        state = {key[len(prefix) :]: value for key, value in self.state.items() if key.startswith(prefix)}
        return Weights((*self.where, *prefix.rstrip(".").split(".")), state)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: sets of weights, the likeliest first, and the metadata of a safetensors file."""

    path: Path
    weights: tuple[Weights, ...]
    metadata: Mapping[str, str]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint on the CPU. Nothing that it holds is executed, imported or called.

    What lies beside the weights (settings, dates, optimizers, objects of any class) is passed over. Of a module
    that was pickled as a whole, and of a TorchScript archive, the parameters and buffers are taken.

    Args:
        path: a file written by ``torch.save``, ``torch.jit.save`` or ``safetensors``; its content counts, not its
            name. Or an index of shards (``*.index.json``), or a folder with one checkpoint or index in it, as the
            hub's libraries keep it. Or Real-CUGAN in ncnn's format: its graph (``.param``) or its weights
            (``.bin``), each beside the other.

    Raises:
        CheckpointError: there is no such file, or it cannot be read (then also an OSError); it is empty, truncated,
            damaged, no checkpoint, declares more than it holds, or holds no weights.
    """
    path = Path(path)
    try:
        path = _chosen(path)
        contents = _sharded(path) if path.name.endswith(_INDEX) else _contents(path)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise MissingCheckpointError(f"{path} is not there") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        said = getattr(error, "strerror", None) or _line(error)
        raise UnreadableCheckpointError(f"{path} cannot be read: {said}") from error
    if not contents.weights:
        raise CheckpointError(_nothing_in(path, contents))
    for weights in contents.weights:
        held = sum(
            tensor.numel() * tensor.element_size() for tensor in weights.state.values() if not tensor.is_meta
        )
        if held > _REPEATED * contents.size + _REPEATED_SMALL:
            raise CheckpointError(
                f"{path} declares {held} bytes of weights, but has {contents.size}: its tensors share or repeat "
                "their memory to an extent that no checkpoint does"
            )
    harmful = [name for name in contents.refused if _HARM.match(name)]
    if harmful:
        warnings.warn(
            f"{path} asks to run {joined(harmful)} when it is loaded. That was not done, and its weights were "
            "read; do not trust where it comes from",
            stacklevel=3,
        )
    return Checkpoint(path, tuple(sorted(contents.weights, key=lambda weights: weights.rank)), contents.metadata)


@dataclass(frozen=True)
class _Contents:
    """What one file or a set of shards holds."""

    weights: list[Weights]
    size: int
    metadata: Mapping[str, str]
    instead: str = ""  # where there are no weights, what there is
    refused: tuple[str, ...] = ()


def _chosen(path: Path) -> Path:
    """The file that a path stands for: itself, or the one checkpoint in a folder."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return path
    if not stat.S_ISDIR(mode):
        raise CheckpointError(
            f"{path} is neither a file nor a folder (a pipe or a device): nothing was read from it"
        )
    if (path / "snapshots").is_dir():
        path = _snapshot(path)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".") and not entry.is_dir())
    names = [name for name in names if not _BESIDE.match(name)]
    for suffixes in ((".safetensors" + _INDEX,), (_INDEX,), (".safetensors",), _SUFFIXES):
        found = [name for name in names if name.endswith(suffixes)]
        if len(found) == 1:
            chosen = path / found[0]
            if not chosen.is_file():
                raise CheckpointError(f"{chosen} is no file")
            return chosen
        if found:
            raise CheckpointError(f"{path} is a folder with several checkpoints: name one of {joined(found)}")
    raise CheckpointError(f"{path} is a folder, and no checkpoint ({', '.join(_SUFFIXES)}) or index lies in it")


def _snapshot(cache: Path) -> Path:
    """The folder of files in the hub's cache of a repository."""
    revisions = sorted(entry for entry in (cache / "snapshots").iterdir() if entry.is_dir())
    main = cache / "refs" / "main"
    if main.is_file():
        named = main.read_text("utf-8", "replace")[:100].strip()
        revisions = [entry for entry in revisions if entry.name == named] or revisions
    if len(revisions) == 1:
        return revisions[0]
    names = joined([entry.name for entry in revisions])
    raise CheckpointError(f"{cache} is a hub's folder with {len(revisions)} snapshots: name one of them ({names})")


_MISTAKEN = {
    b"version https://": "the pointer of Git LFS to one: fetch it with `git lfs pull`",
    b"<!doctype": "a web page, as downloads without permission give: download it again in a browser",
    b"<html": "a web page, as downloads without permission give: download it again in a browser",
    b"\x1f\x8b": "an archive packed with gzip: unpack it",
    b"gguf": "weights in GGUF, which is not read here: save them with torch.save or safetensors",
    b"\x89hdf": "an HDF5 file, which is not read here: save the weights with torch.save or safetensors",
}
"""What is often taken for a checkpoint, by its first bytes in small letters."""


def _contents(path: Path) -> _Contents:
    with path.open("rb") as file:
        start = file.read(16)
        size = file.seek(0, 2)
        file.seek(0)
        if not start:
            raise CheckpointError(f"{path} is empty")
        for first, what in _MISTAKEN.items():
            if start.lower().startswith(first):
                raise CheckpointError(f"{path} is not a checkpoint but {what}")
        graph = path if start.startswith(ncnn.MAGIC) else _graph_beside(path, start)
        if graph is not None:
            return _of_ncnn(graph)
        if start[8:9] == b"{" or path.suffix.lower() == ".safetensors":
            state, metadata = _safetensors(path)
            return _Contents(list(_weights_in(path, Payload(state, _untouched, {}))), size, metadata, _kind(state))
        zipped = start.startswith(b"PK\x03\x04")
        try:
            payload = read_archive(file) if zipped else read_pickle(file)
            weights = list(_weights_in(path, payload))
        except Damaged as error:
            if zipped or start.startswith(b"\x80"):
                raise CheckpointError(
                    f"{path} is truncated or was not written by torch.save ({error}): download or save it again"
                ) from error
            raise CheckpointError(
                f"{path} is not a checkpoint: it starts with {start[:8]!r}, and neither torch.save nor safetensors "
                "writes that"
            ) from error
    return _Contents(weights, size, {}, _kind(payload.value), tuple(payload.refused))


def _graph_beside(path: Path, start: bytes) -> Path | None:
    """The graph that belongs to weights in ncnn's format, which start with nothing of their own."""
    if path.suffix.lower() != ".bin" or start.startswith((b"PK", b"\x80")):
        return None
    graph = path.with_suffix(".param")
    return graph if graph.is_file() else None


def _of_ncnn(graph: Path) -> _Contents:
    """Weights in ncnn's format: a graph, and beside it a file of the same name that ends in ``.bin``."""
    values = graph.with_suffix(".bin")
    if not values.is_file():
        raise MissingCheckpointError(f"{graph} is a graph of ncnn's, and its weights are not beside it: {values}")
    try:
        layers = ncnn.read_layers(graph, values)
    except Damaged as error:
        raise CheckpointError(f"{graph} cannot be used: {error}") from error
    state = real_cugan.weights_by_name(layers, graph)
    if state is None:
        raise CheckpointError(
            f"{graph}: unknown architecture: a graph of ncnn's with {len(layers)} layers, of which Real-CUGAN's "
            "for 2×, 3× and 4× are known. A network of your own can be built, given its weights and passed to "
            "tlsc.convert"
        )
    return _Contents([Weights((), state)], values.stat().st_size, {})


def _sharded(path: Path) -> _Contents:
    """The tensors that an index names, from the files that it names for them."""
    if path.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"{path} is larger than any index of shards")
    try:
        index = json.loads(path.read_bytes())
        places = {str(name): str(shard) for name, shard in index["weight_map"].items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of shards: it has no weight_map that names them") from error
    by_shard: dict[str, list[str]] = {}
    for name, shard in places.items():
        by_shard.setdefault(shard, []).append(name)
    if len(by_shard) > _MOST_SHARDS:
        raise CheckpointError(f"{path} names {len(by_shard)} shards")
    state: State = {}
    size = 0
    for shard, names in by_shard.items():
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or PurePosixPath(shard).is_absolute():
            raise CheckpointError(f"{path} names a shard outside its folder: {_shown(shard)}")
        file = path.parent / shard
        if not file.is_file():
            raise MissingCheckpointError(f"{path} names the shard {_shown(shard)}, which is not there")
        part = _contents(file)
        held = min(part.weights, key=lambda weights: weights.rank).state if part.weights else {}
        missing = [name for name in names if name not in held]
        if missing:
            raise CheckpointError(f"{file} holds no {joined(missing)}, though {path.name} says so")
        state.update((name, held[name]) for name in names)
        size += part.size
    return _Contents([Weights((), state)] if state else [], size, {}, "an index that names none")


def joined(names: Iterable[str], most: int = 4) -> str:
    """A few of many names, in one line."""
    names = list(names)
    listed = ", ".join(map(_shown, names[:most]))
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed or "none"


def _shown(name: str) -> str:
    """A name of somebody else's choice, as it can stand in a message."""
    short = name if len(name) <= 120 else f"{name[:120]}…"
    return short if short.isprintable() else repr(short)


def _safetensors(path: Path) -> tuple[State, Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            # Copies: what is mapped would change, or vanish, with the file.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({_line(error)}): download or save it again"
        ) from error


def _nothing_in(path: Path, contents: _Contents) -> str:
    if not contents.refused:
        return f"{path} holds {contents.instead}"
    return (
        f"{path} was refused: it holds no weights by name, and wants to run code ({joined(contents.refused)}) on "
        "loading. If you need it, convert it to safetensors in a sandbox, with nothing of value in reach: there "
        "load it with weights_only=False and write the state dict with safetensors.torch.save_file"
    )


def _kind(value: Any) -> str:
    """What a file without weights holds, in words."""
    if isinstance(value, Mapping):
        return f"no weights: its keys are {joined(map(str, value))}"
    kind = "Tensor" if isinstance(value, TensorRef) else type(value).__name__
    return f"a {kind}, not weights by name"


def _untouched(ref: Any) -> Tensor:
    raise AssertionError("safetensors hold tensors, not references")


def _weights_in(path: Path, payload: Payload) -> Iterator[Weights]:
    """Every mapping in the payload that holds tensors by name, the outer ones first; each is visited once."""
    queue: collections.deque[tuple[Any, tuple[str, ...]]] = collections.deque([(payload.value, ())])
    seen = {id(payload.value)}
    while queue:
        value, where = queue.popleft()
        items = _named_tensors(path, value) if _is_module(value) else _items(value)
        state: State = {}
        for key, child in items:
            if isinstance(child, (Tensor, TensorRef)):
                # Compiled modules put this segment anywhere in a name.
                name = re.sub(r"(^|\.)_orig_mod\.", r"\1", key)
                if name in state:
                    raise CheckpointError(f"{path} holds {_shown(name)} twice, once with _orig_mod in its name")
                state[name] = child if isinstance(child, Tensor) else payload.tensor(child)
            elif isinstance(child, (Mapping, Inert)) and len(where) < _DEPTH and id(child) not in seen:
                seen.add(id(child))
                queue.append((child, (*where, key)))
        if state:
            yield Weights(where, state)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    mapping = value.state if isinstance(value, Inert) else value
    return (
        [(key, child) for key, child in mapping.items() if isinstance(key, str)]
        if isinstance(mapping, Mapping)
        else []
    )


def _is_module(value: Any) -> bool:
    """Whether this is a module that was pickled as a whole, by PyTorch or in a TorchScript archive."""
    if not isinstance(value, Inert):
        return False
    return value.name.startswith("__torch__.") or {"_parameters", "_modules"} <= value.state.keys()


def _named_tensors(path: Path, module: Inert) -> Iterator[tuple[str, TensorRef]]:
    """Parameters and buffers of a pickled module, by the names that a state dict gives them."""
    stack: list[tuple[Inert, str]] = [(module, "")]
    count = 0
    while stack:
        module, prefix = stack.pop()
        children: list[tuple[Inert, str]] = []
        for key, value in _members(module):
            count += 1
            if isinstance(value, TensorRef):
                yield prefix + key, value
            elif _is_module(value):
                children.append((value, f"{prefix}{key}."))
        # Modules may hold each other, or one of them a thousand times over.
        if count > _MOST_TENSORS or prefix.count(".") > 100:
            raise CheckpointError(
                f"{path} holds a module with more parts than any network, or one that holds itself"
            )
        stack.extend(reversed(children))


def _members(module: Inert) -> Iterator[tuple[str, Any]]:
    state = module.state
    if "_parameters" not in state:
        yield from state.items()
        return
    hidden = state.get("_non_persistent_buffers_set")
    hidden = {name for name in hidden if isinstance(name, str)} if isinstance(hidden, list) else set()
    for group in ("_parameters", "_buffers", "_modules"):
        for key, value in _items(state.get(group)):
            if not (group == "_buffers" and key in hidden):
                yield key, value


def _plain(part: str) -> str:
    """The name of a wrapper without the mark of an average: ``params_ema`` ranks with ``params``."""
    return "_".join(word for word in part.split("_") if word not in ("ema", "averaged")) or "params"


def _line(error: BaseException) -> str:
    """The first line and sentence of an error of others."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].strip()[:200] if lines else type(error).__name__
