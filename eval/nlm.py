"""``tlsc nlm``: learn the strength of non-local means, and show a network that reads it off the image."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tlsc
from tlsc.errors import ArgumentValueError

__all__ = ["add_parser", "compare", "fit", "noisy", "psnr", "run"]


def add_parser(commands: Any) -> None:
    """Adds ``nlm`` to the subparsers ``commands``."""
    parser = commands.add_parser("nlm", help="non-local means: learn its strength; a network that reads it off")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="nlm_command")

    learn = actions.add_parser(
        "fit",
        help="learn the strength h by gradient descent",
        description="Add noise to a clean image and learn the strength h of non-local means by gradient descent "
        "on the mean squared error. Prints step, PSNR in dB (of values in [0, 1]) and h; writes fit.csv, fit.json "
        "and psnr.png, a plot of PSNR against h with the way that was taken.",
    )
    learn.add_argument("--clean", required=True, help="an image file, or a photograph of scikit-image: coffee, …")
    learn.add_argument("--sigma", type=_positive, default=0.05, help="of the white noise (%(default)s)")
    learn.add_argument("--h0", type=_positive, default=0.05, help="strength to start from (%(default)s)")
    learn.add_argument("--steps", type=_count, default=100, help="of gradient descent (%(default)s)")
    learn.add_argument("--search-window", type=_count, default=11, help="in pixels, odd (%(default)s)")
    learn.add_argument("--patch", type=_count, default=5, help="in pixels, odd (%(default)s)")
    learn.add_argument("--border", choices=("circular", "reflect"), default="circular", help="(%(default)s)")
    learn.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    learn.add_argument("--out", type=Path, default=Path("tlsc-nlm"), help="folder to write to (%(default)s)")

    demo = actions.add_parser(
        "demo",
        help="NLMNet as trained and converted, on noise that varies from place to place",
        description="Denoise photographs that the network was not trained on, with one strength for the whole "
        "image and, converted, with a map of strengths. Prints a table; writes nlm_net.csv and h_map.png.",
    )
    demo.add_argument("--base-size", type=_count, help="window, in pixels (default: NLMNet.base_size)")
    demo.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    demo.add_argument("--out", type=Path, default=Path("tlsc-nlm"), help="folder to write to (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs what :func:`add_parser` parsed; returns the exit status."""
    args.out.mkdir(parents=True, exist_ok=True)
    return _run_fit(args) if args.nlm_command == "fit" else _run_demo(args)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return value


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of values in [0, 1], over all elements.

    Example:
        >>> psnr(torch.zeros(4), torch.full((4,), 0.1))
        20.0
    """
    return round(-10 * math.log10(max(float((a.double() - b.double()).square().mean()), 1e-20)), 6)


def noisy(clean: Tensor, sigma: float | Tensor, seed: int) -> Tensor:
    """``clean`` (N, C, H, W) plus white noise of standard deviation ``sigma``, clipped to [0, 1]."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return (clean + sigma * noise).clamp(0, 1)


def _image(name: str) -> Tensor:
    """An image file, or a photograph that comes with scikit-image, as (1, C, H, W)."""
    from tlsc.eval.photographs import TEST_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load_photograph

    if not Path(name).is_file():
        if name in TEST_PHOTOGRAPHS + TRAINING_PHOTOGRAPHS:
            return _as_batch(load_photograph(name))
        known = ", ".join(TEST_PHOTOGRAPHS + TRAINING_PHOTOGRAPHS)
        raise FileNotFoundError(f"no file {name!r}, nor a photograph of that name; there are {known}")
    import skimage.io
    from skimage.util import img_as_float32

    try:
        pixels = skimage.io.imread(name)
    except Exception as error:  # each of its plugins raises its own
        raise ArgumentValueError(f"{name} cannot be read as an image: {error}") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise ArgumentValueError(f"{name} must be a grey or RGB image, got an array of shape {pixels.shape}")
    # Alpha goes.
    return _as_batch(img_as_float32(pixels[..., : 1 if pixels.shape[2] < 3 else 3]))


def _as_batch(pixels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).contiguous()


def _as_picture(image: Tensor) -> NDArray[np.float32]:
    picture: NDArray[np.float32] = image[0].permute(1, 2, 0).numpy()
    return picture


def fit(
    image: Tensor, clean: Tensor, h0: float, steps: int, search_window: int, patch: int, border: Any
) -> list[tuple[int, float, float]]:
    """Learns the strength that brings ``image`` closest to ``clean``; yields (step, PSNR in dB, h) for each step.

    Adam on log h, so that the step does not depend on the unit of h, with the rate falling from 0.05 by a cosine.
    """
    from tlsc.adapters.nonlocal_means import nonlocal_means

    log_h = torch.tensor(math.log(h0), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_h], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    history = []
    print("  step     PSNR         h")
    for step in range(steps + 1):
        h = log_h.exp()
        result = nonlocal_means(image, h, search_window, patch, border)
        history.append((step, psnr(result.detach(), clean), float(h.detach())))
        if step % max(steps // 20, 1) == 0 or step == steps:
            print(f"{step:6d} {history[-1][1]:8.3f}  {history[-1][2]:.6f}", flush=True)
        if step < steps:
            optimizer.zero_grad()
            (result - clean).square().mean().backward()
            optimizer.step()
            schedule.step()
    return history


def _run_fit(args: argparse.Namespace) -> int:
    from tlsc.adapters.nonlocal_means import nonlocal_means

    for name in ("search_window", "patch"):
        if getattr(args, name) % 2 == 0:
            raise ArgumentValueError(f"--{name.replace('_', '-')} must be odd, got {getattr(args, name)}")
    clean = _image(args.clean)
    image = noisy(clean, args.sigma, args.seed)
    settings = (args.search_window, args.patch, args.border)
    print(f"{args.clean}, noise {args.sigma:g}: {psnr(image, clean):.2f} dB")
    history = fit(image, clean, args.h0, args.steps, *settings)
    low, high = min(h for _, _, h in history), max(h for _, _, h in history)
    strengths = np.geomspace(low / 2, high * 2, 25).tolist()
    curve = [(h, psnr(nonlocal_means(image, h, *settings), clean)) for h in strengths]
    best = max(curve, key=lambda point: point[1])
    gain = history[-1][1] - history[0][1]
    print(
        f"from h0 = {args.h0:g} to h = {history[-1][2]:.4f}: {gain:+.2f} dB; "
        f"best of {len(curve)} other h: {best[1]:.2f} dB at {best[0]:.4f}"
    )
    with open(args.out / "fit.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "psnr_db", "h"), *history])
    record = {
        "clean": args.clean,
        "sigma": args.sigma,
        "seed": args.seed,
        "search_window": args.search_window,
        "patch": args.patch,
        "border": args.border,
        "noisy_psnr_db": psnr(image, clean),
        "steps": [{"step": s, "psnr_db": p, "h": h} for s, p, h in history],
        "curve": [{"h": h, "psnr_db": p} for h, p in curve],
    }
    (args.out / "fit.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _draw_fit(args.out / "psnr.png", args, curve, history)
    print(f"wrote {', '.join(str(args.out / name) for name in ('fit.csv', 'fit.json', 'psnr.png'))}")
    return 0


def _draw_fit(
    path: Path,
    args: argparse.Namespace,
    curve: Sequence[tuple[float, float]],
    history: Sequence[tuple[int, float, float]],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), color="#888888", label="PSNR at h")
    way = [(h, p) for _, p, h in history]
    axes.plot(*zip(*way, strict=True), "o", markersize=3, color="#0b6fb8", label=f"{len(way) - 1} steps of descent")
    for (h, p), name in ((way[0], "start"), (way[-1], "end")):
        axes.annotate(
            f"{name}: h = {h:.3f}, {p:.2f} dB",
            (h, p),
            xytext=(0, -34),
            textcoords="offset points",
            ha="center",
            arrowprops={"arrowstyle": "->"},
        )
    axes.set_xscale("log")
    ticks = [t for t in (m * 10.0**e for e in range(-5, 3) for m in (1, 2, 5)) if curve[0][0] <= t <= curve[-1][0]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.set_xlabel("h (logarithmic)")
    axes.set_ylabel("PSNR [dB], values in [0, 1]")
    axes.set_title(
        f"Non-local means on {Path(args.clean).name}, noise σ = {args.sigma:g}, "
        f"window {args.search_window}, patch {args.patch}"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


NOISE_RANGE = (0.01, 0.2)
CONSTANT_NOISE = (0.05, 0.1)


def compare(base_size: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """NLMNet, as trained and converted, on whole test photographs: rows of results, and one case with its images.

    Noise: a smooth field that spans ``NOISE_RANGE``, and the constants ``CONSTANT_NOISE``.
    """
    from tlsc.adapters.nlm_net import NLMNet
    from tlsc.eval.degradations import smooth_field
    from tlsc.eval.photographs import TEST_PHOTOGRAPHS, load_photograph

    original, local = NLMNet.pretrained(), tlsc.convert(NLMNet.pretrained(), base_size)
    rows: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    for number, name in enumerate(TEST_PHOTOGRAPHS):
        clean = _as_batch(load_photograph(name))
        rng = np.random.default_rng((seed, number))
        field = torch.from_numpy(smooth_field(*clean.shape[2:], rng)).permute(2, 0, 1)[None]
        low, high = NOISE_RANGE
        cases: list[tuple[str, float | Tensor]] = [(f"{low:g} to {high:g}", low + (high - low) * field)]
        cases += [(f"{sigma:g}", sigma) for sigma in CONSTANT_NOISE]
        for noise, sigma in cases:
            image = noisy(clean, sigma, seed)
            with torch.no_grad():
                before, after, h = original(image), local(image), local.strength(image)
                one = float(original.strength(image))
            rows.append(
                {
                    "photograph": name,
                    "noise": noise,
                    "noisy": psnr(image, clean),
                    "original": psnr(before, clean),
                    "converted": psnr(after, clean),
                    "gain": psnr(after, clean) - psnr(before, clean),
                    "h": one,
                    "h_map_min": float(h.min()),
                    "h_map_max": float(h.max()),
                }
            )
            if not shown:
                shown = {"clean": clean, "noisy": image, "original": before, "converted": after, "h": h}
                shown |= {"sigma": sigma, "one": one, "row": rows[-1]}
    return rows, shown


def _run_demo(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from tlsc.adapters.nlm_net import NLMNet

    base_size = args.base_size or NLMNet.base_size
    rows, shown = compare(base_size, args.seed)
    print(f"NLMNet on whole photographs, PSNR in dB of values in [0, 1], base_size {base_size}, seed {args.seed}\n")
    print(tabulate(rows, headers="keys", floatfmt=("", "", *[".2f"] * 4, *[".3f"] * 3)), "\n")
    with open(args.out / "nlm_net.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _draw_map(args.out / "h_map.png", shown, base_size)
    print(f"wrote {args.out / 'nlm_net.csv'}, {args.out / 'h_map.png'}")
    return 0


def _draw_map(path: Path, shown: dict[str, Any], base_size: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    row = shown["row"]
    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    pictures = {
        f"noisy, {row['noisy']:.2f} dB": "noisy",
        f"one h = {shown['one']:.3f} (original), {row['original']:.2f} dB": "original",
        f"map of h (converted, base_size {base_size}), {row['converted']:.2f} dB": "converted",
        "clean": "clean",
    }
    places = (panels[0, 0], panels[0, 1], panels[0, 2], panels[1, 0])
    for axes, (title, key) in zip(places, pictures.items(), strict=True):
        axes.imshow(_as_picture(shown[key]))
        axes.set_title(title)
    maps = {"noise level σ (truth)": shown["sigma"], "h predicted by the converted network": shown["h"]}
    for axes, (title, values) in zip(panels[1, 1:], maps.items(), strict=True):
        drawn = axes.imshow(values[0, 0].numpy(), cmap="viridis", vmin=0)
        axes.set_title(title)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(f"NLMNet on {row['photograph']}, noise σ from {row['noise']}")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m tlsc.eval.nlm")
    add_parser(_parser.add_subparsers(required=True))
    _args = _parser.parse_args()
    raise SystemExit(run(_args))
