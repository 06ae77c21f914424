"""Rules: convolutions, pools and resizing, which look at a neighbourhood as long as that does not grow."""

from __future__ import annotations

import math

from .operation import Change
from .table import rule, shown_if

__all__: list[str] = []


@rule(
    *("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable"),
    *(
        "_slow_conv2d_forward",
        "slow_conv3d_forward",
        "_conv_depthwise2d",
        "conv_depthwise3d",
        "slow_conv_dilated2d",
    ),
    *("cudnn_convolution_transpose", "slow_conv_transpose2d", "slow_conv_transpose3d", "slow_conv_dilated3d"),
    *("miopen_convolution", "miopen_depthwise_convolution", "miopen_convolution_transpose", "thnn_conv2d"),
    *("cudnn_convolution_relu", "cudnn_convolution_add_relu", "miopen_convolution_relu", "_mps_convolution"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv_tbc"),
    *("mkldnn::_convolution_pointwise", "_nnpack_spatial_convolution", "_convolution_mode"),
)
def convolution(change: Change) -> str:
    """Over channels, which may be positions; with a kernel that may be a map."""
    if change.large is None:
        return ""  # channels as many as a map has positions are channels
    name = "input" if "input" in change.small.args else "self" if "self" in change.small.args else "X"
    weight = change.lengths("weight") - {0}  # as many filters as positions are many outputs at each
    wider = change.differs("dilation")  # taps that lie farther apart on a larger map
    return shown_if(1 in change.grown(name) or weight or wider, change, "convolution")


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "mkldnn_max_pool2d")
def pool(change: Change) -> str:
    """Over a kernel that grows with the image, or covers all of it."""
    kernel = change.small.args.get("kernel_size")
    return shown_if(_covers(change, kernel), change)


@rule("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool3d")
def max_pool(change: Change) -> str:
    name = change.small.name.removeprefix("mkldnn_").removesuffix("_with_indices")
    return shown_if(_covers(change, change.small.args.get("kernel_size")), change, name)


def _covers(change: Change, kernel: object) -> bool:
    if change.large is not None:
        return bool(change.grown() and (change.differs("kernel_size") or change.grown() - change.grown_output()))
    seen = change.small.tensor("self")
    given = [kernel] if isinstance(kernel, int) else kernel
    if seen is None or not seen.counts or not isinstance(given, list) or math.prod(seen.shape[2:]) <= 1:
        return False
    rank = len(seen.shape) - 2 if len(given) == 1 else len(given)
    return tuple(given * rank if len(given) == 1 else given) == seen.shape[-rank:]


@rule(
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "mkldnn_adaptive_avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("fractional_max_pool2d", "fractional_max_pool3d"),
)
def adaptive_pool(change: Change) -> str:
    """To one position, or to a grid of as many as before, each of which then stands for more."""
    size = change.small.args.get("output_size")
    grid = [size] if isinstance(size, int) else list(size or [])
    name = change.small.name.removeprefix("_").removeprefix("mkldnn_")
    if all(n == 1 for n in grid):
        seen = change.small.tensor("self")
        many = seen is not None and math.prod(seen.shape[-len(grid) :]) > 1
        return shown_if(many and change.grown(), change, name)
    to = "×".join(map(str, grid))
    gone = change.grown() - change.grown_output() if change.large is not None else change.grown()
    return shown_if(gone, change, f"{name} to {to}")


@rule(
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("_upsample_lanczos2d_aa",),
)
def resize(change: Change) -> str:
    """To a size that does not grow, so that the image as a whole is drawn smaller. Of one value nothing is."""
    if change.large is None:
        return ""
    size = "×".join(map(str, change.small.args.get("output_size") or []))
    return shown_if(change.grown() - change.grown_output(), change, f"interpolate to {size}")
