"""What is known about a restorer, so that nobody has to know which class it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tlsc.errors import ArgumentTypeError

__all__ = ["Descriptor", "Padding"]


@dataclass(frozen=True)
class Padding:
    """The sizes that a network computes at, in pixels.

    Attributes:
        multiple: height and width are multiples of this.
        minimum: and at least this.
        square: and equal.
        inside: the network pads and cuts by itself, and takes any size; otherwise its caller has to
            (:func:`tlsc.adapters.run` does).
    """

    multiple: int = 1
    minimum: int = 1
    square: bool = False
    inside: bool = True

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of this size is padded to.

        Example:
            >>> Padding(multiple=8).padded(20, 32)
            (24, 32)
        """
        least = [max(n, self.minimum) for n in (height, width)]
        height, width = (n + -n % self.multiple for n in least)
        return (max(height, width),) * 2 if self.square else (height, width)


@dataclass(frozen=True)
class Descriptor:
    """What a restorer is: the attribute ``tlsc`` of every network that :func:`tlsc.adapters.load` returns.

    Attributes:
        architecture: its name, such as "HINet".
        settings: the arguments that the architecture was built with; what ``spandrel`` found out, for its networks.
        task: what it undoes ("deblurring", "super-resolution", ...), None where the checkpoint does not say.
        scale: output pixels per input pixel, along an axis.
        in_channels, out_channels: of the images, 3 for RGB.
        padding: the sizes that it computes at.
        crop: side of the square training crops in pixels, None where it is not known.
        output: which entry of a list of outputs is the result; None for a network that returns the result.
        call: how to call a network of others on an image, (model, image) -> outputs; None for ``model(image)``.
        inputs: call arguments for an image of a size, (height, width) -> arguments; None where it takes an image
            and nothing else.
        halves: the network cuts images in the middle and works on the halves; its forward takes ``middle=(row,
            column)``, where to cut, so that a part of an image is cut where the whole is.
        source: the package that the code of the network comes from.
        origin: where facts come from, in words, by their names: ``"weights"`` (the file, and the keys that they lie
            under), ``"task"``, ``"crop"``.
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    scale: int = 1
    in_channels: int = 3
    out_channels: int = 3
    padding: Padding = field(default_factory=Padding)
    crop: int | None = None
    output: int | None = None
    call: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    inputs: Callable[[int, int], Any] | None = field(default=None, repr=False, compare=False)
    halves: bool = False
    source: str = "tlsc"
    origin: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def base_size(self) -> int | None:
        """The recommended window at the input in pixels: 1.5 times the training crop, as in the paper."""
        return None if self.crop is None else self.crop * 3 // 2

    def result(self, outputs: Any) -> Tensor:
        """The restored image among what the network returned.

        Raises:
            ArgumentTypeError: there is no tensor at the place where it should be.

        Example:
            >>> import torch
            >>> Descriptor("HINet", output=-1).result([torch.zeros(1), torch.ones(1)])
            tensor([1.])
        """
        found = outputs
        if isinstance(outputs, (list, tuple)) and outputs:
            found = outputs[0 if self.output is None else self.output]
        if not isinstance(found, Tensor):
            raise ArgumentTypeError(f"{self.architecture} returned {type(outputs).__name__}, not an image")
        return found
