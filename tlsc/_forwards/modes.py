"""The modes of a thread that code can switch while it runs: gradients, inference, autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

__all__ = ["Modes", "ambient", "depth_of_autocast", "entered"]


class Modes(NamedTuple):
    """``autocast``: for a type of device, whether it is on, and the type it casts to."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]


def ambient(devices: tuple[str, ...]) -> Modes:
    """The modes of this thread now."""
    return Modes(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tuple(
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in devices
            if torch.amp.is_autocast_available(device)
        ),
    )


def depth_of_autocast() -> int:
    """In how many autocast blocks this thread is; PyTorch tells it only on the way in and out."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


@contextmanager
def entered(modes: Modes) -> Iterator[None]:
    """Run a block in these modes; afterwards the thread is in its own again."""
    with ExitStack() as stack:
        if modes.inference != torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(modes.inference))
        stack.enter_context(torch.set_grad_enabled(modes.grad))
        for device, enabled, dtype in modes.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        yield
