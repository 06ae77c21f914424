"""Lightning: local statistics in validation, test and prediction, the original ones in training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

import tlsc
from tlsc.errors import ArgumentValueError, needing

with needing("lightning", "a callback for Lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.model_helpers import is_overridden

__all__ = ["LocalValidation"]


class LocalValidation(Callback):  # type: ignore[misc]
    """Converts the network when validation, testing or predicting starts, and puts it back when that ends.

    Training sees the original network, also after an exception in a validation step. Checkpoints are the same, as
    converting changes no key and no value of the ``state_dict``. Each process of a distributed run converts its own
    copy. A network that was converted by hand is, afterwards, converted by hand again.

    Args:
        base_size: window at the input in pixels, see :func:`tlsc.convert`.
        module: the path of the network in the ``LightningModule``, such as ``"net"`` or ``"model.unet"``; None: the
            ``LightningModule`` itself, which then needs a ``forward`` from an image to an image.
        options: more arguments of :func:`tlsc.convert`: ``stride``, ``include``, ``example_input``, …

    Raises:
        MissingPackageError: on import, where Lightning is not installed.
        ArgumentValueError: when validation starts: there is no such module, or no ``forward``.
        TLSCError: likewise, as :func:`tlsc.convert`.

    Example:
        >>> callback = LocalValidation(384, module="net", stride=8)
        >>> Trainer(callbacks=[callback], logger=False).callbacks[0] is callback
        True
    """

    def __init__(self, base_size: int | tuple[int, int], module: str | None = None, **options: Any) -> None:
        self.base_size, self.module, self.options = base_size, module, options
        self._open = ExitStack()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()
        self._open.enter_context(tlsc.converted(self._network(pl_module), self.base_size, **self.options))
        # Far pixels are looked for once; the network does not change its structure between validations.
        self.options.setdefault("check", False)

    def _end(self, trainer: Trainer, pl_module: LightningModule, *exception: BaseException) -> None:
        self._open.close()

    on_validation_start = on_test_start = on_predict_start = _start
    on_validation_end = on_test_end = on_predict_end = on_exception = _end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What was interrupted without an exception."""
        self._open.close()

    def _network(self, pl_module: LightningModule) -> nn.Module:
        name = type(pl_module).__name__
        if self.module is None:
            if not is_overridden("forward", pl_module, LightningModule):
                raise ArgumentValueError(
                    f"{name} has no forward that could be run on an image: name the network in it, such as "
                    f"LocalValidation({self.base_size}, module=...) with one of "
                    f"{', '.join(repr(child) for child, _ in pl_module.named_children()) or 'its children'}"
                )
            network: nn.Module = pl_module
            return network
        try:
            found: nn.Module = pl_module.get_submodule(self.module)
        except AttributeError as error:
            raise ArgumentValueError(f"{name} has no module {self.module!r}: {error}") from error
        return found
