"""Trains the demo's FFDNet: ``python -m tlsc.eval.train.ffdnet``.

Crops of the training photographs as for the other demo networks, half of them in colours that no photograph has,
with white Gaussian noise of a standard deviation drawn anew for each crop. AdamW, a cosine schedule, bfloat16
where the processor has AVX512, the L1 loss over the noise's level and as much again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tlsc.adapters.ffdnet import FFDNet
from tlsc.eval.files import write_weights
from tlsc.eval.images.photographs import TRAINING_PHOTOGRAPHS, load_photograph
from tlsc.eval.train.demo import PHOTOGRAPH_WEIGHTS, arithmetic, random_crop

__all__ = ["fit", "main", "train"]

_SIGMAS = (0.0, 60 / 255)
_FLOOR = 25 / 255  # of noise, beside which weak noise is weighted as no weaker
_CROP = 48
_BATCH = 32
_LEARNING_RATE = 1.5e-3


def train(steps: int, seed: int, width: int = 64, depth: int = 9) -> FFDNet:
    """Train from scratch.

    Args:
        steps: number of optimiser steps.
        seed: of the weights, the crops and the noise.
        width, depth: of the network.
    """
    torch.manual_seed(seed)
    model = FFDNet(3, width, depth)
    _pass_image_through(model)
    fit(model, steps, seed)
    return model


def fit(model: nn.Module, steps: int, seed: int) -> None:
    """Train ``model(noisy, sigma)`` in place, and set it to evaluation.

    Args:
        model: any denoiser of (N, 3, H, W); ``sigma`` is (N,).
        steps: number of optimiser steps.
        seed: of crops and their mixture; the noise is PyTorch's.
    """
    rng = np.random.default_rng(seed)
    photographs = [load_photograph(name) for name in TRAINING_PHOTOGRAPHS]
    weights = np.array([PHOTOGRAPH_WEIGHTS.get(name, 1.0) for name in TRAINING_PHOTOGRAPHS])
    weights /= weights.sum()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    average = math.nan
    with tqdm(range(steps), desc=type(model).__name__, unit="step", mininterval=10) as progress:
        for _ in progress:
            crops = []
            for _ in range(_BATCH):
                crop = random_crop(photographs[rng.choice(len(photographs), p=weights)], _CROP, rng)
                crops.append(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1))
            clean = _recoloured(torch.stack(crops)).contiguous(memory_format=torch.channels_last)
            sigma = torch.empty(_BATCH).uniform_(*_SIGMAS)
            noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
            with arithmetic():
                restored = model(noisy, sigma)
            error = (restored.float() - clean).abs().mean((1, 2, 3))
            loss = _FLOOR * (error / (sigma + _FLOOR)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
            progress.set_postfix(loss=f"{average:.4f}", refresh=False)
    model.to(memory_format=torch.contiguous_format).eval()


def _recoloured(crops: Tensor) -> Tensor:
    """Half of the crops in other colours; some with channels that differ in texture, too.

    The photographs hold few colours. Trained on these alone, the network takes what is saturated for noise: 27 dB
    are left of a baboon without any noise.
    """
    count = len(crops)
    share = 0.7 * torch.rand(count, 3, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.3)
    mixed = torch.lerp(crops, crops.roll(1, 0), share)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.4, 1)
    tinted = gain * mixed + (1 - gain) * torch.rand(count, 3, 1, 1)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, tinted, crops)


def _pass_image_through(model: FFDNet) -> None:
    """Start as the identity: 4·C hidden channels carry the image, raised so that ReLU cuts no negative noise."""
    carried = 4 * model.channels
    layers = [layer for layer in model.model if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            first = model.channels if index == 0 else 0
            for channel in range(carried):
                layer.weight[channel] *= 0.1
                layer.weight[channel, first + channel, 1, 1] += 1.0
                assert layer.bias is not None
                layer.bias[channel] = 0.5 if index == 0 else (-0.5 if index == len(layers) - 1 else 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the network, and write its weights."""
    parser = argparse.ArgumentParser(
        prog="python -m tlsc.eval.train.ffdnet", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=10000, help="optimiser steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write to (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="1 made the weights that come along (%(default)s)")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(args.steps, args.seed)
    made = {
        "network": "ffdnet",
        "noise": f"white, standard deviation {_SIGMAS[0] * 255:g} to {_SIGMAS[1] * 255:g} of 255",
        "crop": str(_CROP),
        "steps": str(args.steps),
        "seed": str(args.seed),
    }
    write_weights(args.out / "ffdnet.safetensors", model, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
