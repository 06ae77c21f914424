"""Trains :class:`tlsc.adapters.NLMNet`: ``python -m tlsc.eval.train_nlm_net``, about five minutes on one core.

Crops of the training photographs at full, half or a third of their resolution, turned and mirrored at random, half
of them in random colours; white noise of a standard deviation that is drawn anew for each crop and constant inside
it. The same seed gives the same weights on the same machine, PyTorch and number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tlsc.adapters.nlm_net import NLMNet
from tlsc.eval.files import replacing
from tlsc.eval.photographs import TRAINING_PHOTOGRAPHS, load_photograph
from tlsc.eval.train_demo import PHOTOGRAPH_WEIGHTS

__all__ = ["main", "train"]

_MAX_SIGMA = 0.22
_FLOOR = 0.02  # keeps crops almost without noise from ruling the loss
_LEARNING_RATE = 3e-3


def train(steps: int, batch: int, seed: int) -> NLMNet:
    """Train from scratch, to the least squared error over the variance of the noise.

    Squared error alone would hear the noisiest crops only. Its logarithm, the mean PSNR of crops, would count flat
    crops as much as textured ones, in which a photograph's error lies and texture is easily mistaken for noise.

    Args:
        steps: of Adam, with the learning rate falling to 0 by a cosine.
        batch: crops a step.
        seed: of weights, crops and noise.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    photographs = [torch.from_numpy(load_photograph(name)).permute(2, 0, 1) for name in TRAINING_PHOTOGRAPHS]
    shares = np.array([PHOTOGRAPH_WEIGHTS.get(name, 1.0) for name in TRAINING_PHOTOGRAPHS])
    net = NLMNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = math.nan
    with tqdm(range(steps), desc="nlm_net", unit="step", mininterval=5) as progress:
        for _ in progress:
            chosen = rng.choice(len(photographs), batch, p=shares / shares.sum())
            clean = torch.stack([_crop(photographs[index], rng) for index in chosen])
            # More often little noise: there the best strength depends most on what the crop shows.
            sigma = _MAX_SIGMA * torch.from_numpy(rng.random((batch, 1, 1, 1), np.float32)) ** 1.5
            noisy = clean + sigma * torch.randn_like(clean)
            noisy = torch.where(torch.rand(batch, 1, 1, 1) < 0.25, noisy, noisy.clamp(0, 1))
            error = (net(noisy) - clean).square().mean((1, 2, 3))
            loss = (error / (sigma.square().flatten() + _FLOOR**2)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            average = loss.item() if math.isnan(average) else 0.99 * average + 0.01 * loss.item()
            progress.set_postfix(loss=f"{average:.4f}", refresh=False)
    return net.eval()


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A random crop, (3, side, side).

    A reduced image has finer texture and less of the photograph's own noise; random colours and brightness keep the
    network from taking what is dark for what has no noise.
    """
    shrink = int(rng.integers(1, 1 + min(3, min(image.shape[1:]) // NLMNet.crop)))
    side = shrink * NLMNet.crop
    top, left = (rng.integers(length - side + 1) for length in image.shape[1:])
    crop = F.avg_pool2d(image[:, top : top + side, left : left + side], shrink)
    crop = torch.rot90(crop, int(rng.integers(4)), (1, 2))
    crop = crop.flip(2) if rng.random() < 0.5 else crop
    if rng.random() < 0.5:
        low, high = np.sort(rng.random(2))
        tint = torch.from_numpy(rng.uniform(0.6, 1, (3, 1, 1)).astype(np.float32))
        crop = (float(low) + float(high - low) * crop) * tint
    return crop


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m tlsc.eval.train_nlm_net", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=3500, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="crops a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write to (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="1 made the weights that come along (%(default)s)")
    args = parser.parse_args(argv)
    if min(args.steps, args.batch, args.threads) < 1:
        parser.error("--steps, --batch and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    net = train(args.steps, args.batch, args.seed)
    metadata = {
        "network": "NLMNet",
        "crop": str(NLMNet.crop),
        "degradation": f"white noise of standard deviation 0 to {_MAX_SIGMA}, constant in a crop",
        "steps": str(args.steps),
        "batch": str(args.batch),
        "seed": str(args.seed),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    path = args.out / "nlm_net.safetensors"
    with replacing(path) as new:
        save_file(net.state_dict(), new, metadata)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
