"""What a network's name stands for, the same for all commands: the one place where they look."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tlsc import adapters
from tlsc.adapters import DEMO_NETWORKS
from tlsc.errors import ArgumentTypeError, ArgumentValueError, first_line
from tlsc.eval.onnx_file import OnnxFile
from tlsc.eval.telling import suggestion

__all__ = ["find_network"]

_COME_ALONG = (*DEMO_NETWORKS, "ffdnet")
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx", ".param")


def find_network(name: str) -> nn.Module:
    """The model that a name stands for, in evaluation mode.

    Args:
        name: a network that comes along (a key of ``DEMO_NETWORKS``, or ``ffdnet``); a file that
            :func:`tlsc.adapters.load` can read; an ONNX file (``.onnx``), which becomes an
            :class:`tlsc.eval.onnx_file.OnnxFile`; or ``module:factory``, importable from here or from the current
            directory, or ``path.py:factory``: a module, or what returns one when called.

    Returns:
        The model; its attribute ``tlsc`` is a :class:`tlsc.adapters.Descriptor` where one is known.

    Raises:
        ArgumentValueError, ArgumentTypeError: the name stands for nothing, or for something else.
        TLSCError: the file holds no network that is known.

    Example:
        >>> find_network("ffdnet").tlsc.task
        'denoising'
    """
    if name in DEMO_NETWORKS:
        return adapters.load(DEMO_NETWORKS[name].weights)
    if name == "ffdnet":
        return adapters.load_demo_ffdnet()
    path = Path(name)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return adapters.load(path)
    if path.suffix.lower() in _CHECKPOINTS:
        raise ArgumentValueError(f"no network {name!r}: there is no such file")
    if ":" in name:
        return _made(name).eval()
    raise ArgumentValueError(
        f"no network {name!r}{suggestion(name, _COME_ALONG)}: it is neither an included network "
        f"({', '.join(_COME_ALONG)}), nor a checkpoint or ONNX file, nor module:factory or path.py:factory"
    )


def _of_file(path: Path) -> nn.Module:
    from tlsc.eval.images import READABLE

    kind = path.suffix.lower()
    if kind == ".onnx":
        return OnnxFile(path)
    if kind in READABLE:
        raise ArgumentValueError(f"{path} is a picture, not a network: the network comes first, then the inputs")
    if kind == ".py":
        raise ArgumentValueError(f"{path}: which of its functions or classes makes the network? {path}:NAME")
    return adapters.load(path)


def _made(name: str) -> nn.Module:
    """What ``module:factory`` or ``path.py:factory`` makes; the current or the file's folder is searched first."""
    where, _, attribute = name.rpartition(":")
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise ArgumentValueError(f"no network {name!r}: there is no file {where}")
    folder = str(Path(where).resolve().parent) if is_file else ""
    sys.path.insert(0, folder)
    try:
        module = _executed(Path(where)) if is_file else importlib.import_module(where)
    except Exception as error:
        raise ArgumentValueError(f"{name}: importing {where!r} failed: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)
    made: Any = module
    try:
        for part in attribute.split("."):
            made = getattr(made, part)
    except AttributeError as error:
        near = suggestion(attribute, [key for key in vars(module) if not key.startswith("_")])
        raise ArgumentValueError(f"{name}: {first_line(error)}{near}") from error
    return _called(name, made)


def _executed(path: Path) -> ModuleType:
    """The module in a file, under a name that belongs to the file: other modules may have its stem."""
    whole = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the module of a class
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _called(name: str, made: Any) -> nn.Module:
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise ArgumentTypeError(f"{name} must be callable and return a torch.nn.Module, got {type(made).__name__}")
    try:
        model = made()
    except Exception as error:
        raise ArgumentValueError(f"{name}() failed: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"{name}() must return a torch.nn.Module, it returned {type(model).__name__}")
    return model
