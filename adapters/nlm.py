"""Non-local means as a differentiable layer, in memory that does not depend on its window or its patch.

Autograd would store a few planes for each of the ``search_window²`` shifts. Here the backward pass computes them
again. It is one custom operator with two implementations: plain PyTorch, on any device, and Numba kernels for the
CPU (:mod:`tlsc.adapters._nlm_numba`), loaded when first used. Graphs that are exported get PyTorch's own
operations instead, for images of any size (:func:`_exported`).

Both go through half of the shifts only: the distance of p to p + s is the distance of p + s to p. Both sum patches
by additions alone, from sums of 1, 2, 4, … elements or from block sums, so that the cost hardly depends (PyTorch:
on the logarithm) or does not depend on the patch, equal patches have distance exactly 0, and a NaN stays where it
is. And both add up ``weight · (neighbour − x)``, so that a constant image stays exactly what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from tlsc._arguments import FLOATING, as_positive_int, check_map
from tlsc._statistics import any_size as _graph
from tlsc._statistics import backends
from tlsc._statistics.reference import _is_traced
from tlsc.errors import ArgumentTypeError, ArgumentValueError, BackendError, TLSCError

__all__ = ["NonLocalMeans", "SecondDerivativeError", "nonlocal_means"]

Border = Literal["circular", "reflect"]
Distance = Literal["luma", "color"]
Weights = Literal["exponential", "gaussian"]
Implementation = Literal["auto", "torch", "numba"]

LUMA = (0.299, 0.587, 0.114)
# Down to here 1/(h · distance) is finite in float32. No image resolves differences of 1e-12.
ZERO_STRENGTH = 1e-12
STRIP_ROWS = 128


class SecondDerivativeError(TLSCError, NotImplementedError):
    """Non-local means were to be differentiated twice."""


def nonlocal_means(
    x: Tensor,
    h: Tensor | float,
    search_window: int = 11,
    patch: int = 5,
    border: Border = "circular",
    *,
    distance: Distance = "luma",
    weights: Weights = "exponential",
    sigma: float = 0.0,
    implementation: Implementation = "auto",
) -> Tensor:
    """Non-local means: every pixel becomes a mean of its neighbours, weighted by how alike their patches look.

    For each shift in a ``search_window × search_window`` window, ``d = sqrt(Σ (y − shifted y)²)`` over a
    ``patch × patch`` patch of the luma ``y = 0.299 R + 0.587 G + 0.114 B`` (of one channel: the channel itself),
    and ``weight = exp(−d / max(h, 0))``. The result is ``Σ weight · shifted x / Σ weight``, clamped to [0, 1].

    ``distance="color", weights="gaussian"`` with ``sigma`` is the definition of Buades et al. and of scikit-image:
    ``weight = exp(−max(Σ (x − shifted x)² − 2 σ² n, 0) / h²)``, the sum over a patch of all channels, n values. It
    gave 0.2 to 1.8 dB over the default on six photographs, patch 5, most where colours differ.

    ``h ≤ 0`` (in fact ≤ 1e-12) is the limit: only neighbours at distance 0 count, and ``h`` has gradient 0. A
    distance of 0, as that of the zero shift, contributes 0 to the gradients although its square root has none. A
    NaN reaches the pixels whose search window, with its patches, contains it.

    Args:
        x: image (N, 3, H, W) or (N, 1, H, W), nominally in [0, 1]; float16, bfloat16, float32 or float64 (the
            first two are computed in float32).
        h: strength, in units of ``x`` times ``patch``: a number or a tensor of one element for all, (N, 1, 1, 1)
            for each image, or a map (N, 1, H, W).
        search_window: side of the window of shifts, in pixels; odd.
        patch: side of the compared patches, in pixels; odd.
        border: what lies outside the image: ``"circular"``, its other side; ``"reflect"``, its mirror image about
            the centre of the border pixels. The image may be smaller than the window.
        distance: what patches are compared in: ``"luma"``, or ``"color"``, all channels, whose squares are added.
        weights: ``"exponential"``, exp(−d/h), or ``"gaussian"``, exp(−d²/h²).
        sigma: standard deviation of the noise in each channel of ``x``, where it is known: what it adds to d² on
            average is subtracted from it. 0: nothing is.
        implementation: ``"torch"``, ``"numba"`` (CPU only; compiled when first used), or ``"auto"``: what
            :func:`tlsc.backend` names (there is no Triton kernel; PyTorch stands in), else Numba on the CPU where
            it can run.

    ``torch.export``, ``torch.compile`` and :func:`tlsc.export` take it at any size.

    Returns:
        Same shape, dtype and memory format as ``x``. It can be differentiated once, with respect to ``x`` and
        ``h``, at a memory cost independent of ``search_window`` and ``patch``.

    Raises:
        ArgumentTypeError: ``x`` is not a floating tensor, ``h`` is neither a number nor a floating tensor,
            ``search_window`` or ``patch`` is not an int, ``sigma`` is not a number.
        ArgumentValueError: ``x`` has not 4 dimensions, 1 or 3 channels and at least one pixel; ``h`` has another
            shape than listed, or another device; ``search_window`` or ``patch`` is even or below 1; ``border``,
            ``distance``, ``weights`` or ``implementation`` is not one of those named; ``sigma`` is negative or not
            finite; Numba is asked for off the CPU.
        BackendError: Numba is asked for, here or by :func:`tlsc.backend`, and cannot run.
        SecondDerivativeError: it is differentiated twice (a NotImplementedError, from ``backward``).

    Source:
        Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005, by default with the distance
        instead of its square in the exponent; ``sigma`` as in their "Non-Local Means Denoising", IPOL 2011.

    Example:
        >>> x = torch.tensor([[[[0.2, 0.4, 0.2, 0.9]]]])
        >>> nonlocal_means(x, h=0.2, search_window=3, patch=1)
        tensor([[[[0.2677, 0.3152, 0.2677, 0.8601]]]])
    """
    _check_image(x)
    window = _as_odd(search_window, "search_window")
    side = _as_odd(patch, "patch")
    _check_choice(border, "border", Border)
    dtype = _working_dtype(x)
    strength = _strength(h, x).to(dtype)
    _check_choice(implementation, "implementation", Implementation)
    _check_choice(distance, "distance", Distance)
    _check_choice(weights, "weights", Weights)
    channels = x.shape[1] if distance == "color" else 1
    mixing = sum(share**2 for share in LUMA) if x.shape[1] == 3 and distance == "luma" else channels
    floor = 2 * _as_noise(sigma) ** 2 * side**2 * mixing
    power = 2 if weights == "gaussian" else 1
    margin = window // 2 + side // 2
    if _graph.leaves():
        image = _extend(x.to(dtype), margin, border)
        guide = _guide(image, distance)
        return _exported(image, guide, strength, window, side, power, floor).to(x.dtype).clamp(0, 1)
    if x.shape[0] == 0:
        return (x * strength.sum()).clamp(0, 1)
    # A compiled graph chooses when it runs.
    chosen = implementation if torch.compiler.is_compiling() else _choose(implementation, x)
    image = _extend(x.to(dtype), margin, border)
    mean, _ = _filter(image, _guide(image, distance), strength, window, side, power, floor, chosen)
    result: Tensor = mean.to(x.dtype).clamp(0, 1)
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result


class NonLocalMeans(nn.Module):
    """Non-local means with a learnable strength: :func:`nonlocal_means` as a layer.

    Args:
        h: initial strength, a number or a tensor of one element, which becomes the parameter ``h``, a scalar; in
            units of the image times ``patch``. None for a layer without parameter, which is given its strength.
        search_window: side of the window of shifts, in pixels; odd.
        patch: side of the compared patches, in pixels; odd.
        border: ``"circular"`` or ``"reflect"``.
        distance: ``"luma"`` or ``"color"``.
        weights: ``"exponential"`` or ``"gaussian"``.
        sigma: standard deviation of the noise, where it is known.
        implementation: ``"auto"``, ``"torch"`` or ``"numba"``.

    Shape:
        (N, 3, H, W) → (N, 3, H, W), or the same with one channel. ``forward(x, h)`` takes a strength for each image
        (N, 1, 1, 1) or pixel (N, 1, H, W) in place of the parameter.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`nonlocal_means`; ``h`` is missing in ``forward`` of a
            layer without parameter.

    Example:
        >>> layer = NonLocalMeans(h=0.2, search_window=3, patch=1)
        >>> layer(torch.tensor([[[[0.2, 0.4, 0.2, 0.9]]]])).detach()
        tensor([[[[0.2677, 0.3152, 0.2677, 0.8601]]]])
        >>> layer(torch.rand(2, 3, 8, 8), torch.full((2, 1, 8, 8), 0.1)).shape
        torch.Size([2, 3, 8, 8])
    """

    h: nn.Parameter | None

    def __init__(
        self,
        h: float | Tensor | None,
        search_window: int = 11,
        patch: int = 5,
        border: Border = "circular",
        *,
        distance: Distance = "luma",
        weights: Weights = "exponential",
        sigma: float = 0.0,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.search_window = _as_odd(search_window, "search_window")
        self.patch = _as_odd(patch, "patch")
        _check_choice(border, "border", Border)
        _check_choice(implementation, "implementation", Implementation)
        _check_choice(distance, "distance", Distance)
        _check_choice(weights, "weights", Weights)
        self.border: Border = border
        self.distance: Distance = distance
        self.weights: Weights = weights
        self.sigma = _as_noise(sigma)
        self.implementation: Implementation = implementation
        self._given: float | None = None
        if h is None:
            self.register_parameter("h", None)
        elif isinstance(h, Tensor):
            if h.dtype not in FLOATING:
                raise ArgumentTypeError(f"h must be a number or a floating tensor, got {h.dtype}")
            if h.numel() != 1:
                raise ArgumentValueError(f"h must have one element, got shape {tuple(h.shape)}")
            self.h = nn.Parameter(h.detach().clone().reshape(()))
        else:
            self._given = _as_number(h, "h")
            self.h = nn.Parameter(torch.tensor(self._given))

    def forward(self, x: Tensor, h: Tensor | float | None = None) -> Tensor:
        strength = self.h if h is None else h
        if strength is None:
            raise ArgumentValueError("h must be given: this layer was built with h=None and has no strength")
        return nonlocal_means(
            x,
            strength,
            self.search_window,
            self.patch,
            self.border,
            distance=self.distance,
            weights=self.weights,
            sigma=self.sigma,
            implementation=self.implementation,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> NonLocalMeans:
        unchanged = self._unchanged()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if unchanged and self.h is not None and self._given is not None:
            # ``NonLocalMeans(0.1).double()`` has the strength 0.1, not its float32 rounding.
            with torch.no_grad():
                self.h.fill_(self._given)
        return self

    def _unchanged(self) -> bool:
        if self._given is None or self.h is None or _is_traced(self.h):
            return False
        return self.h.item() == torch.tensor(self._given, dtype=self.h.dtype).item()

    def extra_repr(self) -> str:
        shown = f"search_window={self.search_window}, patch={self.patch}, border={self.border!r}"
        for name, usual in (("distance", "luma"), ("weights", "exponential"), ("sigma", 0.0)):
            if (value := getattr(self, name)) != usual:
                shown += f", {name}={value!r}"
        return shown


def _check_image(x: Any) -> None:
    check_map(x)
    if x.shape[1] not in (1, 3):
        raise ArgumentValueError(f"x must have 1 or 3 channels, got {x.shape[1]}: shape {tuple(x.shape)}")


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _as_odd(value: Any, name: str) -> int:
    number = as_positive_int(value, name)
    if number % 2 == 0:
        raise ArgumentValueError(f"{name} must be odd, so that it has a centre, got {number}")
    return number


def _as_number(value: Any, name: str, what: str = "a number or a floating tensor") -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, (str, complex)):
        raise ArgumentTypeError(f"{name} must be {what}, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} must be {what}, got {value!r}") from None


def _as_noise(value: Any) -> float:
    sigma = _as_number(value, "sigma", "a number")
    if not 0 <= sigma < math.inf:
        raise ArgumentValueError(f"sigma must be a standard deviation, finite and not negative, got {value!r}")
    return sigma


def _check_choice(value: Any, name: str, choices: Any) -> None:
    names = get_args(choices)
    if value not in names:
        raise ArgumentValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")


def _choose(implementation: str, x: Tensor) -> str:
    if implementation == "numba" and x.device.type not in ("cpu", "meta"):
        raise ArgumentValueError(f'implementation="numba" runs on the CPU, but x is on {x.device}; use "torch"')
    name = implementation if implementation != "auto" else backends.named()
    if name == "numba" or (name == "auto" and x.device.type == "cpu"):
        own = backends.BACK_ENDS["numba"]
        why = own.why_unusable() or (None if implementation == "numba" else own.module().why_not(x))
        if why is None:
            return "numba"
        if name == "numba":
            raise BackendError(f"the numba back end cannot run here: {why}; 'auto' takes what is there")
    return "torch"


def _strength(h: Any, x: Tensor) -> Tensor:
    """``h`` as (N, 1, 1) or (N, H, W)."""
    if not isinstance(h, Tensor):
        return torch.full((x.shape[0], 1, 1), _as_number(h, "h"), dtype=_working_dtype(x), device=x.device)
    if h.dtype not in FLOATING:
        raise ArgumentTypeError(f"h must be a number or a floating tensor, got {h.dtype}")
    n, _, height, width = x.shape
    if h.device != x.device:
        raise ArgumentValueError(f"h is on {h.device} but x is on {x.device}; move one of them")
    if h.shape in ((), (1,)):
        return h.reshape(1, 1, 1).expand(n, 1, 1)
    if h.shape in ((n, 1, height, width), (n, 1, 1, 1)):
        return h.squeeze(1)
    raise ArgumentValueError(
        f"h must be one number, ({n}, 1, 1, 1) or ({n}, 1, {height}, {width}) for this x, got {tuple(h.shape)}"
    )


def _extend(x: Tensor, margin: int, border: Border) -> Tensor:
    """``x`` continued by ``margin`` pixels on each side, also where it is smaller than that."""
    for dim in (2, 3):
        size = x.shape[dim]
        index = torch.arange(-margin, size + margin, device=x.device)
        # A tensor, and no branch on the size, so that graphs keep it open.
        period = torch.arange(size, size + 1, device=x.device)
        if border == "reflect":
            period = (2 * (period - 1)).clamp_min(1)
        index = index % period
        if border == "reflect":
            index = torch.minimum(index, period - index)
        x = x.index_select(dim, index)
    return x


def _guide(x: Tensor, distance: Distance) -> Tensor:
    """What patches are compared in: (N, 1, H, W), or all channels."""
    if x.shape[1] == 1 or distance == "color":
        return x.clone()
    r, g, b = x.unbind(1)
    return (r * LUMA[0] + g * LUMA[1] + b * LUMA[2]).unsqueeze(1)


def _exported(image: Tensor, guide: Tensor, h: Tensor, window: int, patch: int, power: int, floor: float) -> Tensor:
    """The mean (N, C, H, W) before clamping, by operations that ONNX knows: all shifts of a row at a time.

    Of (N, dx, C, H, W) everything; a handful of nodes for each of ``window`` rows, sizes nowhere but in slices.
    """
    radius, half = window // 2, patch // 2
    margin = radius + half
    rate = _rate(h, power).unsqueeze(1)
    center, center_guide = _inner(image, margin).unsqueeze(1), _inner(guide, radius).unsqueeze(1)
    columns = range(window)
    images = torch.stack([_part(image, half + dx, margin + radius - dx, -1) for dx in columns], 1)
    guides = torch.stack([_part(guide, dx, 2 * radius - dx, -1) for dx in columns], 1)
    total, mean = torch.zeros_like(guide[:, 0, :1, :1]), torch.zeros_like(image[:, :, :1, :1])
    for dy in columns:
        squared = _over_channels((_part(guides, dy, 2 * radius - dy, -2) - center_guide).square(), 2)
        if patch > 1:
            # PyTorch's exporter drops a divisor_override without a word.
            squared = torch.nn.functional.avg_pool2d(squared, patch, 1) * patch**2
        if floor:
            squared = (squared - floor).relu()
        if power == 1:
            zero = squared == 0
            squared = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
        weight = (-squared * rate).exp()
        step = _part(images, half + dy, margin + radius - dy, -2) - center
        mean = mean + (weight.unsqueeze(2) * step).sum(1)
        total = total + weight.sum(1)
    return center.squeeze(1) + mean / total.unsqueeze(1)


def _part(x: Tensor, first: int, after: int, dim: int) -> Tensor:
    """``x`` without its ``first`` and its last ``after`` positions on one axis."""
    end = -after if after else None
    return x[..., first:end] if dim == -1 else x[..., first:end, :]


# The operator: everything between the extended image and the mean before clamping.


@torch.library.custom_op("tlsc::nonlocal_means", mutates_args=())
def _filter(
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
    margin = search_window // 2 + patch // 2
    weighted = torch.zeros_like(image, memory_format=torch.contiguous_format)
    weights = torch.ones_like(image[:, 0], memory_format=torch.contiguous_format)  # that of the zero shift
    given = (image, guide, _extended_rate(h, power, margin), search_window, patch, power, floor)
    if _choose(implementation, image) == "numba":
        from tlsc.adapters import _nlm_numba

        _nlm_numba.forward(*given, weighted, weights)
    else:
        _torch_forward(*given, weighted, weights)
    total = _inner(weights, margin).contiguous()
    return _inner(image, margin) + _inner(weighted, margin) / total.unsqueeze(1), total


@torch.library.custom_op("tlsc::nonlocal_means_backward", mutates_args=())
def _filter_backward(
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
    margin = search_window // 2 + patch // 2
    g = _pad(grad / total.unsqueeze(1), margin)
    g_mean = (_inner(g, margin) * (mean - _inner(image, margin))).sum(1)
    g_mean = _pad(g_mean, margin)
    grad_image = g.clone() if needs_image else g.new_empty((*g.shape[:2], 0, 0))
    grad_guide = guide.new_zeros(guide.shape if needs_image else (*guide.shape[:2], 0, 0))
    grad_h = torch.zeros_like(g_mean)
    given = (image, guide, _extended_rate(h, power, margin), search_window, patch, power, floor)
    if _choose(implementation, image) == "numba":
        from tlsc.adapters import _nlm_numba

        _nlm_numba.backward(*given, g, g_mean, needs_image, grad_image, grad_guide, grad_h)
    else:
        _torch_backward(*given, g, g_mean, needs_image, grad_image, grad_guide, grad_h)
    grad_h = _inner(grad_h, margin)
    if h.shape[1:] == (1, 1):
        grad_h = grad_h.sum((1, 2), keepdim=True)
    for _ in range(power + 1):  # one after the other: the power itself may be too small for its type
        grad_h = grad_h / h
    return grad_image, grad_guide, torch.where(h <= ZERO_STRENGTH, torch.zeros_like(h), power * grad_h)


@_filter.register_fake
def _(image: Tensor, guide: Tensor, h: Tensor, search_window: int, patch: int, *settings: Any) -> Any:
    margin = search_window // 2 + patch // 2
    n, c, height, width = image.shape
    shape = (n, c, height - 2 * margin, width - 2 * margin)
    return image.new_empty(shape), image.new_empty((n, *shape[2:]))


@_filter_backward.register_fake
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
    grads = _filter_backward(grad, *ctx.saved_tensors, *ctx.settings, needs_image)
    image, guide = grads[:2] if needs_image else (None, None)
    return image, guide, grads[2], *(None for _ in ctx.settings)


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise SecondDerivativeError(
        "nonlocal_means can be differentiated once only: its backward pass computes again what autograd would "
        "store, outside autograd. Call backward or grad on it without create_graph=True."
    )


_filter.register_autograd(_backward, setup_context=_setup_context)
_filter_backward.register_autograd(_no_second_derivative)


def _inner(x: Tensor, margin: int) -> Tensor:
    return _part(_part(x, margin, margin, -1), margin, margin, -2)


def _pad(x: Tensor, margin: int) -> Tensor:
    return torch.nn.functional.pad(x, (margin,) * 4).contiguous()


def _rate(h: Tensor, power: int) -> Tensor:
    """1/h^power; the largest number for the limit of h → 0."""
    return torch.where(h <= ZERO_STRENGTH, torch.finfo(h.dtype).max, (1 / h) ** power)


def _extended_rate(h: Tensor, power: int, margin: int) -> Tensor:
    """As far as it is a map, as large as the extended image."""
    rate = _rate(h, power)
    return rate.contiguous() if h.shape[1:] == (1, 1) else _pad(rate, margin)


def _over_channels(x: Tensor, dim: int = 1) -> Tensor:
    return x.select(dim, 0) if x.shape[dim] == 1 else x.sum(dim)


# Plain PyTorch. Views are added to in place: ``x[part] += y`` would copy the part onto itself afterwards.


def _torch_forward(
    x: Tensor,
    y: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    num: Tensor,
    den: Tensor,
) -> None:
    for pair in _pairs(y, rate, search, patch, power, floor):
        step = x[pair.q] - x[pair.p]
        num[pair.p].addcmul_(pair.weight_p.unsqueeze(1), step)
        num[pair.q].addcmul_(pair.weight_q.unsqueeze(1), step, value=-1)
        den[pair.p].add_(pair.weight_p)
        den[pair.q].add_(pair.weight_q)


def _torch_backward(
    x: Tensor,
    y: Tensor,
    rate: Tensor,
    search: int,
    patch: int,
    power: int,
    floor: float,
    g: Tensor,
    g_mean: Tensor,
    needs_image: bool,
    grad_x: Tensor,
    grad_y: Tensor,
    grad_h: Tensor,
) -> None:
    half = patch // 2
    for pair in _pairs(y, rate, search, patch, power, floor):
        g_p, g_q = g[pair.p], g[pair.q]
        step = x[pair.q] - x[pair.p]
        from_p = ((g_p * step).sum(1) - g_mean[pair.p]) * pair.weight_p
        from_q = (-(g_q * step).sum(1) - g_mean[pair.q]) * pair.weight_q
        grad_h[pair.p].addcmul_(from_p, pair.measure)
        grad_h[pair.q].addcmul_(from_q, pair.measure)
        if not needs_image:
            continue
        grad_x[pair.q].addcmul_(pair.weight_p.unsqueeze(1), g_p)
        grad_x[pair.p].addcmul_(pair.weight_q.unsqueeze(1), g_q)
        flow = from_p * pair.rate_p + from_q * pair.rate_q
        # Of d^power, divided by what the luma's differences are to be multiplied by.
        flow = torch.where(pair.measure == 0, 0.0, flow / pair.measure if power == 1 else 2 * flow)
        flow = _box_sums(torch.nn.functional.pad(flow, (2 * half,) * 4), patch)
        flow = flow.unsqueeze(1)
        grad_y[pair.wide_p].addcmul_(flow, pair.difference, value=-1)
        grad_y[pair.wide_q].addcmul_(flow, pair.difference)


class _Pair(NamedTuple):
    """All positions p and their neighbours q = p + shift, for one shift: where they are, and what weighs them."""

    p: tuple[Any, ...]
    q: tuple[Any, ...]
    wide_p: tuple[Any, ...]  # the same with half a patch around them
    wide_q: tuple[Any, ...]
    difference: Tensor  # of the guide, wide_p minus wide_q
    measure: Tensor  # d^power
    rate_p: Tensor
    rate_q: Tensor
    weight_p: Tensor  # of q in the mean at p
    weight_q: Tensor  # of p in the mean at q


def _pairs(y: Tensor, rate: Tensor, search: int, patch: int, power: int, floor: float) -> Iterator[_Pair]:
    """Half of the shifts but zero. Both p and q lie inside the image, or one does, or (in corners) neither."""
    radius, half = search // 2, patch // 2
    margin = radius + half
    height, width = y.shape[2:]
    is_map = rate.shape[1:] != (1, 1)
    strip = STRIP_ROWS if y.device.type == "cpu" else height  # planes that fit the cache
    shifts = [(dy, dx) for dy in range(radius + 1) for dx in range(-radius if dy else 1, radius + 1)]
    for first in range(half, height - margin, strip):
        for dy, dx in shifts:
            low, high = max(first, margin - dy), min(first + strip, height - margin)
            if low >= high:
                continue
            box = (low, high, margin - max(dx, 0), width - margin + max(-dx, 0))
            p, q = _box(box), _box(box, dy, dx)
            wide_p, wide_q = _box(box, grow=half), _box(box, dy, dx, grow=half)
            difference = y[wide_p] - y[wide_q]
            measure = _box_sums(_over_channels(difference.square()), patch)
            if floor:
                measure = measure.sub_(floor).clamp_min_(0)
            if power == 1:
                measure = measure.sqrt_()
            rate_p = rate[p] if is_map else rate
            weight_p = (measure * rate_p).neg_().exp_()
            rate_q = rate[q] if is_map else rate
            weight_q = (measure * rate_q).neg_().exp_() if is_map else weight_p
            yield _Pair(p, q, wide_p, wide_q, difference, measure, rate_p, rate_q, weight_p, weight_q)


def _box(box: tuple[int, int, int, int], dy: int = 0, dx: int = 0, grow: int = 0) -> tuple[Any, ...]:
    top, bottom, left, right = box
    return (..., slice(top + dy - grow, bottom + dy + grow), slice(left + dx - grow, right + dx + grow))


def _box_sums(x: Tensor, size: int) -> Tensor:
    """Sums over all ``size × size`` boxes inside."""
    return _window_sums(_window_sums(x, size, -2), size, -1)


def _window_sums(x: Tensor, size: int, dim: int) -> Tensor:
    """Sums over all windows of ``size`` along ``dim``, from sums of 1, 2, 4, … elements: additions alone."""
    count = x.shape[dim] - size + 1
    total, done, length = None, 0, 1
    while True:
        if size & length:
            part = x.narrow(dim, done, count)
            total = part if total is None else total + part
            done += length
        if done == size and total is not None:
            return total
        x = x.narrow(dim, 0, x.shape[dim] - length) + x.narrow(dim, length, x.shape[dim] - length)
        length *= 2
