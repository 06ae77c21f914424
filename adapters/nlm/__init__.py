"""Non-local means as a differentiable layer, in memory that does not depend on its window or its patch.

Autograd would store a few planes for each of the ``search_window²`` shifts. Here the backward pass computes them
again. It is one custom operator (:mod:`.operator`) with three implementations: plain PyTorch on any device
(:mod:`.torch_form`), Numba kernels for the CPU (:mod:`.numba_kernels`) and Triton kernels for NVIDIA GPUs
(:mod:`.triton_kernels`), both loaded when first used. Graphs that are exported get PyTorch's own operations
instead, for images of any size (:mod:`.exported`). :mod:`.layer` is what users call.
"""

from __future__ import annotations

from tlsc.adapters.nlm.layer import NonLocalMeans, nonlocal_means
from tlsc.adapters.nlm.operator import SecondDerivativeError

__all__ = ["NonLocalMeans", "SecondDerivativeError", "nonlocal_means"]
