"""Rules: matrix products, attention, distances of pairs, and recurrences."""

from __future__ import annotations

from typing import Any

from .operation import Change
from .table import rule, shown_if

__all__: list[str] = []


def _product(change: Change, first: Any, second: Any) -> bool:
    """Whether a product of matrices sums over positions, or is of each position with each."""
    one, other = change.small.tensor(first), change.small.tensor(second)
    if one is None or other is None:
        return False
    rows, columns = len(one.shape) - 2, len(other.shape) - 1
    contracted = len(one.shape) - 1 in change.grown(first) or max(0, len(other.shape) - 2) in change.grown(second)
    return contracted or (rows in change.grown(first) and len(other.shape) > 1 and columns in change.grown(second))


@rule("bmm", "mm", "mv", "dot", "vdot", "matmul", "_int_mm", "linalg_matmul")
def product(change: Change) -> str:
    second = next(name for name in ("mat2", "vec", "tensor", "other") if name in change.small.args)
    return shown_if(_product(change, "self", second), change, "matmul")


@rule("baddbmm", "addbmm")
def batch_product_and_sum(change: Change) -> str:
    return shown_if(_product(change, "batch1", "batch2"), change, "matmul")


@rule("addmm", "addmv", "_addmm_activation")
def product_and_sum(change: Change) -> str:
    if change.large is None:
        return ""  # a layer, whose features may be as many as a map has positions
    first, second = ("mat", "vec") if "vec" in change.small.args else ("mat1", "mat2")
    return shown_if(_product(change, first, second), change, "matmul")


@rule("linear", "mkldnn_linear", "_linear_pointwise", "mkldnn::_linear_pointwise")
def linear(change: Change) -> str:
    """Over the last dimension."""
    if change.large is None:
        return ""
    name = "input" if "input" in change.small.args else "self" if "self" in change.small.args else "X"
    seen = change.small.tensor(name)
    return shown_if(seen is not None and len(seen.shape) - 1 in change.grown(name), change, "linear")


@rule("_trilinear", "bilinear")
def trilinear(change: Change) -> str:
    return shown_if(change.grown("i1") - change.grown_output(), change, "bilinear")


@rule(
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention"),
    *("_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps"),
    *("_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward"),
)
def attention(change: Change) -> str:
    """Over the keys; or, where channels attend to each other, over the features, which are then positions."""
    grown = change.grown("key") | change.grown("query") & _last(change, "query")
    return shown_if(grown & (_last(change, "key") | _last(change, "key", 2)), change, "attention")


def _last(change: Change, name: str, count: int = 1) -> frozenset[int]:
    seen = change.small.tensor(name)
    return frozenset() if seen is None else frozenset({len(seen.shape) - count})


@rule("_native_multi_head_attention", "_triton_multi_head_attention", "_triton_scaled_dot_attention")
def multi_head_attention(change: Change) -> str:
    """(batch, positions, channels)."""
    name = "key" if "key" in change.small.args else "k"
    return shown_if(change.grown(name) - {0}, change, "attention")


@rule("_transformer_encoder_layer_fwd")
def encoder_layer(change: Change) -> str:
    return shown_if(change.grown("src") - {0}, change, "attention")


@rule("_cdist_forward", "_euclidean_dist", "cdist")
def distances(change: Change) -> str:
    """Of each with each."""
    return shown_if(change.grown("x1") and change.grown("x2") - {0}, change, "cdist")


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrence(change: Change) -> str:
    """Along the first dimension, or the second one where the batch comes first."""
    first = change.small.args.get("batch_first")
    seen = change.small.tensor("input")
    along = 1 if first and seen is not None and len(seen.shape) == 3 else 0
    return shown_if(along in change.grown("input"), change)


@rule("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_lstm_mps")
def recurrent_layer(change: Change) -> str:
    return shown_if(0 in change.grown("input"), change, "recurrence")


@rule(
    *("linalg_inv_ex", "_linalg_svd", "_linalg_eigh", "linalg_qr", "linalg_cholesky_ex", "_linalg_slogdet"),
    *("_linalg_solve_ex", "linalg_lu_factor_ex", "linalg_matrix_exp", "linalg_solve_triangular", "linalg_eig"),
    *("linalg_lstsq", "linalg_householder_product", "linalg_pinv", "trace", "cov", "corrcoef"),
)
def of_matrices(change: Change) -> str:
    """Of the last two dimensions."""
    for key, seen in change.small.tensors():
        last = {len(seen.shape) - 1, len(seen.shape) - 2}
        if last & change.grown(key):
            return shown_if(True, change)
    return ""
