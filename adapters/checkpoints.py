"""Weights on disk, read without trusting them: which tensors a file holds, and under which names."""

from __future__ import annotations

import codecs
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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


class CheckpointError(TLSCError, ValueError):
    """A file does not hold what it should; the message names the file and what is wrong, in one line."""


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
    """Read a checkpoint on the CPU; nothing that it holds is executed.

    Args:
        path: a file written by ``torch.save`` or ``safetensors``; its content counts, not its name.

    Raises:
        CheckpointError: it is empty, truncated, no checkpoint, wants to run code, or holds no weights.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise CheckpointError(f"{path} is empty")
    payload: Any
    metadata: Mapping[str, str] = {}
    if start[8:9] == b"{" or path.suffix.lower() == ".safetensors":
        payload, metadata = _safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")) or _globals(path):
        payload = _unpickled(path)
    else:
        raise CheckpointError(
            f"{path} is not a checkpoint: it starts with {start[:8]!r}, and neither torch.save nor safetensors "
            "writes that"
        )
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not weights by name")
    found = sorted(_weights_in(path, payload), key=lambda weights: weights.rank)
    if not found:
        raise CheckpointError(f"{path} holds no weights: its keys are {joined(map(str, payload))}")
    return Checkpoint(path, tuple(found), metadata)


def joined(names: Iterator[str] | list[str], most: int = 4) -> str:
    """A few of many names, in one line."""
    names = list(names)
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed or "none"


def _safetensors(path: Path) -> tuple[State, Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            # Copies: what is mapped would change, or vanish, with the file.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({_line(error)}): download or save it again"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numbers()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Every way in which a foreign file can fail to unpickle; the reason is in the message.
        said, kind = str(error), type(error).__name__
    code = re.search(r"GLOBAL ([\w.]+)", said)
    wanted = [code[1]] if code else ["a TorchScript archive"] if "TorchScript" in said else _globals(path)
    if wanted:
        raise CheckpointError(
            f"{path} was refused: it wants to run code ({joined(wanted)}) on loading. If you need it, convert it "
            "to safetensors in a sandbox, with nothing of value in reach: there load it with weights_only=False "
            "and write the state dict with safetensors.torch.save_file"
        )
    raise CheckpointError(
        f"{path} is truncated or was not written by torch.save ({_first(said) or kind}): download or save it again"
    )


def _numbers() -> list[Any]:
    """What NumPy's numbers unpickle by: trainers note their best score as one. None of it runs anything."""
    scalar = np.float64(0).__reduce__()[0]
    names = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    return [*((scalar, name) for name in names), np.dtype, *dtypes, codecs.encode]


def _globals(path: Path) -> list[str]:
    """What a plain pickle would import, read off without unpickling it; nothing for any other file."""
    found: list[str] = []
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    found.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:
        return []
    return found


def _weights_in(path: Path, payload: Mapping[Any, Any], where: tuple[str, ...] = ()) -> Iterator[Weights]:
    """Every mapping in the payload that holds tensors by name."""
    state: State = {}
    for key, value in payload.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            # Compiled modules put this segment anywhere in a name.
            name = re.sub(r"(^|\.)_orig_mod\.", r"\1", key)
            if name in state:
                raise CheckpointError(f"{path} holds {name} twice, once with _orig_mod in its name")
            state[name] = value
        elif isinstance(value, Mapping) and len(where) < _DEPTH:
            yield from _weights_in(path, value, (*where, key))
    if state:
        yield Weights(where, state)


def _plain(part: str) -> str:
    """The name of a wrapper without the mark of an average: ``params_ema`` ranks with ``params``."""
    return "_".join(word for word in part.split("_") if word not in ("ema", "averaged")) or "params"


def _line(error: Exception) -> str:
    return _first(str(error)) or type(error).__name__


def _first(said: str) -> str:
    """The first line and sentence of a message."""
    said = re.sub(r"^Weights only load failed.*", "not readable as weights", said, flags=re.DOTALL)
    lines = said.strip().splitlines()
    return lines[0].partition(". ")[0].strip()[:200] if lines else ""
