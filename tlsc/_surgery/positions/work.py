"""How much arithmetic an operation is, in multiplications: enough to tell a cheap forward from a dear one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["multiplications"]

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "dot")
_ATTENTION = "scaled_dot_product"


def multiplications(name: str, args: Any, out: Any) -> int:
    """Those of products and convolutions, and one for each value of anything else."""
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    made = sum(leaf.numel() for leaf in outputs)
    if "convolution" in name and len(tensors) > 1 and tensors[1].dim() > 2:
        image, weight = tensors[:2]
        transposed = len(args) > 6 and args[6] is True
        return int((image if transposed else outputs[0]).numel() * math.prod(weight.shape[1:]))
    if name in _PRODUCTS and len(tensors) > 1:
        return int(made * tensors[-1].shape[-2 if tensors[-1].dim() > 1 else -1])
    if _ATTENTION in name and len(tensors) > 2:
        return int(2 * tensors[0].numel() * tensors[1].shape[-2])
    return int(made)
