"""The operator ``tlsc::nonlocal_means``: everything between the extended image and the mean before clamping.

Which implementation runs is decided here, when there are values; autograd and graphs see one opaque operator whose
backward pass is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tlsc._internal import backends
from tlsc.adapters.nlm import geometry, torch_form
from tlsc.errors import ArgumentValueError, BackendError, TLSCError

__all__ = ["SecondDerivativeError", "choose", "filtered"]

OPERATION = "nonlocal_means"
_Result = TypeVar("_Result")


class SecondDerivativeError(TLSCError, NotImplementedError):
    """Non-local means were to be differentiated twice."""


def choose(implementation: str, x: Tensor) -> str:
    """The implementation that is to compute on ``x``: "torch", "numba" or "triton".

    Raises:
        ArgumentValueError: Numba is named in the call, and ``x`` is not on the CPU.
        BackendError: the one that is named, in the call or by :func:`tlsc.backend`, cannot run.
    """
    if implementation == "numba" and x.device.type not in ("cpu", "meta"):
        raise ArgumentValueError(f'implementation="numba" runs on the CPU, but x is on {x.device}; use "torch"')
    name = implementation if implementation != "auto" else backends.named()
    if name == "torch":
        return name
    if name == "auto":
        return _automatic(x)
    own = backends.BACK_ENDS[name]
    why = own.why_unusable()
    if why is None and not (implementation == name and x.is_meta):
        why = own.module().why_not(x)
    if why is not None:
        raise BackendError(f"the {name} back end cannot run here: {why}; 'auto' takes what is there")
    return name


def _automatic(x: Tensor) -> str:
    for name, own in backends.BACK_ENDS.items():
        if own.device == x.device.type and OPERATION not in own.failures:
            why = own.why_unusable()
            if why is None and own.module().why_not(x) is None:
                return name
            if x.device.type == "cuda":  # a GPU would be left to a form that takes several times as long
                own.named_once(f"cannot run here: {why}")
    return "torch"


def _answered(implementation: str, x: Tensor, compute: Callable[[str], _Result]) -> _Result:
    """``compute`` with the name of an implementation; with PyTorch's where one fails that nobody named."""
    name = choose(implementation, x)
    if name == "torch":
        return compute(name)
    try:
        return compute(name)
    except (TLSCError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        automatic = implementation == "auto" and backends.named() == "auto"
        own = backends.BACK_ENDS[name]
        return backends.instead(own, OPERATION, error, automatic, lambda: compute("torch"))


@torch.library.custom_op("tlsc::nonlocal_means", mutates_args=())
def filtered(
    image: Tensor,
    guide: Tensor,
    h: Tensor,
    search_window: int,
    patch: int,
    power: int,
    floor: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Mean (N, C, H, W) and sum of weights (N, H, W) of the inner part of ``image``, ``guide`` (both extended).

    ``weight = exp(−(d/h)^power)``, ``d² = max(Σ (guide − shifted guide)² − floor, 0)``.
    """
    settings = (search_window, patch, power, floor)
    return _answered(implementation, image, lambda name: _forward_by(name, image, guide, h, *settings))


def _forward_by(
    name: str, image: Tensor, guide: Tensor, h: Tensor, search_window: int, patch: int, power: int, floor: float
) -> tuple[Tensor, Tensor]:
    margin = search_window // 2 + patch // 2
    if name == "triton":
        from tlsc.adapters.nlm.triton_form import forward

        return forward(image, guide, geometry.rate(h, power), search_window, patch, power, floor)
    weighted = torch.zeros_like(image, memory_format=torch.contiguous_format)
    weights = torch.ones_like(image[:, 0], memory_format=torch.contiguous_format)  # that of the zero shift
    rate = geometry.extended_rate(h, power, margin)
    _pairwise(name).forward(image, guide, rate, search_window, patch, power, floor, weighted, weights)
    total = geometry.inner(weights, margin).contiguous()
    return geometry.inner(image, margin) + geometry.inner(weighted, margin) / total.unsqueeze(1), total


def _pairwise(name: str) -> Any:
    """The module whose functions add up pairs of positions, in extended coordinates."""
    if name == "torch":
        return torch_form
    from tlsc.adapters.nlm import numba_kernels

    return numba_kernels


@torch.library.custom_op("tlsc::nonlocal_means_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    image: Tensor,
    guide: Tensor,
    h: Tensor,
    mean: Tensor,
    total: Tensor,
    search_window: int,
    patch: int,
    power: int,
    floor: float,
    implementation: str,
    needs_image: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, guide and h; the first two are empty unless ``needs_image``."""
    settings = (search_window, patch, power, floor)
    g = (grad / total.unsqueeze(1)).contiguous()
    margin = search_window // 2 + patch // 2
    g_mean = (g * (mean - geometry.inner(image, margin))).sum(1)

    def compute(name: str) -> tuple[Tensor, Tensor, Tensor]:
        return _backward_by(name, image, guide, h, g, g_mean, needs_image, *settings)

    grad_image, grad_guide, grad_h = _answered(implementation, image, compute)
    if h.shape[1:] == (1, 1):
        grad_h = grad_h.sum((1, 2), keepdim=True)
    for _ in range(power + 1):  # one after the other: the power itself may be too small for its type
        grad_h = grad_h / h
    return grad_image, grad_guide, torch.where(h <= geometry.ZERO_STRENGTH, torch.zeros_like(h), power * grad_h)


def _backward_by(
    name: str,
    image: Tensor,
    guide: Tensor,
    h: Tensor,
    g: Tensor,
    g_mean: Tensor,
    needs_image: bool,
    search_window: int,
    patch: int,
    power: int,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``grad_h`` (N, H, W) lacks a factor of power / h^(power + 1)."""
    settings = (search_window, patch, power, floor)
    if name == "triton":
        from tlsc.adapters.nlm.triton_form import backward

        return backward(image, guide, geometry.rate(h, power), *settings, g, g_mean, needs_image)
    margin = search_window // 2 + patch // 2
    g, g_mean = geometry.pad(g, margin), geometry.pad(g_mean, margin)
    grad_image = g.clone() if needs_image else g.new_empty((*g.shape[:2], 0, 0))
    grad_guide = guide.new_zeros(guide.shape if needs_image else (*guide.shape[:2], 0, 0))
    grad_h = torch.zeros_like(g_mean)
    rate = geometry.extended_rate(h, power, margin)
    gradients = (grad_image, grad_guide, grad_h)
    _pairwise(name).backward(image, guide, rate, *settings, g, g_mean, needs_image, *gradients)
    return grad_image, grad_guide, geometry.inner(grad_h, margin)


@filtered.register_fake
def _(image: Tensor, guide: Tensor, h: Tensor, search_window: int, patch: int, *settings: Any) -> Any:
    margin = search_window // 2 + patch // 2
    n, c, height, width = image.shape
    shape = (n, c, height - 2 * margin, width - 2 * margin)
    return image.new_empty(shape), image.new_empty((n, *shape[2:]))


@_gradients.register_fake
def _(grad: Tensor, image: Tensor, guide: Tensor, h: Tensor, *settings: Any) -> Any:
    empty = [like.new_empty(like.shape if settings[-1] else (*like.shape[:2], 0, 0)) for like in (image, guide)]
    return *empty, h.new_empty(h.shape)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    mean, total = output
    ctx.mark_non_differentiable(total)
    ctx.save_for_backward(*inputs[:3], mean, total)
    ctx.settings = inputs[3:]


def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    needs_image = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    grads = _gradients(grad, *ctx.saved_tensors, *ctx.settings, needs_image)
    image, guide = grads[:2] if needs_image else (None, None)
    return image, guide, grads[2], *(None for _ in ctx.settings)


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise SecondDerivativeError(
        "nonlocal_means can be differentiated once only: its backward pass computes again what autograd would "
        "store, outside autograd. Call backward or grad on it without create_graph=True."
    )


filtered.register_autograd(_backward, setup_context=_setup_context)
_gradients.register_autograd(_no_second_derivative)
