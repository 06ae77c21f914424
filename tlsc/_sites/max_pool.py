"""``AdaptiveMaxPool2d(1)``: the maximum over all positions, which has no local form by itself."""

from __future__ import annotations

from torch import nn

from .kind import Kind, known

__all__: list[str] = []


known(
    nn.AdaptiveMaxPool2d,
    Kind(
        "AdaptiveMaxPool2d",
        None,
        lambda pool: ("left global", "only where it and what follows can be rewritten together"),
        pools=True,
        needs_owner=lambda pool: pool.output_size in (1, (1, 1), [1, 1]),
    ),
)
