"""Attention over all positions, made local: transposed (channel) attention and non-local blocks.

*Transposed attention* (Restormer) mixes channels: ``softmax(q kᵀ · temperature) v`` with a channels × channels
matrix ``q kᵀ`` summed over all positions, ``q`` and ``k`` of unit length over positions. Two local forms:

- *sliding*: the windows that start at 0, r, 2r, … and the last one are evaluated, each over its true size, and
  every position takes the output of the one that starts nearest to its own window (the lower one of two). The
  products ``q kᵀ``, ``Σq²``, ``Σk²`` are taken once for each of the rectangles into which the windows' edges cut
  the map, and summed over each window. With ``r = 1`` every position has its own window.
- *overlap*, the published one: few overlapping windows, evenly spread; where several cover a position, their
  outputs are averaged.

*Non-local blocks* mix positions: each position attends to those of its own window.

``tlsc.convert`` finds such modules by their structure, whatever their class (:func:`recognise`), and takes the
sliding form. For the published one, register a factory::

    tlsc.register(Attention, tlsc.attention.overlap)

Sources: Zamir, Arora, Khan, Hayat, Khan, Yang, "Restormer: Efficient Transformer for High-Resolution Image
Restoration", CVPR 2022, arXiv 2111.09881, section 3.1; Chu, Chen, Chen, Lu, "Improving Image Restoration by
Revisiting Global Information Aggregation", ECCV 2022, arXiv 2112.04491; Wang, Girshick, Gupta, He, "Non-local
Neural Networks", CVPR 2018, arXiv 1711.07971, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from ._arguments import as_pair, check_attention, check_maps, shown
from ._sites.kind import Build
from ._sites.non_local_block import LocalNonLocalBlock, non_local_kind
from ._sites.transposed_attention import LocalTransposedAttention, overlap, transposed_kind
from ._statistics.non_local import Weighting, non_local
from ._statistics.transposed_attention import attend, default_stride, overlapping, sliding
from .errors import ArgumentValueError

__all__ = [
    "LocalNonLocalBlock",
    "LocalTransposedAttention",
    "local_non_local",
    "local_transposed_attention",
    "overlap",
    "overlapping_transposed_attention",
    "recognise",
    "transposed_attention",
]


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """Attention between channels over all positions: ``softmax(q kᵀ · temperature) v``.

    Args:
        q, k, v: maps (N, heads, c, H, W), float16, bfloat16, float32 or float64; ``q`` and ``k`` are divided by
            their length over all positions, at least 1e-12.
        temperature: a number, or a tensor with one for each head.

    Returns:
        (N, heads, c, H, W).

    Raises:
        ArgumentTypeError, ArgumentValueError: the maps are not floating tensors of one 5-D shape and dtype, or
            ``temperature`` has neither one value nor one for each head.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 2, 1, 2)
        >>> transposed_attention(x, x, x, temperature=1.0).flatten()
        tensor([ 0.7616,  0.7616, -0.7616, -0.7616])
    """
    return attend(q, k, v, check_attention(q, k, v, temperature))


def local_transposed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor | float,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> Tensor:
    """Transposed attention in a sliding window.

    Each output equals :func:`transposed_attention` on the crop that is the evaluated window nearest to the
    position's own, whatever the sizes of map, window and stride.

    Args:
        q, k, v, temperature: as in :func:`transposed_attention`.
        window: an int or (height, width), in pixels of the maps.
        stride: how far apart the evaluated windows start; 1 gives every position its own. By default on each
            axis the divisor of the window that comes nearest to a twelfth of it, or the twelfth. Needs memory
            for c × c numbers for each evaluated window and head.

    Returns:
        (N, heads, c, H, W), same dtype. Where the window covers the map, :func:`transposed_attention`.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`transposed_attention`; ``window`` or ``stride`` is not
            one or two positive ints.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).reshape(1, 1, 2, 1, 3)
        >>> local_transposed_attention(x, x, x, 1.0, window=(1, 2), stride=1)[0, 0]
        tensor([[[ 0.7616,  0.4621,  1.0000]],
        <BLANKLINE>
                [[-0.7616, -0.4621,  1.0000]]])
    """
    scale = check_attention(q, k, v, temperature)
    size = as_pair(window, "window")
    steps = default_stride(size) if stride is None else as_pair(stride, "stride")
    return sliding(q, k, v, scale, size, steps)


def overlapping_transposed_attention(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | float, window: int | tuple[int, int]
) -> Tensor:
    """Transposed attention in overlapping windows whose outputs are averaged: the published local form.

    On an axis of length ``n`` with ``k' = min(window, n)`` there are ``num = ceil(n / k')`` windows; they start
    ``ceil((n - k')/(num - 1))`` apart, the last one flush with the border.

    Args:
        q, k, v, temperature: as in :func:`transposed_attention`.
        window: an int or (height, width), in pixels of the maps.

    Returns:
        (N, heads, c, H, W), same dtype. Where the window covers the map, :func:`transposed_attention`.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`local_transposed_attention`.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).reshape(1, 1, 2, 1, 3)
        >>> overlapping_transposed_attention(x, x, x, 1.0, window=(1, 2))[0, 0]
        tensor([[[ 0.7616,  0.6119,  1.0000]],
        <BLANKLINE>
                [[-0.7616, -0.6119,  1.0000]]])
    """
    scale = check_attention(q, k, v, temperature)
    return overlapping(q, k, v, scale, as_pair(window, "window"))


def local_non_local(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | tuple[int, int],
    scale: float = 1.0,
    weighting: Weighting = "softmax",
) -> Tensor:
    """Attention between positions, each within its own window.

    ``out_i = Σ_j w_ij v_j`` over the positions ``j`` of the window of ``i``, with ``s_ij = scale · q_i · k_j`` and
    ``w_i = softmax(s_i)`` (embedded Gaussian) or ``w_ij = s_ij / (positions of the window)`` (dot product).
    Takes tiles of neighbouring positions at once, so that at most about 2²³ weights are held.

    Args:
        q, k: maps (N, c, H, W), float16, bfloat16, float32 or float64.
        v: map (N, d, H, W).
        window: an int or (height, width), in pixels of the maps.
        scale: factor of the products.
        weighting: "softmax" or "mean".

    Returns:
        (N, d, H, W), same dtype.

    Raises:
        ArgumentTypeError, ArgumentValueError: the maps are not floating tensors of one dtype with these shapes;
            ``window`` is not one or two positive ints; ``weighting`` is neither of the two.

    Example:
        >>> import torch
        >>> q, v = torch.zeros(1, 2, 1, 4), torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
        >>> local_non_local(q, q, v, window=2)
        tensor([[[[1.5000, 3.0000, 6.0000, 6.0000]]]])
    """
    check_maps({"q": q, "k": k, "v": v}, 4, "(N, C, H, W)")
    if q.shape != k.shape or (q.shape[0], *q.shape[2:]) != (v.shape[0], *v.shape[2:]):
        raise ArgumentValueError(
            f"q and k must have one shape and v its batch and positions, got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    if weighting not in ("softmax", "mean"):
        raise ArgumentValueError(f'weighting must be "softmax" or "mean", got {shown(weighting)}')
    return non_local(q, k, v, as_pair(window, "window"), scale, weighting)


def recognise(module: nn.Module) -> tuple[str, Build] | None:
    """Whether ``module`` is an attention layer that has a local form here: its name, and what builds that form.

    A layer is recognised by the names and shapes of its parts, whatever its class:

    - transposed attention (Restormer, M3SNet, KBNet): ``temperature``, ``qkv``, ``qkv_dwconv`` or ``qkv_conv``,
      ``project_out``; with a ``Linear`` as ``qkv`` and no convolution (DITN); between two maps (HVI-CIDNet,
      CRAFT): ``q``, ``q_dwconv``, ``kv``, ``kv_dwconv``;
    - a non-local block: 1×1 convolutions ``theta``, ``phi``, ``g`` and ``W`` (or the names that timm, mmcv and
      others give them), perhaps a norm behind, perhaps the input added.

    The parts must also do what is expected of them: a copy with random parameters, in float64 on the CPU, gives
    what the local module gives with a window that covers the map. The module itself is not run, nor changed.

    Args:
        module: any module.

    Returns:
        None, or the operation's name and ``build(module, window, stride)``. A stride of 1 is taken as "the
        default" where every position's own window would cost too much.

    Raises:
        Nothing: a copy that fails is not recognised.

    Example:
        >>> recognise(nn.Conv2d(3, 3, 1)) is None
        True
    """
    kind = transposed_kind(module) or non_local_kind(module)
    return None if kind is None or kind.build is None else (kind.operation, kind.build)
