"""A node in chaiNNer's manner: a function, and a description of its inputs and outputs.

:func:`local_statistics` needs nothing of chaiNNer. :func:`register` makes a node of it with chaiNNer's API (``api``
and ``nodes`` of its backend, version 0.24), given the group that it is to appear in:

    from .chainner_tlsc import register
    register(processing_group)
"""

from __future__ import annotations

import copy
from typing import Any

import tlsc

__all__ = ["local_statistics", "register"]


def local_statistics(model: Any, base_size: int = 384, stride: int = 1) -> Any:
    """A descriptor of spandrel whose network is a converted copy; the one given stays as it is.

    Args:
        model: what chaiNNer's "Load Model" gives.
        base_size: window at the model's input in pixels; 1.5 times the training crop is a good first choice.
        stride: 1 is exact.

    Raises:
        tlsc.TLSCError: it cannot be converted; chaiNNer shows the line.
    """
    local = copy.copy(model)
    local._model = copy.deepcopy(model.model)  # where a descriptor keeps its network
    return tlsc.convert(local, base_size, stride=stride)


def register(group: Any) -> Any:
    """The node, in a group of chaiNNer's; returns what ``group.register`` made of the function."""
    from nodes.impl.pytorch.types import ModelInput, ModelOutput  # type: ignore[import-not-found]
    from nodes.properties.inputs import NumberInput  # type: ignore[import-not-found]

    return group.register(
        schema_id="chainner:pytorch:tlsc_local_statistics",
        name="Local Statistics",
        description="Global statistics of a restorer become local ones, over windows as large as in training.",
        icon="MdGridOn",
        inputs=[
            ModelInput("Model"),
            NumberInput("Window", default=384, min=16, max=4096, unit="px"),
            NumberInput("Stride", default=1, min=1, max=64),
        ],
        outputs=[ModelOutput("Model")],
    )(local_statistics)
