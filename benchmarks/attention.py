"""Transposed attention, both local forms beside the original: time of a whole Restormer, error of a layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from tlsc.attention import (
    LocalTransposedAttention,
    local_transposed_attention,
    overlapping_transposed_attention,
    transposed_attention,
)

SIZE = (720, 1280)
WINDOW = 384
PARTS = (6, 12, 24)  # a sliding window's step is about this part of it
DIM, BLOCKS, HEADS = 16, (1, 1, 1, 1), (1, 2, 4, 8)
ROUNDS = 2


def main() -> None:
    errors()
    times()


def errors() -> None:
    """One layer on a map whose statistics drift, at the size of the network's third level."""
    torch.manual_seed(0)
    height, width, window = SIZE[0] // 4, SIZE[1] // 4, WINDOW // 4
    drift = torch.linspace(0, 3, width) + torch.linspace(0, 2, height)[:, None]
    base = torch.randn(2, 1, 1, 4, 16, height, width, dtype=torch.float64)
    q, k = base[0, 0] + drift.sin() * base[1, 0], base[0, 0] + drift.cos() * base[1, 0].roll(1, 2)
    v = torch.randn_like(q)
    positions = [(i, j) for i in range(0, height, 29) for j in range(0, width, 31)]
    exact = torch.stack([_at(q, k, v, i, j, window) for i, j in positions])
    ways: dict[str, Callable[[], Tensor]] = {
        "global": lambda: transposed_attention(q, k, v, 8.0),
        "overlap": lambda: overlapping_transposed_attention(q, k, v, 8.0, window),
    }
    for part in (*PARTS, window):
        ways[f"sliding, stride {window // part}"] = lambda r=window // part: local_transposed_attention(  # type: ignore[misc]
            q, k, v, 8.0, window, r
        )
    rows = []
    for name, way in ways.items():
        if name == "sliding, stride 1":
            continue  # exact by definition, and slow: the tests show it
        out = way()
        error = torch.stack([out[..., i, j] for i, j in positions]) - exact
        rows.append([name, float(error.abs().max()), float(error.square().mean().sqrt())])
    print(
        f"Error against each position's own window, map {height}×{width}, window {window}, "
        f"{len(positions)} positions, root mean square of the output {float(exact.square().mean().sqrt()):.2f}\n"
    )
    print(tabulate(rows, headers=["form", "maximum", "root mean square"], floatfmt=".1e"), "\n")


def times() -> None:
    """The whole network, all ways in turn within one run, float32; the shortest of the rounds."""
    from spandrel_extra_arches.architectures.Restormer import Restormer

    torch.manual_seed(0)
    settings: Any = {"dim": DIM, "num_blocks": list(BLOCKS), "num_refinement_blocks": 1, "heads": list(HEADS)}
    model = Restormer(**settings).eval()
    sites = {path: module for path, module in model.named_modules() if hasattr(module, "temperature")}
    level = {path: _level(path) for path in sites}

    def use(make: Callable[[nn.Module, int], nn.Module]) -> None:
        for path, module in sites.items():
            model.set_submodule(path, make(module, WINDOW >> level[path]))

    ways: dict[str, Callable[[nn.Module, int], nn.Module]] = {
        "original": lambda module, window: module,
        "overlap": lambda module, window: LocalTransposedAttention.from_module(module, window, form="overlap"),
    }
    for part in PARTS:
        ways[f"sliding, stride window/{part}"] = lambda module, window, part=part: (
            LocalTransposedAttention.from_module(  # type: ignore[misc]
                module, window, stride=max(1, window // part)
            )
        )
    x = torch.rand(1, 3, *SIZE)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, make in ways.items():
                use(make)
                start = time.process_time()
                model(x)
                seconds[name].append(time.process_time() - start)
    first = min(seconds["original"])
    rows = [[name, min(taken), min(taken) / first] for name, taken in seconds.items()]
    print(
        f"Restormer, {settings}, {SIZE[0]}×{SIZE[1]}, window {WINDOW}, {torch.get_num_threads()} threads: "
        "processor time, so that other programs do not count\n"
    )
    print(tabulate(rows, headers=["form", "seconds", "times the original"], floatfmt=".2f"))


def _level(path: str) -> int:
    """How often the map has been halved where a block of Restormer is."""
    name = path.partition(".")[0]
    return 3 if name == "latent" else 0 if name == "refinement" else int(name[-1]) - 1


def _at(q: Tensor, k: Tensor, v: Tensor, i: int, j: int, window: int) -> Tensor:
    """The output at one position, by attention on the crop that is its window."""
    top, left = (min(max(at - (window - 1) // 2, 0), n - window) for at, n in zip((i, j), q.shape[3:], strict=True))
    crops = (x[..., top : top + window, left : left + window] for x in (q, k, v))
    return transposed_attention(*crops, 8.0)[..., i - top, j - left]


if __name__ == "__main__":
    main()
