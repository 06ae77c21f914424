"""Trains :class:`tlsc.adapters.NLMNet`: ``python -m tlsc.eval.train_nlm_net``, about four minutes on one core."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from tlsc.adapters.nlm_net import NLMNet
from tlsc.eval.photographs import TRAINING_PHOTOGRAPHS, load_photograph

__all__ = ["main", "train"]

MAX_SIGMA = 0.2
FLOOR = 0.05  # keeps crops almost without noise from ruling the loss
CROP = NLMNet.crop


def train(steps: int, batch: int, seed: int) -> NLMNet:
    """Trains on random crops, each with white noise of one random standard deviation, to the least squared error.

    The loss is the squared error over the variance of the noise: alone, it would hear the noisiest crops only; its
    logarithm, the mean PSNR of crops, would count flat crops as much as textured ones, in which a photograph's
    error lies and texture is easily mistaken for noise.

    Args:
        steps: of Adam, with the learning rate falling to 0 by a cosine.
        batch: crops a step.
        seed: of weights, crops and noise.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    photographs = [torch.from_numpy(load_photograph(name)).permute(2, 0, 1) for name in TRAINING_PHOTOGRAPHS]
    net = NLMNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        clean = torch.stack([_crop(photographs[rng.integers(len(photographs))], rng) for _ in range(batch)])
        sigma = torch.from_numpy(rng.uniform(0, MAX_SIGMA, (batch, 1, 1, 1)).astype(np.float32))
        noisy = clean + sigma * torch.randn_like(clean)
        noisy = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, noisy, noisy.clamp(0, 1))
        error = (net(noisy) - clean).square().mean((1, 2, 3))
        loss = (error / (sigma.square().flatten() + FLOOR**2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % 100 == 0 or step == steps:
            count = step % 100 or 100
            print(f"{step:6d}  {total / count:.4f}  {time.perf_counter() - began:5.0f} s", flush=True)
            total = 0.0
    return net.eval()


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop, half of the time of the image at half size, in random colours and brightness.

    Half size has finer texture and less of the photograph's own noise; the colours keep the network from taking
    what is dark for what has no noise.
    """
    scale = int(rng.integers(1, 3)) if min(image.shape[1:]) >= 2 * CROP else 1
    side = scale * CROP
    top = rng.integers(image.shape[1] - side + 1)
    left = rng.integers(image.shape[2] - side + 1)
    crop = F.avg_pool2d(image[:, top : top + side, left : left + side], scale)
    crop = crop.flip(2) if rng.integers(2) else crop
    low, high = np.sort(rng.uniform(0, 1, 2))
    tint = rng.uniform(0.6, 1, (3, 1, 1))
    if rng.integers(2):
        crop = (low + (high - low) * crop.numpy()) * tint
        return torch.from_numpy(crop.astype(np.float32))
    return crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000, help="default %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="crops a step, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("adapters/weights/nlm_net.safetensors"))
    args = parser.parse_args()
    net = train(args.steps, args.batch, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
