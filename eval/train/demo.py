"""Trains the networks of ``tlsc demo``: ``python -m tlsc.eval.train.demo``.

Crops of the training photographs, one in three at half resolution, turned and mirrored at random; degraded at a
level that is drawn anew for each crop and constant inside it. AdamW, a cosine schedule, the Charbonnier loss,
bfloat16 arithmetic where the processor has AVX512. The same seed gives the same weights on the same machine,
PyTorch and number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tlsc.adapters.unet import DEMO_NETWORKS, DemoNetwork
from tlsc.eval.data.degradations import DEGRADATIONS, Degradation
from tlsc.eval.files import write_weights
from tlsc.eval.images.photographs import TRAINING_PHOTOGRAPHS, Image, load_photograph

__all__ = ["PHOTOGRAPH_WEIGHTS", "arithmetic", "main", "random_crop", "train"]

# Pixels per step, whatever the size of the crop.
_PIXELS_PER_STEP = 16 * 64 * 64
_LEARNING_RATE = 2e-3
# Scenes in colour with much detail are drawn more often.
PHOTOGRAPH_WEIGHTS = {"motorcycle_left": 3.0, "motorcycle_right": 3.0, "rocket": 3.0}


def train(network: DemoNetwork, steps: int, seed: int, degradation: Degradation | None = None) -> nn.Module:
    """Train a demo network from scratch.

    Args:
        network: what to train; where it returns a list, as networks of several stages do, each entry is trained.
        steps: number of optimiser steps.
        seed: of the weights, the crops and the degradation.
        degradation: to be undone; by default the network's own.
    """
    undone = DEGRADATIONS[network.degradation] if degradation is None else degradation
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    photographs = [load_photograph(name) for name in TRAINING_PHOTOGRAPHS]
    weights = np.array([PHOTOGRAPH_WEIGHTS.get(name, 1.0) for name in TRAINING_PHOTOGRAPHS])
    model: nn.Module = network.build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    average = math.nan
    with tqdm(range(steps), desc=network.name, unit="step", mininterval=5) as progress:
        for _ in progress:
            clean, degraded = _batch(network.crop, undone, photographs, weights / weights.sum(), rng)
            with arithmetic():
                restored = model(degraded)
            stages = restored if isinstance(restored, list) else [restored]
            loss = sum(((stage.float() - clean).square() + 1e-6).sqrt().mean() for stage in stages)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
            progress.set_postfix(loss=f"{average:.4f}", refresh=False)
    return model.to(memory_format=torch.contiguous_format).eval()


def arithmetic() -> torch.autocast:
    """bfloat16 for convolutions, but where the processor would only imitate it: six times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"))


def _batch(
    size: int,
    degradation: Degradation,
    photographs: Sequence[Image],
    weights: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    clean, degraded = [], []
    inside = slice(degradation.margin, degradation.margin + size)
    for _ in range(max(1, _PIXELS_PER_STEP // size**2)):
        photograph = photographs[rng.choice(len(photographs), p=weights)]
        crop = random_crop(photograph, size + 2 * degradation.margin, rng)
        degraded.append(degradation.apply(crop, rng.random(), rng)[inside, inside])
        clean.append(crop[inside, inside])
    return _tensor(clean), _tensor(degraded)


def random_crop(photograph: Image, size: int, rng: np.random.Generator) -> Image:
    """A square crop of side ``size``, one in three at half resolution, turned and mirrored at random."""
    shrink = 2 if rng.random() < 1 / 3 and min(photograph.shape[:2]) >= 2 * size else 1
    top, left = (rng.integers(length - size * shrink + 1) for length in photograph.shape[:2])
    crop = photograph[top : top + size * shrink, left : left + size * shrink]
    if shrink > 1:
        crop = np.asarray(crop.reshape(size, shrink, size, shrink, 3).mean((1, 3)), dtype=np.float32)
    crop = np.rot90(crop, int(rng.integers(4)))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _tensor(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def main(argv: Sequence[str] | None = None) -> int:
    """Train one network or all of them, and write their weights."""
    parser = argparse.ArgumentParser(prog="python -m tlsc.eval.train.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=list(DEMO_NETWORKS), action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and degradation (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write to (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="1 made the weights that come along (%(default)s)")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.network or DEMO_NETWORKS:
        network = DEMO_NETWORKS[name]
        model = train(network, args.steps, args.seed)
        made = {
            "network": name,
            "settings": repr(dict(network.settings)),
            "crop": str(network.crop),
            "degradation": DEGRADATIONS[network.degradation].description,
            "steps": str(args.steps),
            "seed": str(args.seed),
        }
        write_weights(args.out / network.weights.name, model, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
