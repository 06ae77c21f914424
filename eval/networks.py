"""A network and what has to be known to run it, the same for all commands."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc
from tlsc import adapters
from tlsc._internal import prediction
from tlsc.adapters import DEMO_NETWORKS, Descriptor
from tlsc.errors import ArgumentTypeError, ArgumentValueError, first_line
from tlsc.eval.naming import find_network
from tlsc.eval.onnx_file import OnnxFile
from tlsc.eval.telling import suggestion

__all__ = ["Asked", "Network", "checksum", "chosen_device", "find_network", "load_network", "of_model"]

Asked = int | tuple[int, int] | Literal["auto", "none"]
"""A window that is asked for, in pixels: a size; the recommended one; or the network as trained."""


@dataclass
class Network:
    """A restorer and what has to be known to run it; call it with (N, C, H, W) on the CPU to get the result there.

    Attributes:
        name: as given.
        model: in evaluation mode; this object is converted and reverted.
        description: one line.
        crop: side of its training crops in pixels, None where it is not known.
        base_size: the recommended window, None where it is not known.
        scale: output pixels per input pixel.
        channels: of its images, 1 or 3.
        output: which entry of a list or dictionary of outputs is the result; None for the only one.
        pad_to: images are mirrored to a multiple of this and cut back; 1 where the model takes any size.
        padding: of the model's descriptor; None for networks without one, or where ``pad_to`` was given.
        sigma: noise level, of 255, that the model takes beside the image; None where it takes an image alone.
    """

    name: str
    model: nn.Module
    description: str = ""
    crop: int | None = None
    base_size: int | None = None
    scale: int = 1
    channels: int = 3
    output: int | str | None = None
    pad_to: int = 1
    padding: Any = None
    sigma: float | None = None

    def refuse_onnx(self, what: str) -> None:
        """Refuse an ONNX file where the network's modules are needed.

        Args:
            what: they are needed for.

        Raises:
            ArgumentValueError: it is one.
        """
        if isinstance(self.model, OnnxFile):
            raise ArgumentValueError(
                f"{self.name} is an ONNX file, which 'tlsc restore' and 'tlsc eval' run as it was exported: to "
                f"{what}, name the network that it was made from"
            )

    @property
    def kind(self) -> str:
        """The class of its model; "ONNX file" for one."""
        return "ONNX file" if isinstance(self.model, OnnxFile) else type(self.model).__name__

    @property
    def reference(self) -> Tensor:
        """A tensor on the model's device, of its floating point type."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))

    def __call__(self, image: Tensor) -> Tensor:
        like = self.reference
        height, width = image.shape[2:]
        image = image.to(like.device, like.dtype)
        if self.padding is not None and self.output is None and self.sigma is None:
            return adapters.run(self.model, image).float().cpu()
        padded = self._padded(image)
        out = self._result(self.model(padded) if self.sigma is None else self.model(padded, self.sigma / 255))
        if padded.shape[2:] != image.shape[2:]:
            # By how much it enlarges, whatever is known of it: a wrong scale must not pass for a border.
            down, across = (n // k for n, k in zip(out.shape[2:], padded.shape[2:], strict=True))
            out = out[..., : height * down, : width * across]
        return out.float().cpu()

    @property
    def multiple(self) -> int:
        """Sizes that it takes without padding are multiples of this."""
        known = self.padding
        return math.lcm(self.pad_to, 1 if known is None or known.inside else known.multiple)

    def calibrated(
        self, images: Iterable[Tensor], crop: Asked | None = None, seed: int = 0, warn: bool = True
    ) -> tlsc.Plan:
        """Correct the converted model's statistics, as :func:`tlsc.calibrate`, the model called as here.

        Args:
            images: to calibrate on, on any device.
            crop: side of the training crops, or the next larger one that the network takes; by default the window.
            seed: of their places.
            warn: whether anybody has to hear that nothing is calibrated, or that converting does harm.
        """
        like, size = self.reference, None if crop is None else self.taken(crop)
        given = [image.to(like.device, like.dtype) for image in images]
        return prediction.calibrated(
            self.model, given, size, seed=seed, call=self, multiple=self.multiple, warn=warn
        )

    def taken(self, size: Any) -> Any:
        """A base size, or the next larger one that the network takes."""
        height, width = (size, size) if isinstance(size, int) else size
        if self.padding is not None and not self.padding.inside:
            height, width = self.padding.padded(height, width)
        height, width = (n + -n % self.pad_to for n in (height, width))
        return height if height == width else (height, width)

    def converted(
        self, asked: Asked, stride: int = 1, source: str = "window", plan: Path | None = None
    ) -> tuple[tlsc.Plan | None, str]:
        """Convert the model in place, as it is asked for: the one rule of all commands.

        Args:
            asked: ``"auto"`` is the recommended window where the training crop is known and something becomes
                local; otherwise the network stays as trained. ``"none"`` leaves it so. A size is that window.
            stride: of the conversion.
            source: from where its statistics are, see :func:`tlsc.convert`.
            plan: a file that says what becomes of each site; the other arguments are then the usual ones.

        Returns:
            The plan, None where the network stays as it was; and what was done, in words.

        Raises:
            NoSiteError: a size is given, and there is nothing to convert.
            ArgumentValueError: a size or a plan is given for an ONNX file; a plan and a size; a plan of another
                network.

        Example:
            >>> load_network("se").converted("auto")[1]
            '3 sites local over 96×96 pixels'
            >>> load_network("plain").converted("auto")[1]
            'as trained: it has no global layer that is known, so there is nothing to convert'
        """
        if plan is not None:
            return self._by_plan(asked, stride, source, plan)
        if isinstance(self.model, OnnxFile):
            if asked not in ("auto", "none"):
                raise ArgumentValueError(
                    f"{self.name} is an ONNX file, which runs as it was exported: 'tlsc export NETWORK --base-size "
                    "N' writes a converted one"
                )
            return None, "as exported"
        if asked == "none":
            return None, "as trained"
        if asked == "auto" and self.base_size is None:
            return None, "as trained: its training crop is not known (--crop N or --base-size N converts it)"
        try:
            window = self.taken(self.base_size if asked == "auto" else asked)
            rows, columns = (window, window) if isinstance(window, int) else window
            crop = None if self.crop is None else (min(self.crop, rows), min(self.crop, columns))
            tlsc.convert(self.model, window, stride=stride, source=source, crop=crop)
        except tlsc.NoSiteError:
            if asked != "auto":
                raise
            return None, "as trained: it has no global layer that is known, so there is nothing to convert"
        made = tlsc.plan(self.model)
        left = f", {len(made.left)} stay global ('tlsc inspect' says why)" if made.left else ""
        height, width = made.base_size
        how = f"local over {height}×{width} pixels"
        if source != "window":
            how = f"with statistics from source {source}, window {height}×{width}"
        return made, f"{len(made.converted)} sites {how}{left}"

    def _by_plan(self, asked: Asked, stride: int, source: str, file: Path) -> tuple[tlsc.Plan | None, str]:
        if isinstance(self.model, OnnxFile):
            raise ArgumentValueError(
                f"{self.name} is an ONNX file, which runs as it was exported: leave --plan out"
            )
        if (asked, stride, source) != ("auto", 1, "window"):
            raise ArgumentValueError(
                "--plan says what becomes of each site: leave --base-size, --stride and --source out"
            )
        made = tlsc.Plan.load(file)
        tlsc.convert(self.model, plan=made)
        if not made.converted:
            return None, f"as trained, as {file} says"
        return made, f"{len(made.converted)} of {len(made)} sites local, as {file} says"

    def _padded(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        more = (height, width) if self.padding is None else self.padding.padded(height, width)
        down, right = (n + -n % self.pad_to - k for n, k in zip(more, (height, width), strict=True))
        mode = "reflect" if down < height and right < width else "replicate"
        return F.pad(image, (0, right, 0, down), mode=mode) if down or right else image

    def _result(self, outputs: Any) -> Tensor:
        found = outputs
        if isinstance(outputs, (list, tuple, Mapping)):
            found = self._chosen(outputs)
        if not isinstance(found, Tensor) or found.dim() != 4:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentTypeError(
                f"{self.name} returned {shown}, not a batch of images; --output names the result"
            )
        return found

    def _chosen(self, outputs: Any) -> Any:
        if self.output is None and len(outputs) == 1:
            return next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
        there = (
            f"keys {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else f"{len(outputs)} entries"
        )
        if self.output is None:
            raise ArgumentValueError(f"{self.name} returned {there}: name the result with --output")
        try:
            return outputs[self.output]
        except (IndexError, KeyError, TypeError) as error:
            raise ArgumentValueError(f"{self.name} has no output {self.output!r}: it returned {there}") from error


def load_network(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    output: str | None = None,
    pad_to: int | None = None,
    crop: int | None = None,
    scale: int | None = None,
    sigma: float | None = None,
    runs: bool = True,
) -> Network:
    """A network by its name, on its device, with what has to be known to run it.

    Args:
        name: as for :func:`find_network`.
        device: where it runs; "auto" is a GPU of NVIDIA's where there is one.
        dtype: "float32", "float16", "bfloat16" or "float64".
        output: entry of a list (a number) or dictionary (a key) of outputs that is the result; by default what is
            known of the network.
        pad_to: sizes it takes are multiples of this; by default what is known of the network.
        crop: side of its training crops; by default what is known of the network.
        scale: output pixels per input pixel; by default what is known of the network, or 1.
        sigma: noise level, of 255, for a network that takes one beside the image.
        runs: whether it will be given images, and needs all that it takes.

    Raises:
        ArgumentValueError: there is no such network, device or dtype, or it takes a noise level and there is none.

    Example:
        >>> network = load_network("se")
        >>> network.crop, network.base_size, network(torch.rand(1, 3, 30, 41)).shape
        (64, 96, torch.Size([1, 3, 30, 41]))
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        near = suggestion(dtype, ("float32", "float16", "bfloat16", "float64"))
        raise ArgumentValueError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}{near}")
    place = _device(chosen_device(device))
    model = find_network(name)
    if isinstance(model, OnnxFile) and place.type != "cpu":
        if device != "auto":
            raise ArgumentValueError(f"{name} is an ONNX file, which runs on the CPU: leave --device {device} out")
        place = torch.device("cpu")
    network = of_model(name, model)
    network.model.to(place, kind).eval()
    if runs and _takes_a_level(model):
        if sigma is None:
            raise ArgumentValueError(f"{name} takes the noise level beside the image: give --sigma, of 255")
        network.sigma = sigma
    if output is not None:
        network.output = int(output) if output.lstrip("-").isdecimal() else output
    if pad_to is not None:
        network.pad_to, network.padding = pad_to, None
    if scale is not None:
        network.scale = scale
    if crop is not None:
        network.crop, network.base_size = crop, crop * 3 // 2
    return network


def _takes_a_level(model: nn.Module) -> bool:
    known = getattr(model, "tlsc", None)
    return isinstance(known, Descriptor) and known.inputs is not None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentValueError(f"device {name!r} cannot be used: {first_line(error, typed=False)}") from error
    return device


def chosen_device(name: str) -> str:
    """The device that a name stands for: ``"auto"`` is ``"cuda"`` where there is a GPU that can be used.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    if name != "auto":
        return name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a GPU whose driver is too old: it is not used
        return "cuda" if torch.cuda.is_available() else "cpu"


def of_model(name: str, model: nn.Module) -> Network:
    """What the descriptor at ``model.tlsc`` says, if there is one (see ``tlsc.adapters.load``)."""
    if isinstance(model, OnnxFile):
        return Network(name, model, "ONNX file", channels=model.in_channels)
    known = getattr(model, "tlsc", None)
    if not isinstance(known, Descriptor):
        return Network(name, model, type(model).__name__, channels=_channels(model))
    task = f", {known.task}" if known.task else ""
    text = DEMO_NETWORKS[name].description if name in DEMO_NETWORKS else f"{known.architecture}{task}"
    return Network(
        name, model, text, known.crop, known.base_size, known.scale, known.in_channels, padding=known.padding
    )


def _channels(model: nn.Module) -> int:
    """1 for a network whose first convolution takes one channel, else 3."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def checksum(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's state.

    Example:
        >>> one, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        >>> checksum(one) == checksum(one), checksum(one) == checksum(other)
        (True, False)
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
