"""A node for ComfyUI: a restorer that "Load Upscale Model" gave, with local statistics.

Copy this file to ``ComfyUI/custom_nodes/`` and install tlsc into ComfyUI's Python. An UPSCALE_MODEL is a descriptor
of spandrel; the node hands on one whose network is a converted copy, so that the loaded one, which ComfyUI keeps,
stays as it is. Connect it to "Upscale Image (using Model)". That node cuts images into tiles of 512 pixels, so that
windows below 512 change something, and larger ones nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import tlsc

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "LocalStatistics"]


class LocalStatistics:
    """UPSCALE_MODEL in, UPSCALE_MODEL out."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("UPSCALE_MODEL", "STRING")
    RETURN_NAMES = ("upscale_model", "plan")
    FUNCTION = "convert"
    DESCRIPTION = "Global statistics (pools of channel attention, instance norms, …) become local: tlsc.convert."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:
        """What ComfyUI draws: the model, the window in pixels, the stride."""
        return {
            "required": {
                "upscale_model": ("UPSCALE_MODEL",),
                "base_size": (
                    "INT",
                    {"default": 384, "min": 16, "max": 4096, "step": 8, "tooltip": "1.5 times the training crop"},
                ),
                "stride": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "1 is exact; 8 is faster"}),
            }
        }

    def convert(self, upscale_model: Any, base_size: int, stride: int) -> tuple[Any, str]:
        """The converted model, and its plan as text; a model without global statistics comes back unchanged."""
        local = copy.copy(upscale_model)
        local._model = copy.deepcopy(upscale_model.model)  # where a descriptor keeps its network
        try:
            tlsc.convert(local, base_size, stride=stride)
        except tlsc.NoSiteError as error:
            return upscale_model, str(error)
        return local, str(tlsc.plan(local))


NODE_CLASS_MAPPINGS = {"TLSC_LocalStatistics": LocalStatistics}
NODE_DISPLAY_NAME_MAPPINGS = {"TLSC_LocalStatistics": "Local statistics (tlsc)"}
