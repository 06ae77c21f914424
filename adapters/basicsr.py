"""Our networks under the published names in BasicSR's registries: option files for the published code run here.

``python -m tlsc.adapters.basicsr -opt FILE`` runs BasicSR's own test pipeline on an option file, after
``import tlsc.adapters.basicsr`` has registered ``HINet``, ``HINetLocal``, ``MPRNet``, ``MPRNetLocal``, and, where
spandrel is installed, ``NAFNetLocal`` and ``RestormerLocal``, and the model type ``ImageRestorationModel``.

In evaluation mode each returns the restored image, as BasicSR's models expect; HINet and MPRNet return their lists
of stages in training mode.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc
from tlsc._arguments import as_pair, as_positive_int, shown
from tlsc.adapters import hinet, mprnet
from tlsc.errors import ArgumentValueError, MissingPackageError

__all__ = ["HINet", "HINetLocal", "ImageRestorationModel", "MPRNet", "MPRNetLocal", "main"]

# The published fast path subsamples by up to 5; on this grid the error is a tenth of its error.
_FAST_STRIDE = 4


@contextmanager
def _torchvision_as_it_was() -> Iterator[None]:
    """BasicSR imports a module that torchvision has renamed."""
    name = "torchvision.transforms.functional_tensor"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        from torchvision.transforms import functional

        shim = types.ModuleType(name)
        shim.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
        sys.modules[name] = shim
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield


try:
    with warnings.catch_warnings(), _torchvision_as_it_was():
        warnings.simplefilter("ignore")
        from basicsr.models.sr_model import SRModel
        from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("basicsr", "torchvision"):
        raise
    raise MissingPackageError(
        f"{__name__} needs {error.name}: pip install 'tlsc[basicsr]' (Python 3.12 at most)", name=error.name
    ) from error


class HINet(hinet.HINet):
    """:class:`tlsc.adapters.HINet`; in evaluation mode it returns the result alone."""

    def forward(self, image: Tensor) -> Any:
        stages = super().forward(image)
        return stages if self.training else self.tlsc.result(stages)


class MPRNet(mprnet.MPRNet):
    """:class:`tlsc.adapters.MPRNet`; in evaluation mode it returns the result alone."""

    def forward(self, image: Tensor, middle: tuple[int, int] | None = None) -> Any:
        stages = super().forward(image, middle)
        return stages if self.training else self.tlsc.result(stages)


class HINetLocal(HINet):
    """``HINet`` with local statistics.

    Args:
        base_size: window at the input in pixels, an int or (height, width); by default 1.5 times ``train_size``.
        train_size: the training crop: an int, (height, width) or (N, C, height, width).
        fast_imp: pools on a grid (norms stay exact), as ``stride=4``.
        stride: this grid instead.
        *args, **kwargs: of ``HINet``.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used.
    """

    def __init__(
        self,
        *args: Any,
        base_size: Any = None,
        train_size: Any = (1, 3, 256, 256),
        fast_imp: bool = False,
        stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _convert(self, base_size, train_size, fast_imp, stride)


class MPRNetLocal(MPRNet):
    """``MPRNet`` with local statistics; arguments as for :class:`HINetLocal`."""

    def __init__(
        self,
        *args: Any,
        base_size: Any = None,
        train_size: Any = (1, 3, 256, 256),
        fast_imp: bool = False,
        stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _convert(self, base_size, train_size, fast_imp, stride)


def _local(network: type[nn.Module], name: str, multiple: int) -> type[nn.Module]:
    """A network of spandrel with local statistics, under its published name."""

    def __init__(
        self: Any,
        *,
        base_size: Any = None,
        train_size: Any = (1, 3, 256, 256),
        fast_imp: bool = False,
        stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        network.__init__(self, **kwargs)
        _convert(self, base_size, train_size, fast_imp, stride)

    def forward(self: Any, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        restored: Tensor = network.forward(self, padded)
        return restored[..., :height, :width]

    doc = f"``{network.__name__}`` of spandrel with local statistics; arguments as for :class:`HINetLocal`."
    members = {"__init__": __init__, "forward": forward, "__doc__": doc, "__module__": __name__}
    return type(name, (network,), members)


def _convert(model: nn.Module, base_size: Any, train_size: Any, fast_imp: bool, stride: int | None) -> None:
    size = as_pair(_crop(train_size) if base_size is None else base_size, "base_size")
    if base_size is None:
        size = size[0] * 3 // 2, size[1] * 3 // 2
    if stride is None:
        stride = _FAST_STRIDE if fast_imp else 1
    tlsc.convert(model.eval(), size, stride=as_positive_int(stride, "stride"))


def _crop(train_size: Any) -> Any:
    """The height and width in what option files call train_size."""
    if isinstance(train_size, (list, tuple)):
        if len(train_size) not in (2, 4):
            raise ArgumentValueError(
                f"train_size must be an int, (height, width) or (N, C, height, width), got {shown(train_size)}"
            )
        return as_pair(list(train_size[-2:]), "train_size")
    return as_pair(train_size, "train_size")


class ImageRestorationModel(SRModel):  # type: ignore[misc]
    """The model type that published option files name: BasicSR's own, which takes what theirs may leave out."""

    def __init__(self, opt: dict[str, Any]) -> None:
        validation = opt.get("val") or {}
        if validation.get("grids"):
            raise ArgumentValueError(
                "val: grids: true (testing in crops) is not part of BasicSR's pipeline; whole images with a local "
                "network are what it stands in for: set it to false"
            )
        validation.setdefault("suffix", None)
        super().__init__(opt)

    def test(self) -> None:
        """Run the network on the current image."""
        self.output: Any
        super().test()
        if isinstance(self.output, (list, tuple)):
            self.output = self.output[-1]


def _register() -> None:
    classes: list[type[nn.Module]] = [HINet, HINetLocal, MPRNet, MPRNetLocal]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from spandrel.architectures.NAFNet import NAFNet
            from spandrel_extra_arches.architectures.Restormer import Restormer
    except ImportError:
        pass  # an extra; BasicSR says which names it has
    else:
        classes += [_local(NAFNet, "NAFNetLocal", 1), _local(Restormer, "RestormerLocal", 8)]
    for network in classes:
        if network.__name__ not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(network)
        globals()[network.__name__] = network  # where pickle looks for it
    if ImageRestorationModel.__name__ not in MODEL_REGISTRY:
        MODEL_REGISTRY.register(ImageRestorationModel)


_register()


def main(argv: Sequence[str] | None = None) -> None:
    """Run BasicSR's test pipeline: ``-opt FILE`` and BasicSR's other options; results go to ``results/`` here.

    Without a GPU the option file's ``num_gpu`` counts as 0.
    """
    from basicsr.test import test_pipeline

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not torch.cuda.is_available() and not any(argument.startswith("num_gpu=") for argument in arguments):
        if "--force_yml" not in arguments:
            arguments.append("--force_yml")
        arguments.insert(arguments.index("--force_yml") + 1, "num_gpu=0")
    before = sys.argv
    sys.argv = ["tlsc.adapters.basicsr", *arguments]
    try:
        test_pipeline(os.getcwd())
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
