"""Non-local means: a function of an image, and a layer with a learnable strength."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tlsc._arguments import FLOATING
from tlsc._internal import graphs
from tlsc.adapters.nlm import arguments, geometry, operator
from tlsc.adapters.nlm.exported import exported
from tlsc.adapters.nlm.geometry import Border, Distance
from tlsc.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["NonLocalMeans", "nonlocal_means"]

Weights = Literal["exponential", "gaussian"]
Implementation = Literal["auto", "torch", "numba", "triton"]


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

    For each shift in a ``search_window × search_window`` window, ``d = sqrt(Σ (y − shifted y)²)`` is the
    distance over a ``patch × patch`` patch of the luma ``y = 0.299 R + 0.587 G + 0.114 B`` (with one channel:
    of this channel). The weight is ``weight = exp(−d / max(h, 0))``. The result is
    ``Σ weight · shifted x / Σ weight``, clamped to [0, 1].

    ``distance="color", weights="gaussian"`` with ``sigma`` is the definition of Buades et al. and of scikit-image:
    ``weight = exp(−max(Σ (x − shifted x)² − 2 σ² n, 0) / h²)``, the sum over a patch of all channels, n values. It
    gave 0.2 to 1.8 dB over the default on six photographs, patch 5, most where colours differ.

    ``h ≤ 0`` (in fact ≤ 1e-12) is the limit: only neighbours at distance 0 count, and ``h`` has gradient 0.
    Training may push a tensor there; a negative number is refused as a mistake. A distance of 0, such as that
    of the zero shift, contributes 0 to the gradients, although its square root has none. A NaN affects the
    pixels whose search window, with its patches, contains it.

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
        implementation: ``"torch"``; ``"numba"`` (CPU) or ``"triton"`` (NVIDIA GPUs), both compiled when first used;
            or ``"auto"``: what :func:`tlsc.backend` names, else the one of these for the device where it can run,
            with PyTorch's operations in its place where it cannot.

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
            finite; ``h`` is a negative number; Numba is asked for off the CPU.
        BackendError: Numba or Triton is asked for, here or by :func:`tlsc.backend`, and cannot run or fails.
        SecondDerivativeError: it is differentiated twice (a NotImplementedError, from ``backward``).

    Source:
        Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005, by default with the distance
        instead of its square in the exponent; ``sigma`` as in their "Non-Local Means Denoising", IPOL 2011.

    Example:
        >>> x = torch.tensor([[[[0.2, 0.4, 0.2, 0.9]]]])
        >>> nonlocal_means(x, h=0.2, search_window=3, patch=1)
        tensor([[[[0.2677, 0.3152, 0.2677, 0.8601]]]])
    """
    arguments.check_image(x)
    window = arguments.as_odd(search_window, "search_window")
    side = arguments.as_odd(patch, "patch")
    arguments.check_choice(border, "border", Border)
    dtype = arguments.working_dtype(x)
    strength = arguments.as_strength(h, x).to(dtype)
    arguments.check_choice(implementation, "implementation", Implementation)
    arguments.check_choice(distance, "distance", Distance)
    arguments.check_choice(weights, "weights", Weights)
    channels = x.shape[1] if distance == "color" else 1
    mixing = sum(share**2 for share in geometry.LUMA) if x.shape[1] == 3 and distance == "luma" else channels
    floor = 2 * arguments.as_noise(sigma) ** 2 * side**2 * mixing
    power = 2 if weights == "gaussian" else 1
    margin = window // 2 + side // 2
    if graphs.leaves():
        image = geometry.extend(x.to(dtype), margin, border)
        guide = geometry.guide(image, distance)
        return exported(image, guide, strength, window, side, power, floor).to(x.dtype).clamp(0, 1)
    if x.shape[0] == 0:
        return (x * strength.sum()).clamp(0, 1)
    if not torch.compiler.is_compiling():  # a compiled graph chooses when it runs
        operator.choose(implementation, x)
    image = geometry.extend(x.to(dtype), margin, border)
    mean, _ = operator.filtered(
        image, geometry.guide(image, distance), strength, window, side, power, floor, implementation
    )
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
        implementation: ``"auto"``, ``"torch"``, ``"numba"`` or ``"triton"``.

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
        self.search_window = arguments.as_odd(search_window, "search_window")
        self.patch = arguments.as_odd(patch, "patch")
        arguments.check_choice(border, "border", Border)
        arguments.check_choice(implementation, "implementation", Implementation)
        arguments.check_choice(distance, "distance", Distance)
        arguments.check_choice(weights, "weights", Weights)
        self.border: Border = border
        self.distance: Distance = distance
        self.weights: Weights = weights
        self.sigma = arguments.as_noise(sigma)
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
            self._given = arguments.as_positive_strength(h)
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
        if self._given is None or self.h is None or graphs.is_traced(self.h):
            return False
        return self.h.item() == torch.tensor(self._given, dtype=self.h.dtype).item()

    def extra_repr(self) -> str:
        shown = f"search_window={self.search_window}, patch={self.patch}, border={self.border!r}"
        for name, usual in (("distance", "luma"), ("weights", "exponential"), ("sigma", 0.0)):
            if (value := getattr(self, name)) != usual:
                shown += f", {name}={value!r}"
        return shown
