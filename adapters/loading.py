"""A checkpoint on disk becomes a restorer, whatever architecture it holds."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tlsc
from tlsc._arguments import FLOATING, as_pair, shown
from tlsc.adapters import ffdnet, hinet, mprnet, unet
from tlsc.adapters.architecture import MOST_PREFIXES, Architecture
from tlsc.adapters.checkpoints import Checkpoint, CheckpointError, Weights, joined, read
from tlsc.adapters.descriptor import Descriptor, Padding
from tlsc.adapters.restoring import has_float64
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["load"]

_ARCHITECTURES: tuple[Architecture, ...] = (
    hinet.ARCHITECTURE,
    mprnet.ARCHITECTURE,
    unet.ARCHITECTURE,
    ffdnet.ARCHITECTURE,
)

# Networks of others whose training crops are published.
_CROPS = {"NAFNet": 256, "Restormer": 256, "MIRNet2": 256}

# Weights do not tell what they were trained to undo; the names of their files often do.
_TASKS = {
    "deblurring": ("gopro", "realblur", "deblur"),
    "denoising": ("sidd", "dnd", "denois"),
    "deraining": ("rain",),
    "dehazing": ("haze", "hazing"),
}


def load(
    path: str | os.PathLike[str],
    base_size: int | tuple[int, int] | None = None,
    stride: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load a pretrained restorer: which architecture it is and its settings are read off the weights.

    HINet, MPRNet and the demo's U-Nets are part of this package. Other networks are identified by ``spandrel``
    and its extra architectures (``pip install 'tlsc[networks]'``). Weights may lie at the top of the file or
    under any key: ``params_ema`` (preferred), ``params``, ``state_dict``, ``model``, ``net_g``, ``generator``,
    and others. Their names may have any prefix (``module.``, ``_orig_mod.``, ``model.``, ...). Nothing in the
    file is executed.

    Args:
        path: a file written by ``torch.save`` or safetensors (``.pth``, ``.pt``, ``.ckpt``, ``.safetensors``), or
            Real-CUGAN's graph in ncnn's format (``.param``, with its ``.bin`` beside it).
        base_size: convert to local statistics, with this window at the input in pixels: an int or (height,
            width). ``model.tlsc.base_size`` recommends one. None does not convert. If the network does not pad
            by itself, the window is rounded up to a size that the network accepts.
        stride: of the conversion, see :func:`tlsc.convert`.
        device: where to put it, the CPU by default.
        dtype: of its parameters; by default float64 if the weights are, float32 otherwise.

    Returns:
        The network in evaluation mode. Its attribute ``tlsc`` is a :class:`Descriptor`. What relu_slope and
        padder_size an HINet or MPRNet was built with leaves no trace in the weights; the published ones are taken.

    Raises:
        CheckpointError: the file is empty, truncated, no checkpoint, wants to run code, holds an unknown
            architecture, or weights that do not fit together.
        OSError: the file cannot be read.
        ArgumentTypeError, ArgumentValueError: another argument cannot be used.
        TLSCError: the network cannot be converted, as for :func:`tlsc.convert`.

    Example:
        >>> import tempfile
        >>> from tlsc.adapters import HINet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "HINet-GoPro.pth")
        ...     torch.save({"params": HINet(wf=4, hin_position_left=3).state_dict()}, file)
        ...     model = load(file, base_size=384)
        >>> model.tlsc.architecture, model.tlsc.settings["hin_position_left"], model.tlsc.task
        ('HINet', 3, 'deblurring')
    """
    where = _device(device)
    if dtype is not None and dtype not in FLOATING:
        raise ArgumentTypeError(f"dtype must be a floating torch.dtype or None, got {shown(dtype)}")
    if base_size is not None:
        base_size = as_pair(base_size, "base_size")
    checkpoint = read(Path(path))
    model, where_found = _ours(checkpoint) or _spandrel(checkpoint)
    if dtype is None:
        dtype = torch.float64 if has_float64(model) else torch.float32
    description: Descriptor = model.tlsc  # type: ignore[assignment]
    noted, task = _noted_crop(checkpoint), _task(checkpoint.path.stem)
    under = f"under {'.'.join(where_found)}" if where_found else "at its top"
    model.tlsc = dataclasses.replace(  # type: ignore[assignment]
        description,
        task=description.task or task,
        crop=noted or description.crop,
        origin={
            "weights": f"{checkpoint.path.name}, {under}",
            "task": f"known of {description.architecture}" if description.task else "by the file's name",
            "crop": "noted in the file" if noted else f"published for {description.architecture}",
        },
    )
    model = model.to(device=where, dtype=dtype).eval()
    if base_size is not None:
        if not description.padding.inside:
            base_size = description.padding.padded(*base_size)
        tlsc.convert(model, base_size, stride=stride)
    return model


def _device(device: torch.device | str | None) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArgumentValueError(f"device {device!r} cannot be used here: {line}") from error
    if found.type == "meta":
        raise ArgumentValueError("device 'meta' cannot be used here: it holds no values")
    return found


def _noted_crop(checkpoint: Checkpoint) -> int | None:
    """The training crop, where a safetensors file's metadata notes it."""
    noted = checkpoint.metadata.get("crop", "")
    return int(noted) if noted.isdecimal() and len(noted) < 6 and int(noted) > 0 else None


def _task(stem: str) -> str | None:
    words = stem.lower()
    return next((task for task, marks in _TASKS.items() if any(mark in words for mark in marks)), None)


# ------------------------------------------------------------------------------------------------ ours


_Found = tuple[nn.Module, tuple[str, ...]]
"""A network, and the keys that its weights lie under."""


def _ours(checkpoint: Checkpoint) -> _Found | None:
    """The network, if it is one of ours."""
    for architecture in _ARCHITECTURES:
        parts = (part for weights in checkpoint.weights for part in architecture.find(weights))
        found = [part.own for part in itertools.islice(parts, MOST_PREFIXES)]
        if not found:
            continue
        found.sort(key=lambda weights: weights.rank)
        if len(found) > 1 and found[0].rank == found[1].rank:
            places = joined([".".join(weights.where) or "the top" for weights in found])
            raise CheckpointError(
                f"{checkpoint.path} holds several {architecture.name}s, under {places}: save the one that is meant"
            )
        return architecture.load(checkpoint, found[0]), found[0].where
    return None


# ------------------------------------------------------------------------------------- spandrel's own


class _SpandrelCall:
    """How spandrel calls a network that takes more than an image, or returns more or in another range.

    Spandrel's functions cannot be pickled; a network that went through a pickle has to be loaded again.
    """

    def __init__(self, architecture: str, function: Any) -> None:
        self.architecture, self.function = architecture, function

    def __call__(self, model: nn.Module, image: Tensor) -> Any:
        if self.function is None:
            raise ArgumentValueError(
                f"how to call {self.architecture} was lost when the model was pickled: load its checkpoint again"
            )
        return self.function(model, image)

    def __reduce__(self) -> tuple[Any, ...]:
        return _SpandrelCall, (self.architecture, None)

    def __deepcopy__(self, memo: Any) -> _SpandrelCall:
        return self


def _spandrel(checkpoint: Checkpoint) -> _Found:
    """The network that spandrel takes the weights for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import spandrel
            import spandrel_extra_arches

            spandrel_extra_arches.install(ignore_duplicates=True)
    except ImportError as error:
        raise CheckpointError(
            f"{_unknown(checkpoint)}, tried {_own_names(' and ')}; spandrel, which knows many more, is not there: "
            "pip install 'tlsc[networks]'"
        ) from error
    known = spandrel.MAIN_REGISTRY.architectures("detection")
    for weights in checkpoint.weights:
        for state in _stripped(weights.state):
            found = next((support for support in known if _detects(support, state)), None)
            if found is None:
                continue
            name = found.architecture.name
            _check_numbers(checkpoint, state)
            try:
                made = found.architecture.load(dict(state))
            except Exception as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise CheckpointError(
                    f"{checkpoint.path}: spandrel takes the weights for {name}, but cannot load them: "
                    f"{' '.join(lines[:2])[:300] or type(error).__name__}"
                ) from error
            return _described(made, name), weights.where
    raise CheckpointError(
        f"{_unknown(checkpoint)}, tried {_own_names(', ')} and {len(known)} architectures of spandrel. A network "
        "of your own can be built, given its weights and passed to tlsc.convert"
    )


def _own_names(last: str) -> str:
    names = [architecture.name for architecture in _ARCHITECTURES]
    return f"{', '.join(names[:-1])}{last}{names[-1]}"


def _check_numbers(checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
    """Spandrel reads numbers of blocks off the names, and builds as many without counting the tensors."""
    most = 100 + 10 * len(state)
    for key in state:
        if any(int(number[:10]) > most for number in re.findall(r"(?:^|[._])(\d+)", key)):
            raise CheckpointError(
                f"{checkpoint.path}: {joined([key])} numbers more parts than {len(state)} tensors can belong to"
            )
        if state[key].is_meta:
            raise CheckpointError(
                f"{checkpoint.path}: {joined([key])} lies on the meta device: only its shape was saved"
            )


def _detects(support: Any, state: dict[str, Tensor]) -> bool:
    try:
        return bool(support.detect(state))
    except Exception:  # written for whole state dicts; anything can be in this one
        return False


def _stripped(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights as they are, and without what all names have in front; then those under each first name."""
    rest = state
    for _ in range(6):
        yield rest
        first = {key.partition(".")[0] for key in rest}
        if len(first) != 1 or not all("." in key for key in rest):
            break
        rest = {key.partition(".")[2]: value for key, value in rest.items()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, name_inside = key.partition(".")
        if name_inside:
            by_name.setdefault(name, {})[name_inside] = value
    groups = [Weights((name,), group) for name, group in by_name.items() if len(group) > 1]
    for group in sorted(groups, key=lambda weights: weights.rank)[:MOST_PREFIXES]:
        if group.rank[0] == 0:
            yield group.state


def _described(made: Any, name: str) -> nn.Module:
    import spandrel

    model: nn.Module = made.model
    needs = made.size_requirements
    call = getattr(made, "_call_fn", None)
    default = getattr(call, "__module__", "") == spandrel.ImageModelDescriptor.__module__
    masked = not isinstance(made, spandrel.ImageModelDescriptor)
    tasks = {"SR": "super-resolution", "FaceSR": "face restoration", "Inpainting": "inpainting"}
    model.tlsc = Descriptor(  # type: ignore[assignment]
        name,
        {"tags": list(made.tags)},
        task=tasks.get(made.purpose),
        scale=made.scale,
        in_channels=made.input_channels + int(masked),
        out_channels=made.output_channels,
        padding=Padding(needs.multiple_of, max(1, needs.minimum), needs.square, inside=False),
        crop=_CROPS.get(name),
        call=None if default or masked else _SpandrelCall(name, call),
        source="spandrel",
    )
    return model


def _unknown(checkpoint: Checkpoint) -> str:
    weights = checkpoint.weights[0]
    where = f" under {'.'.join(weights.where)}" if weights.where else ""
    return (
        f"{checkpoint.path}: unknown architecture: {len(weights.state)} tensors{where}, the first named "
        f"{joined(list(weights.state), 3)}"
    )
