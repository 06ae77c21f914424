"""A network in an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlsc.errors import ArgumentValueError, TLSCError, first_line

__all__ = ["OnnxFile"]

_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class OnnxFile(nn.Module):
    """Runs an ONNX file on the CPU, as it was exported: there is nothing in it to convert.

    Args:
        path: of the file; its first input takes images (N, C, H, W).

    Attributes:
        path: of the file.
        in_channels: of its images; 3 where the file leaves it open.

    Raises:
        ArgumentValueError: ONNX Runtime cannot read the file, or its input is no batch of images, or not the only
            one.
        ModuleNotFoundError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.path = path
        content = path.read_bytes()
        # A buffer, so that the checksum of the weights is that of the file.
        self.register_buffer("file", torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:
            raise ArgumentValueError(
                f"ONNX Runtime cannot read {path}: {first_line(error, typed=False)}"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
            raise ArgumentValueError(f"{path} must take one batch of images (N, C, H, W), it takes {found}")
        self._name, shape, self._type = inputs[0].name, inputs[0].shape, _TYPES[inputs[0].type]
        self.in_channels = shape[1] if isinstance(shape[1], int) else 3

    def forward(self, x: Tensor) -> Tensor:
        """What the file's graph gives for images; its first output."""
        given = x.detach().to("cpu", self._type).contiguous().numpy()
        try:
            result = self._session.run(None, {self._name: given})[0]
        except Exception as error:
            raise TLSCError(
                f"{self.path} failed on images of {tuple(x.shape)}: {first_line(error, typed=False)}"
            ) from error
        return torch.from_numpy(result)
