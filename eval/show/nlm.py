"""What ``tlsc nlm`` prints and draws."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from tlsc.adapters.nlm import nonlocal_means
from tlsc.adapters.nlm_net import NLMNet
from tlsc.errors import ArgumentValueError
from tlsc.eval.files import refuse_existing, replacing
from tlsc.eval.images import photographs
from tlsc.eval.judge.metrics import psnr
from tlsc.eval.run.cells import shown_size
from tlsc.eval.run.nlm import Comparison, Step, compare, fit, image_named, noisy, varying_noise
from tlsc.eval.show.pictures import new_figure, save
from tlsc.eval.telling import hand_over, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CONSTANT_NOISE", "NOISE_RANGE", "run_demo", "run_fit", "run_map"]

NOISE_RANGE = (0.01, 0.2)
CONSTANT_NOISE = (0.025, 0.05, 0.1)


def _check_output(path: Path, source: str, overwrite: bool) -> None:
    """Before the work, not after it."""
    refuse_existing([path], overwrite, [Path(source)])
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name} to")


def run_fit(args: argparse.Namespace) -> int:
    """``tlsc nlm fit`` with its parsed arguments; returns the exit status."""
    if args.plot is not None:
        _check_output(args.plot, args.clean, args.overwrite)
    clean = image_named(args.clean)
    image = noisy(clean, args.sigma, args.seed)
    options: dict[str, Any] = {"distance": args.distance, "weights": args.weights}
    settings = (args.search_window, args.patch, args.border)
    say(f"{args.clean}, noise {args.sigma:g}: {psnr(image, clean):.2f} dB\n")
    say("  step  PSNR [dB]         h")
    steps = []
    for step in fit(image, clean, args.h0, args.steps, *settings, **options):
        steps.append(step)
        if step.number <= 10 or step.number % max(args.steps // 20, 1) == 0 or step.number == args.steps:
            say(f"{step.number:6d}  {step.psnr:9.3f}  {step.h:.6f}")
    first, last = steps[0], steps[-1]
    say(f"\nfrom h = {first.h:.4f} to h = {last.h:.4f}: {last.psnr - first.psnr:+.2f} dB")
    if args.plot is not None:
        strengths = np.geomspace(min(s.h for s in steps) / 2, max(s.h for s in steps) * 2, 25)
        curve = [(float(h), psnr(nonlocal_means(image, float(h), *settings, **options), clean)) for h in strengths]
        best = max(curve, key=lambda point: point[1])
        say(f"best of {len(curve)} other h: {best[1]:.2f} dB at h = {best[0]:.4f}")
        _draw_fit(args, curve, steps)
        say(f"wrote {args.plot}")
    hand_over({"sigma": args.sigma, "steps": [asdict(step) for step in steps], "picture": args.plot})
    return 0


def _draw_fit(args: argparse.Namespace, curve: Sequence[tuple[float, float]], steps: Sequence[Step]) -> None:
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), color="#888888", label="PSNR at h")
    axes.plot(
        [step.h for step in steps],
        [step.psnr for step in steps],
        "o",
        markersize=3,
        color="#0b6fb8",
        label=f"{len(steps) - 1} steps of descent",
    )
    for step, name in ((steps[0], "start"), (steps[-1], "end")):
        axes.annotate(
            f"{name}: h = {step.h:.3f}, {step.psnr:.2f} dB",
            (step.h, step.psnr),
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
        f"window {args.search_window}, patch {args.patch}, {args.border}, {args.distance}, {args.weights}"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with replacing(args.plot) as new:
        save(figure, new)


def run_demo(args: argparse.Namespace) -> int:
    """``tlsc nlm demo`` with its parsed arguments; returns the exit status."""
    base_size = _window(args)
    shown = f"base_size {shown_size(base_size)}, seed {args.seed}"
    say(f"NLMNet on whole photographs, {shown}; PSNR in dB of values in [0, 1]\n")
    rows = [row for name in photographs.TEST_PHOTOGRAPHS for row in _rows(name, base_size, args.seed)]
    headers = ["photograph", "noise", "noisy", "original", "converted", "gain", "h", "map of h"]
    say(tabulate(rows, headers=headers, floatfmt=("", "", *[".2f"] * 3, "+.2f", ".3f", "")))
    keys = ("photograph", "noise", "noisy", "original", "converted", "gain", "h", "map_of_h")
    hand_over({"base_size": base_size, "results": [dict(zip(keys, row, strict=True)) for row in rows]})
    return 0


def _window(args: argparse.Namespace) -> int | tuple[int, int]:
    if args.base_size == "none":
        raise ArgumentValueError("NLMNet is shown beside itself converted: leave --base-size none out")
    size: int | tuple[int, int] = NLMNet.base_size if args.base_size == "auto" else args.base_size
    return size


def _rows(name: str, base_size: int | tuple[int, int], seed: int) -> Iterator[list[Any]]:
    clean = image_named(name)
    low, high = NOISE_RANGE
    cases: list[tuple[str, float | Tensor]] = [
        (f"{low:g} to {high:g}", varying_noise(clean, low, high, seed)),
        *((f"{sigma:g}", sigma) for sigma in CONSTANT_NOISE),
    ]
    for noise, sigma in cases:
        found = compare(noisy(clean, sigma, seed), base_size)
        before, after = psnr(found.original, clean), psnr(found.converted, clean)
        spread = f"{float(found.strengths.min()):.3f} to {float(found.strengths.max()):.3f}"
        yield [name, noise, psnr(found.image, clean), before, after, after - before, found.one, spread]


def run_map(args: argparse.Namespace) -> int:
    """``tlsc nlm map`` with its parsed arguments; returns the exit status."""
    _check_output(args.out, args.image, args.overwrite)
    given = image_named(args.image)
    given = given.expand(-1, 3, -1, -1)
    sigma: Tensor | None = None
    if args.sigma is not None:
        if len(args.sigma) > 2:
            raise ArgumentValueError(f"--sigma takes one number or two, got {len(args.sigma)}")
        low, high = args.sigma[0], args.sigma[-1]
        constant = torch.full(given.shape[2:], low)
        sigma = constant if len(args.sigma) == 1 else varying_noise(given, low, high, args.seed)
    found = compare(given if sigma is None else noisy(given, sigma, args.seed), _window(args))
    low, high = (float(x) for x in found.strengths.aminmax())
    say(f"h: {found.one:.4f} as trained; {low:.4f} to {high:.4f} converted")
    if sigma is not None:
        pictures = (("noisy", found.image), ("original", found.original), ("converted", found.converted))
        say("PSNR [dB]: " + ", ".join(f"{name} {psnr(picture, given):.2f}" for name, picture in pictures))
    _draw_map(args.out, Path(args.image).name, found, given, sigma)
    say(f"wrote {args.out}")
    figures: dict[str, Any] = {"h": found.one, "map_of_h": [low, high], "picture": args.out}
    if sigma is not None:
        figures["psnr_db"] = {name: psnr(picture, given) for name, picture in pictures}
    hand_over(figures)
    return 0


def _draw_map(path: Path, name: str, found: Comparison, clean: Tensor, sigma: Tensor | None) -> None:
    def title(text: str, picture: Tensor) -> str:
        return text if sigma is None else f"{text}: {psnr(picture, clean):.2f} dB"

    panels: list[tuple[str, Tensor]] = [
        (title("given", found.image), found.image),
        (title(f"original, one h = {found.one:.3f}", found.original), found.original),
        (title("converted, a map of h", found.converted), found.converted),
        ("map of h, converted network", found.strengths),
    ]
    if sigma is not None:
        panels += [("standard deviation of the noise", sigma[None, None]), ("clean", clean)]
    rows = len(panels) // 2 if sigma is None else 2
    columns = len(panels) // rows
    height, width = clean.shape[2:]
    figure = new_figure(4.8 * columns, 4.8 * rows * height / width + 0.5 * rows + 0.5)
    grid = figure.subplots(rows, columns)
    for axes, (text, values) in zip(grid.flat, panels, strict=True):
        _draw_panel(axes, text, values)
    figure.suptitle(f"NLMNet on {name}")
    with replacing(path) as new:
        save(figure, new)


def _draw_panel(axes: Axes, title: str, values: Tensor) -> None:
    if values.shape[1] == 3:
        axes.imshow(values[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    else:
        drawn = axes.imshow(values[0, 0].numpy(), cmap="viridis", vmin=0, interpolation="nearest")
        axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
