"""Rules: sums, extremes, moments, norms, and what else leaves or orders values along dimensions."""

from __future__ import annotations

import math

from .operation import Change
from .table import dims, rule, shown_if

__all__: list[str] = []


@rule("mean", "sum", "nansum", "nanmean", "amax", "amin", "aminmax", "prod", "logsumexp", "count_nonzero")
def reduction(change: Change) -> str:
    seen = change.small.tensor("self")
    name = f"{change.small.name} of integers" if seen is not None and seen.integers else ""
    return shown_if(dims(change) & change.grown(), change, name)


@rule("var", "std", "var_mean", "std_mean", "argmax", "argmin", "any", "all", "_linalg_det", "linalg__powsum")
def moment(change: Change) -> str:
    return shown_if(dims(change) & change.grown(), change)


@rule("max", "min")
def extreme(change: Change) -> str:
    """``torch.max`` of two tensors is taken element by element."""
    return "" if "other" in change.small.args else shown_if(dims(change) & change.grown(), change)


@rule("linalg_vector_norm", "norm", "_weight_norm", "_weight_norm_interface", "native_norm", "renorm")
def norm(change: Change) -> str:
    name = "v" if "v" in change.small.args else "self"
    return shown_if(dims(change, key=name) & change.grown(name), change, "norm")


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "_masked_softmax")
def softmax(change: Change) -> str:
    return shown_if(dims(change) & change.grown(), change, change.small.name.strip("_").removeprefix("safe_"))


@rule("sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode", "quantile", "nanquantile", "msort")
def order(change: Change) -> str:
    return shown_if(dims(change) & change.grown(), change)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "_logcumsumexp", "_cummax_helper", "_cummin_helper")
def running(change: Change) -> str:
    name = change.small.name.strip("_").removesuffix("_helper")
    return shown_if(dims(change) & change.grown(), change, name)


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fft(change: Change) -> str:
    return shown_if(dims(change) & change.grown(), change, "fft")


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(change: Change) -> str:
    """Over the last dimensions, as many as the shape that it is given has."""
    seen = change.small.tensor("input")
    rank = len(seen.shape) if seen is not None else 0
    last = frozenset(range(rank - len(change.small.args["normalized_shape"]), rank))
    if change.large is None and len(last) == 1 and rank > 2:
        return ""  # over channels, of which there may be as many as positions
    name = "rms_norm" if "rms" in change.small.name else "layer_norm"
    return shown_if(last & change.grown("input"), change, name)


@rule("native_group_norm", "group_norm")
def group_norm(change: Change) -> str:
    return shown_if(change.grown("input") - {0}, change, "group_norm")


@rule(
    *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit", "batch_norm"),
    *("_batch_norm_with_update", "_native_batch_norm_legit_functional", "_batch_norm_with_update_functional"),
    *("_batch_norm_impl_index", "instance_norm"),
)
def batch_norm(change: Change) -> str:
    """In training, and as instance norm is written; with running statistics it works element by element."""
    args = change.small.args
    trains = args.get("training", args.get("train", args.get("use_input_stats", True)))
    seen = change.small.tensor("input")
    if not trains or seen is None or math.prod(seen.shape[2:]) <= 1:
        return ""
    return shown_if(change.grown("input") - {1}, change, "instance_norm")


@rule(
    "batch_norm_stats", "histc", "histogram", "bincount", "_unique2", "_unique", "unique_dim", "unique_consecutive"
)
def whole(change: Change) -> str:
    """Over everything that it is given."""
    return shown_if(change.anything(), change)


@rule("multinomial", "searchsorted", "bucketize", "_pdist_forward", "isin")
def set_of(change: Change) -> str:
    return shown_if(change.anything(), change)


@rule("index_add", "scatter_add", "scatter_reduce", "index_reduce", "segment_reduce", "_segment_reduce")
def collection(change: Change) -> str:
    """Values that are sent to places: together where the places do not grow with them."""
    sources = [key for key in ("source", "src", "data") if change.grown(key)]
    return shown_if(any(change.grown(key) - change.grown_output() for key in sources), change)
