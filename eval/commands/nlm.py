"""``tlsc nlm``: learn the strength of non-local means, and show a network that reads it off the image."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlsc.errors import ArgumentValueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Step", "add_command", "compare", "fit", "noisy", "psnr"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``nlm`` with its own commands to the command line."""
    parser = commands.add_parser("nlm", help="non-local means: learn its strength; a network that reads it off")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_fit(actions)
    _add_map(actions)
    _add_demo(actions)


def _add_fit(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "fit",
        help="learn the strength h by gradient descent",
        description="Add white noise to a clean image and learn the strength h of non-local means by gradient "
        "descent on the mean squared error. Prints step, PSNR in dB (of values in [0, 1]) and h.",
    )
    parser.add_argument("--clean", required=True, help=f"an image file, or a photograph by name: {_names()}")
    parser.add_argument("--sigma", type=_positive, default=0.05, help="of the noise (%(default)s)")
    parser.add_argument("--h0", type=_positive, default=0.05, help="strength to start from (%(default)s)")
    parser.add_argument("--steps", type=_count, default=100, help="of gradient descent (%(default)s)")
    parser.add_argument("--search-window", type=_odd, default=11, help="in pixels, odd (%(default)s)")
    parser.add_argument("--patch", type=_odd, default=5, help="in pixels, odd (%(default)s)")
    parser.add_argument("--border", choices=("circular", "reflect"), default="circular", help="(%(default)s)")
    parser.add_argument("--distance", choices=("luma", "color"), default="luma", help="of patches (%(default)s)")
    parser.add_argument(
        "--weights", choices=("exponential", "gaussian"), default="exponential", help="(%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw PSNR against h, with the way that was taken")
    parser.set_defaults(run=_run_fit)


def _add_map(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "map",
        help="denoise an image with NLMNet, converted, and draw its map of strengths",
        description="Denoise an image with NLMNet as trained (one h) and converted (a map of h), and draw all of "
        "it. With --sigma noise is added first, and PSNR in dB (of values in [0, 1]) is printed.",
    )
    parser.add_argument("image", help=f"an image file, or a photograph by name: {_names()}")
    parser.add_argument("--out", type=Path, metavar="PNG", default=Path("h_map.png"), help="(%(default)s)")
    parser.add_argument(
        "--sigma",
        type=_positive,
        nargs="+",
        metavar="SIGMA",
        help="standard deviation of noise to add; two: it varies smoothly from the first to the second",
    )
    parser.add_argument("--base-size", type=_count, help="window in pixels (default: the training crop)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.set_defaults(run=_run_map)


def _add_demo(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "demo",
        help="NLMNet as trained and converted, on photographs that it was not trained on",
        description="Denoise whole photographs with NLMNet as trained (one h) and converted (a map of h): noise "
        "that varies from place to place, and constant noise. Prints PSNR in dB of values in [0, 1].",
    )
    parser.add_argument("--base-size", type=_count, help="window in pixels (default: the training crop)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.set_defaults(run=_run_demo)


def _names() -> str:
    return "coffee, chelsea, astronaut, …"


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


def _odd(text: str) -> int:
    value = _count(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd, so that it has a centre, got {text}")
    return value


# ---------------------------------------------------------------------------------------------------- images


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of values in [0, 1], over all elements; infinite where they are equal.

    Example:
        >>> round(psnr(torch.zeros(4), torch.full((4,), 0.1)), 6)
        20.0
    """
    error = float((a.double() - b.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def noisy(clean: Tensor, sigma: float | Tensor, seed: int) -> Tensor:
    """``clean`` (N, C, H, W) plus white noise of standard deviation ``sigma``, clipped to [0, 1].

    Example:
        >>> noisy(torch.full((1, 1, 100, 100), 0.5), 0.1, seed=0).std().round(decimals=2)
        tensor(0.1000)
    """
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return (clean + sigma * noise).clamp(0, 1)


def _image(name: str) -> Tensor:
    """An image file, or a photograph that comes with scikit-image, as (1, C, H, W) in [0, 1]."""
    from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load_photograph

    if not Path(name).is_file():
        if name in TEST_PHOTOGRAPHS + TRAINING_PHOTOGRAPHS:
            return _as_batch(load_photograph(name))
        known = ", ".join(TEST_PHOTOGRAPHS + TRAINING_PHOTOGRAPHS)
        raise FileNotFoundError(f"no file {name!r}, nor a photograph of that name; there are {known}")
    from PIL import Image

    try:
        with Image.open(name) as file:
            grey = file.mode in ("1", "L", "LA")
            sixteen = file.mode.startswith("I")
            kept = file if sixteen or file.mode == "F" else file.convert("L" if grey else "RGB")
            pixels = np.array(kept, dtype=np.float32)
            pixels /= 65535 if sixteen else 1 if file.mode == "F" else 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgumentValueError(f"{name} cannot be read as an image: {error}") from error
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ArgumentValueError(f"{name} must have values in [0, 1], got {pixels.min():g} to {pixels.max():g}")
    return _as_batch(pixels if pixels.ndim == 3 else pixels[..., None])


def _as_batch(pixels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).contiguous()


def _check_folder(path: Path) -> None:
    """Before the work, not after it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name} to")


# ------------------------------------------------------------------------------------------------------- fit


@dataclass(frozen=True)
class Step:
    """One step of :func:`fit`.

    Attributes:
        number: from 0.
        psnr: in dB, of values in [0, 1].
        h: strength that gave it.
    """

    number: int
    psnr: float
    h: float


def fit(
    image: Tensor,
    clean: Tensor,
    h0: float,
    steps: int,
    search_window: int = 11,
    patch: int = 5,
    border: Literal["circular", "reflect"] = "circular",
    distance: Literal["luma", "color"] = "luma",
    weights: Literal["exponential", "gaussian"] = "exponential",
) -> Iterator[Step]:
    """Learn the strength that brings ``image`` closest to ``clean``; yields every step, the start among them.

    Descends along the gradient of the mean squared error with respect to log h, whatever the unit of h: its sign
    tells the direction, and the step grows by 1.2 while that stays and halves when it turns (Rprop: Riedmiller,
    Braun, "A direct adaptive method for faster backpropagation learning", ICNN 1993).

    Args:
        image: noisy, (N, 3, H, W) or (N, 1, H, W).
        clean: the same without noise.
        h0: strength to start from, positive.
        steps: number of steps.
        search_window: of the non-local means, in pixels; odd.
        patch: of the non-local means, in pixels; odd.
        border: of the non-local means.
        distance: of the non-local means.
        weights: of the non-local means.

    Raises:
        ArgumentValueError: the error has no gradient at ``h0``, because every weight but a pixel's own is 0.

    Example:
        >>> clean = torch.full((1, 1, 24, 24), 0.5)
        >>> first, *_, last = fit(noisy(clean, 0.05, seed=0), clean, h0=0.05, steps=10)
        >>> last.psnr > first.psnr + 5, last.h > first.h
        (True, True)
    """
    from tlsc.adapters.nlm import nonlocal_means

    log_h = torch.tensor(math.log(h0), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Rprop([log_h], lr=0.1, step_sizes=(1e-5, 0.5))
    for number in range(steps + 1):
        h = log_h.exp()
        restored = nonlocal_means(image, h, search_window, patch, border, distance=distance, weights=weights)
        yield Step(number, psnr(restored.detach(), clean), float(h.detach()))
        if number == steps:
            return
        optimizer.zero_grad()
        torch.autograd.backward((restored - clean).square().mean())
        if not log_h.grad and number == 0:
            raise ArgumentValueError(
                f"h0 = {h0:g} is so far from the optimum that the error has no gradient; start from a larger one"
            )
        optimizer.step()


def _run_fit(args: argparse.Namespace) -> int:
    from tlsc.adapters.nlm import nonlocal_means

    if args.plot is not None:
        _check_folder(args.plot)
    clean = _image(args.clean)
    image = noisy(clean, args.sigma, args.seed)
    options: dict[str, Any] = {"distance": args.distance, "weights": args.weights}
    settings = (args.search_window, args.patch, args.border)
    print(f"{args.clean}, noise {args.sigma:g}: {psnr(image, clean):.2f} dB\n")
    print("  step  PSNR [dB]         h")
    steps = []
    for step in fit(image, clean, args.h0, args.steps, *settings, **options):
        steps.append(step)
        if step.number <= 10 or step.number % max(args.steps // 20, 1) == 0 or step.number == args.steps:
            print(f"{step.number:6d}  {step.psnr:9.3f}  {step.h:.6f}", flush=True)
    first, last = steps[0], steps[-1]
    print(f"\nfrom h = {first.h:.4f} to h = {last.h:.4f}: {last.psnr - first.psnr:+.2f} dB")
    if args.plot is not None:
        strengths = np.geomspace(min(s.h for s in steps) / 2, max(s.h for s in steps) * 2, 25)
        curve = [(float(h), psnr(nonlocal_means(image, float(h), *settings, **options), clean)) for h in strengths]
        best = max(curve, key=lambda point: point[1])
        print(f"best of {len(curve)} other h: {best[1]:.2f} dB at h = {best[0]:.4f}")
        _draw_fit(args, curve, steps)
        print(f"wrote {args.plot}")
    return 0


def _draw_fit(args: argparse.Namespace, curve: Sequence[tuple[float, float]], steps: Sequence[Step]) -> None:
    from tlsc.eval.files import replacing
    from tlsc.eval.show.pictures import new_figure, save

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


# ---------------------------------------------------------------------------------------------------- NLMNet

NOISE_RANGE = (0.01, 0.2)
CONSTANT_NOISE = (0.025, 0.05, 0.1)
FIELD_SCALE = 80.0  # pixels: the noise level varies within every photograph, slowly for the network's window


@dataclass(frozen=True)
class Comparison:
    """An image denoised by NLMNet as trained and converted; images (1, 3, H, W).

    Attributes:
        image: what was denoised.
        original: with one strength.
        converted: with a map of strengths.
        one: that one strength.
        strengths: that map, (1, 1, H, W).
    """

    image: Tensor
    original: Tensor
    converted: Tensor
    one: float
    strengths: Tensor


@torch.no_grad()
def compare(image: Tensor, base_size: int | None = None) -> Comparison:
    """Denoise an image with NLMNet, as trained and converted.

    Args:
        image: (1, 3, H, W), or (1, 1, H, W), which is repeated to RGB.
        base_size: window in pixels; None for ``NLMNet.base_size``.

    Example:
        >>> result = compare(torch.rand(1, 3, 80, 100))
        >>> result.strengths.shape
        torch.Size([1, 1, 80, 100])
    """
    import tlsc
    from tlsc.adapters.nlm_net import NLMNet

    image = image.expand(-1, 3, -1, -1)
    net = NLMNet.pretrained()
    original, one = net(image), float(net.strength(image))
    with tlsc.converted(net, base_size or NLMNet.base_size):
        strengths = net.strength(image).expand(-1, 1, *image.shape[2:])
        return Comparison(image, original, net(image), one, strengths)


def _varying_noise(clean: Tensor, low: float, high: float, seed: int) -> Tensor:
    """Standard deviations for every pixel, (H, W): a smooth random field from ``low`` to ``high``."""
    from tlsc.eval.data.degradations import smooth_field

    field = smooth_field(clean.shape[2], clean.shape[3], np.random.default_rng(seed), FIELD_SCALE)
    return low + (high - low) * torch.from_numpy(field)[..., 0]


def _run_demo(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from tlsc.adapters.nlm_net import NLMNet
    from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS

    base_size = args.base_size or NLMNet.base_size
    print(f"NLMNet on whole photographs, base_size {base_size}, seed {args.seed}; PSNR in dB of values in [0, 1]\n")
    rows = [row for name in TEST_PHOTOGRAPHS for row in _rows(name, base_size, args.seed)]
    headers = ["photograph", "noise", "noisy", "original", "converted", "gain", "h", "map of h"]
    print(tabulate(rows, headers=headers, floatfmt=("", "", *[".2f"] * 3, "+.2f", ".3f", "")))
    return 0


def _rows(name: str, base_size: int, seed: int) -> Iterator[list[Any]]:
    clean = _image(name)
    low, high = NOISE_RANGE
    cases: list[tuple[str, float | Tensor]] = [
        (f"{low:g} to {high:g}", _varying_noise(clean, low, high, seed)),
        *((f"{sigma:g}", sigma) for sigma in CONSTANT_NOISE),
    ]
    for noise, sigma in cases:
        found = compare(noisy(clean, sigma, seed), base_size)
        before, after = psnr(found.original, clean), psnr(found.converted, clean)
        spread = f"{float(found.strengths.min()):.3f} to {float(found.strengths.max()):.3f}"
        yield [name, noise, psnr(found.image, clean), before, after, after - before, found.one, spread]


def _run_map(args: argparse.Namespace) -> int:
    _check_folder(args.out)
    given = _image(args.image)
    given = given.expand(-1, 3, -1, -1)
    sigma: Tensor | None = None
    if args.sigma is not None:
        if len(args.sigma) > 2:
            raise ArgumentValueError(f"--sigma takes one number or two, got {len(args.sigma)}")
        low, high = args.sigma[0], args.sigma[-1]
        constant = torch.full(given.shape[2:], low)
        sigma = constant if len(args.sigma) == 1 else _varying_noise(given, low, high, args.seed)
    found = compare(given if sigma is None else noisy(given, sigma, args.seed), args.base_size)
    low, high = (float(x) for x in found.strengths.aminmax())
    print(f"h: {found.one:.4f} as trained; {low:.4f} to {high:.4f} converted")
    if sigma is not None:
        pictures = (("noisy", found.image), ("original", found.original), ("converted", found.converted))
        print("PSNR [dB]: " + ", ".join(f"{name} {psnr(picture, given):.2f}" for name, picture in pictures))
    _draw_map(args.out, Path(args.image).name, found, given, sigma)
    print(f"wrote {args.out}")
    return 0


def _draw_map(path: Path, name: str, found: Comparison, clean: Tensor, sigma: Tensor | None) -> None:
    from tlsc.eval.files import replacing
    from tlsc.eval.show.pictures import new_figure, save

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
