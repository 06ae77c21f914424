"""Files that are either whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc._files import replacing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["replacing", "write_weights"]


def write_weights(path: Path, model: nn.Module, made: Mapping[str, str]) -> None:
    """Write a network's weights as safetensors and say how large they are.

    The file's metadata tell how they were made: ``made``, PyTorch's version and the date.
    """
    import torch
    from safetensors.torch import save_file

    metadata = {**made, "torch": torch.__version__, "date": datetime.now(timezone.utc).date().isoformat()}
    with replacing(path) as new:
        save_file(model.state_dict(), new, metadata)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
