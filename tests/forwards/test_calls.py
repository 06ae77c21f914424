"""Networks that are called by keywords, or with a dictionary."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import tlsc


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, *, low: Tensor) -> Tensor:
        return self.norm(low) * low.mean((2, 3), keepdim=True)


class ByDictionary(ByKeyword):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(low=batch["low"])


@pytest.mark.parametrize("given", ["dictionary", "function"])
@pytest.mark.parametrize("kind", [ByKeyword, ByDictionary])
@torch.no_grad()
def test_an_example_may_be_a_dictionary(kind: type[nn.Module], given: str) -> None:
    def example(height: int, width: int) -> dict[str, Tensor]:
        return {"low": torch.rand(1, 3, height, width)}

    def run(model: nn.Module, x: Tensor) -> Any:
        return model(low=x) if kind is ByKeyword else model({"low": x})

    model, small, large = kind().eval(), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 12)
    before, far = run(model, small), run(model, large)
    tlsc.convert(model, 8, example_input=example if given == "function" else example(5, 7))
    assert [site.window for site in tlsc.plan(model)] == [(8, 8), (8, 8)]
    torch.testing.assert_close(run(model, small), before)
    assert not torch.allclose(run(model, large), far)


class Pair(NamedTuple):
    image: Any
    gain: Any


@dataclasses.dataclass
class Results:
    image: Any
    gain: Any


@pytest.mark.parametrize("kind", [Pair, Results])
@torch.no_grad()
def test_results_in_a_named_tuple_or_a_record(kind: type[Any]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return kind(x * x.mean((2, 3), keepdim=True), 2)

    model, x = tlsc.convert(Net().eval(), 8), torch.rand(1, 3, 16, 12)
    out = model(x)
    assert (type(out), out.gain) == (kind, 2)
    torch.testing.assert_close(out.image, x * tlsc.functional.local_mean(x, 8))
