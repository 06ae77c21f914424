"""Trains :class:`tlsc.adapters.NLMNet`: ``python -m tlsc.eval.train.nlm_net``, ten to fifteen minutes on one core.

Crops of the training photographs at full, half or a third of their resolution, turned and mirrored, some of two
photographs mixed differently in each channel, some in random colours, some grey or with grain of their own; white
noise of a standard deviation that is drawn anew for each crop and constant inside it.

For most of the training the error that non-local means make on a crop is not computed but read off a table: it
depends on nothing but the crop and ``h``, so that a dozen strengths each, measured once, let thousands of steps go
by quickly. ``--tuning`` goes on end to end, through the layer, on new crops; 200 steps, tried once, did not help.
To the error is added how far ``h`` is from proportional to the noise: texture then moves it less, and a photograph
of even noise gets an even strength, at 0.4 % more error.

The same seed gives the same weights on the same machine, PyTorch and number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tlsc.adapters.nlm_net import NLMNet
from tlsc.eval.files import write_weights
from tlsc.eval.images.photographs import TRAINING_PHOTOGRAPHS, load_photograph
from tlsc.eval.train.demo import PHOTOGRAPH_WEIGHTS

__all__ = ["main", "train"]

_SIGMAS = (0.004, 0.25)
_FLOOR = 0.01  # keeps crops almost without noise from ruling the loss
_LEARNING_RATE, _TUNING_RATE = 1e-2, 5e-4
_AT_ONCE = 8  # crops
_STRIDE = 4  # of the positions whose variation is kept
_STRENGTHS = torch.logspace(math.log10(0.7), math.log10(20), 12)  # in the table, over the noise's level
_PROPORTIONAL = 0.3  # weight of (log(h / sigma) − a constant)² beside the error; the constant is learnt
_BEYOND = 0.1  # by how much the logarithm of the error grows with each further strength outside the table


def train(crops: int, steps: int, batch: int, tuning: int, seed: int) -> NLMNet:
    """Train from scratch, to the least squared error over the variance of the noise.

    Squared error alone would hear the noisiest crops only. Its logarithm, the mean PSNR of crops, would count flat
    crops as much as textured ones, in which a photograph's error lies and texture is easily mistaken for noise.

    Args:
        crops: in the table.
        steps: of Adam on the table, with the learning rate falling to 0 by a cosine.
        batch: crops of the table a step.
        tuning: steps of Adam end to end after that, on 8 new crops each.
        seed: of weights, crops and noise.
    """
    torch.manual_seed(seed)
    samples = _samples(np.random.default_rng(seed))
    net = NLMNet()
    table = _measure(net, samples, crops)
    ratio = nn.Parameter(torch.tensor(math.log(5)))
    for rate, count, end_to_end in ((_LEARNING_RATE, steps, False), (_TUNING_RATE, tuning, True)):
        optimizer = torch.optim.Adam([*net.parameters(), ratio], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(count, 1))
        average = math.nan
        with tqdm(range(count), desc="end to end" if end_to_end else "on the table", mininterval=5) as progress:
            for _ in progress:
                if end_to_end:
                    loss = _loss_end_to_end(net, ratio, next(samples))
                else:
                    loss = _loss_on_table(net, ratio, table, batch)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                average = loss.item() if math.isnan(average) else 0.99 * average + 0.01 * loss.item()
                progress.set_postfix(loss=f"{average:.4f}", refresh=False)
    return net.eval()


class _Sample(NamedTuple):
    noisy: Tensor  # (N, 3, side, side)
    clean: Tensor
    sigma: Tensor  # (N, 1, 1, 1)


class _Table(NamedTuple):
    variation: Tensor  # what NLMNet sees of each crop
    level: Tensor  # (N,), the unit of _STRENGTHS
    log_error: Tensor  # (len(_STRENGTHS), N)
    sigma: Tensor  # (N,)


@torch.no_grad()
def _measure(net: NLMNet, samples: Iterator[_Sample], crops: int) -> _Table:
    rows = []
    for _ in tqdm(range(-(-crops // _AT_ONCE)), desc="table", mininterval=5):
        noisy, clean, sigma = next(samples)
        level = sigma.clamp_min(_SIGMAS[0])
        errors = [(net.denoise(noisy, s * level) - clean).square().mean((1, 2, 3)) for s in _STRENGTHS]
        variation = net._variation(noisy)[..., _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE].half()
        rows.append((variation, level.flatten(), torch.stack(errors, 1), sigma.flatten()))
    variation, level, error, sigma = (torch.cat(column) for column in zip(*rows, strict=True))
    return _Table(variation, level, error.clamp_min(1e-8).log().T.contiguous(), sigma)


def _loss_on_table(net: NLMNet, ratio: Tensor, table: _Table, batch: int) -> Tensor:
    chosen = torch.randint(len(table.sigma), (batch,))
    h = net._read(table.variation[chosen].float()).flatten()
    spacing = math.log(float(_STRENGTHS[1] / _STRENGTHS[0]))
    wanted = (h / table.level[chosen] / _STRENGTHS[0]).clamp_min(1e-6).log() / spacing
    place = wanted.clamp(0, len(_STRENGTHS) - 1)
    below = place.detach().floor().clamp(max=len(_STRENGTHS) - 2).long()
    left, right = table.log_error[below, chosen], table.log_error[below + 1, chosen]
    log_error = left + (right - left) * (place - below) + _BEYOND * (wanted - place).abs()
    return _loss(log_error.exp(), h, ratio, table.sigma[chosen])


def _loss_end_to_end(net: NLMNet, ratio: Tensor, sample: _Sample) -> Tensor:
    h = net.strength(sample.noisy)
    error = (net.denoise(sample.noisy, h) - sample.clean).square().mean((1, 2, 3))
    return _loss(error, h.flatten(), ratio, sample.sigma.flatten())


def _loss(error: Tensor, h: Tensor, ratio: Tensor, sigma: Tensor) -> Tensor:
    uneven = (h / sigma.clamp_min(_SIGMAS[0])).log() - ratio
    return (error / (sigma.square() + _FLOOR**2)).mean() + _PROPORTIONAL * uneven.square().mean()


def _samples(rng: np.random.Generator) -> Iterator[_Sample]:
    """Crops with noise, without end."""
    photographs = [torch.from_numpy(load_photograph(name)).permute(2, 0, 1) for name in TRAINING_PHOTOGRAPHS]
    shares = np.array([PHOTOGRAPH_WEIGHTS.get(name, 1.0) for name in TRAINING_PHOTOGRAPHS])
    shares /= shares.sum()
    while True:
        clean = torch.stack([_scene(photographs, shares, rng) for _ in range(_AT_ONCE)])
        noise = torch.randn_like(clean)
        for i, crop in enumerate(clean):
            if torch.equal(crop[0], crop[1]) and torch.equal(crop[0], crop[2]) and rng.random() < 0.2:
                noise[i] = noise[i, :1]  # a grey image, noise and all
        low, high = _SIGMAS
        sigma = torch.from_numpy((low * (high / low) ** rng.random((_AT_ONCE, 1, 1, 1))).astype(np.float32))
        sigma[torch.from_numpy(rng.random(sigma.shape) < 0.04)] = 0
        noisy = clean + sigma * noise
        yield _Sample(torch.where(torch.rand_like(sigma) < 0.2, noisy, noisy.clamp(0, 1)), clean, sigma)


def _scene(photographs: Sequence[Tensor], shares: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A crop, (3, side, side), as photographs may be: the network shall not rely on what these few have in common.

    Channels that differ in texture, because in grey photographs they do not; colours and brightness of all kinds,
    because what is dark is not without noise; grain, which belongs to a photograph and should stay in it.
    """
    crop = _crop(photographs[rng.choice(len(photographs), p=shares)], rng)
    if rng.random() < 0.25:
        other = _crop(photographs[rng.choice(len(photographs), p=shares)], rng)
        crop = torch.lerp(crop, other, torch.from_numpy(rng.uniform(0, 0.7, (3, 1, 1)).astype(np.float32)))
    if rng.random() < 0.5:
        low, high = np.sort(rng.random(2))
        tint = torch.from_numpy(rng.uniform(0.6, 1, (3, 1, 1)).astype(np.float32))
        crop = (float(low) + float(high - low) * crop) * tint
    if rng.random() < 0.08:
        crop = (crop + float(rng.uniform(0, 0.03)) * torch.randn_like(crop)).clamp(0, 1)
    if rng.random() < 0.08:
        crop = crop.mean(0, keepdim=True).expand(3, -1, -1)
    return crop


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A random crop; a reduced image has finer texture and less of the photograph's own noise."""
    shrink = int(rng.integers(1, 1 + min(3, min(image.shape[1:]) // NLMNet.crop)))
    side = shrink * NLMNet.crop
    top, left = (rng.integers(length - side + 1) for length in image.shape[1:])
    crop = F.avg_pool2d(image[:, top : top + side, left : left + side], shrink)
    crop = torch.rot90(crop, int(rng.integers(4)), (1, 2))
    return crop.flip(2) if rng.random() < 0.5 else crop


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m tlsc.eval.train.nlm_net", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--crops", type=int, default=1800, help="in the table (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps on the table (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="crops of the table a step (%(default)s)")
    parser.add_argument("--tuning", type=int, default=0, help="optimiser steps end to end (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write to (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="1 made the weights that come along (%(default)s)")
    args = parser.parse_args(argv)
    if min(args.crops, args.steps, args.batch, args.threads) < 1 or args.tuning < 0:
        parser.error("--crops, --steps, --batch and --threads must be at least 1, --tuning at least 0")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    net = train(args.crops, args.steps, args.batch, args.tuning, args.seed)
    made = {
        "network": "NLMNet",
        "crop": str(NLMNet.crop),
        "degradation": f"white noise of standard deviation 0 to {_SIGMAS[1]}, constant in a crop",
        "crops": str(args.crops),
        "steps": str(args.steps),
        "batch": str(args.batch),
        "tuning": str(args.tuning),
        "seed": str(args.seed),
    }
    write_weights(args.out / "nlm_net.safetensors", net, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
