"""The published reference implementation's own results, computed in float64 (design §8)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import tlsc
from tlsc.functional import local_group_norm, local_instance_norm, local_mean, local_var_mean

from .marks import slow

GOLDEN = load_file(Path(__file__).parent / "data" / "pooling.safetensors")
CASES = sorted({name.partition(".")[0] for name in GOLDEN})
BAR = {torch.float64: 1e-12, torch.float32: 1e-5}
# The vectors were made with float32 parameters.
WEIGHT = torch.tensor([0.5, 1.0, 2.0])
BIAS = torch.tensor([0.1, -0.2, 0.3])


def test_every_case_is_there() -> None:
    assert [f"pool{i}" for i in range(7)] == CASES


@pytest.mark.parametrize("dtype", BAR, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_local_mean(case: str, dtype: torch.dtype) -> None:
    x, window = _load(case, dtype)
    expected = GOLDEN[f"{case}.output"]
    for mean in (local_mean(x, window), local_var_mean(x, window)[1]):
        assert mean.dtype == dtype
        assert (mean.double() - expected).abs().max() <= BAR[dtype]


@pytest.mark.parametrize("dtype", BAR, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_local_instance_norm(case: str, dtype: torch.dtype) -> None:
    """The bar is on the normalised value, before its scale: with a window of one position (pool4), where the
    answer is the offset exactly, the vectors themselves are off by 1.3e-12, rounding times 1/sqrt(eps) times 2.
    """
    x, window = _load(case, dtype)
    expected = GOLDEN[f"{case}.instance_norm"]
    weight, bias = WEIGHT.to(dtype), BIAS.to(dtype)
    # Group norm with a group for each channel is instance norm.
    for out in (local_instance_norm(x, window, weight, bias), local_group_norm(x, window, 3, weight, bias)):
        assert out.dtype == dtype
        error = (out.double() - expected).abs() / WEIGHT[:, None, None]
        assert error.max() <= BAR[dtype]


def _load(case: str, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[int, int]]:
    height, width = GOLDEN[f"{case}.window"].tolist()
    return GOLDEN[f"{case}.input"].to(dtype), (height, width)


@pytest.fixture(scope="module")
def nafnet() -> tuple[nn.Module, dict[str, Tensor], int]:
    architecture = pytest.importorskip("spandrel.architectures.NAFNet")
    path = Path(__file__).parent / "data" / "nafnet.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    model = architecture.NAFNet(**ast.literal_eval(metadata["config"])).double().eval()
    model.load_state_dict({name[6:]: x for name, x in tensors.items() if name.startswith("state.")})
    return model, tensors, int(metadata["base_size"])


@pytest.mark.parametrize("case", ["case0", "case1", slow("case2"), slow("case3")])
@torch.no_grad()
def test_nafnet(nafnet: tuple[nn.Module, dict[str, Tensor], int], case: str) -> None:
    """Its simplified channel attention, a pool in a Sequential, becomes local without a word about it."""
    model, tensors, base_size = nafnet
    x = tensors[f"{case}.input"]
    assert (model(x) - tensors[f"{case}.original.0"]).abs().max() <= 1e-9
    with tlsc.converted(model, base_size) as local:
        assert (local(x) - tensors[f"{case}.local.0"]).abs().max() <= 1e-9
