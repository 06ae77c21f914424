"""Arguments that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, TypeAlias

from tlsc.errors import ArgumentValueError

if TYPE_CHECKING:
    from tlsc.eval.data.datasets import Dataset
    from tlsc.eval.networks import Network

__all__ = [
    "Commands",
    "add_data_arguments",
    "add_network_arguments",
    "add_overwrite_argument",
    "count",
    "data_of",
    "network_of",
    "numbers",
    "odd",
    "positive",
    "size",
    "sizes",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command adds itself to."""

NAMES = "a demo network by name ('tlsc list' prints them), a checkpoint's file, or module:factory"
"""How a network can be named, everywhere."""


# ------------------------------------------------------------------------------------------------ single values


def size(text: str) -> int | tuple[int, int]:
    """``384`` or ``384x512``."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be N or HEIGHTxWIDTH, in pixels, got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def sizes(text: str) -> list[int | tuple[int, int]]:
    """``384,512x640``."""
    return [size(part.strip()) for part in text.split(",")]


def numbers(text: str) -> list[int]:
    """``64,128``."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers such as 64,128, got {text!r}")
    return [int(part) for part in parts]


def positive(text: str) -> float:
    """A positive, finite number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def count(text: str) -> int:
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return value


def odd(text: str) -> int:
    """A positive odd number."""
    value = count(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd, so that it has a centre, got {text}")
    return value


# ------------------------------------------------------------------------------------------- networks and images


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a network and says how to run it."""
    parser.add_argument("network", help=NAMES)
    parser.add_argument(
        "--crop", type=int, metavar="N", help="side of the network's training crops, if it is not known"
    )
    parser.add_argument("--output", metavar="KEY", help="which of several outputs is the result: an index or a key")
    parser.add_argument("--pad-to", type=int, metavar="N", help="sizes the network takes are multiples of this")
    parser.add_argument(
        "--scale", type=int, metavar="N", help="how many times the network enlarges (1 if not known)"
    )
    parser.add_argument(
        "--sigma",
        type=float,
        metavar="S",
        help="noise level, of 255, for a network that takes one beside the image (default: that of --degrade "
        "noise:S)",
    )
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.add_argument("--dtype", default="float32", help="float32, float16, bfloat16 or float64 (%(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="per process, on the CPU. The last digits of figures depend on it: keep it fixed (%(default)s)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What names the images."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FOLDER",
        help="a benchmark folder (input/target, lq/gt, blur/sharp, hazy/GT, rain/norain, also nested), or two "
        "folders: inputs and targets; or one of clean images with --degrade",
    )
    parser.add_argument(
        "--degrade",
        metavar="SPEC",
        help="make the inputs: noise:25, noise:0-50 (varying), blur:2, blur:11@30 (motion), jpeg:40, bicubic:4, "
        "haze, motion-blur",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --degrade; every image has its own stream (%(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images by name")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out and count pairs that cannot be evaluated; images on which the network fails still make the "
        "exit status 1",
    )


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Whether what exists may be replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace what exists (default: refuse)")


def network_of(args: argparse.Namespace) -> Network:
    """The network that the arguments of :func:`add_network_arguments` name."""
    from tlsc.eval.networks import load_network

    for name in ("crop", "pad_to", "scale"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ArgumentValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    return load_network(
        args.network,
        device=args.device,
        dtype=args.dtype,
        output=args.output,
        pad_to=args.pad_to,
        crop=args.crop,
        scale=args.scale,
        sigma=_sigma(args),
    )


def _sigma(args: argparse.Namespace) -> float | None:
    """The noise level of 255 that is told to a network which asks for one: that given, or that which is added."""
    if args.sigma is not None:
        if not 0 <= args.sigma < math.inf:
            raise ArgumentValueError(f"--sigma must be finite and not negative, got {args.sigma}")
        return float(args.sigma)
    kind, _, amount = (args.degrade or "").partition(":")
    try:
        return float(amount) if kind == "noise" else None
    except ValueError:
        return None  # it varies over the image, or is refused where it is read


def data_of(args: argparse.Namespace, network: Network) -> Dataset:
    """The images that the arguments of :func:`add_data_arguments` name, checked; bad ones raise or are left out."""
    from tqdm import tqdm

    from tlsc.eval.data.datasets import find_pairs

    found = find_pairs(
        args.data, args.degrade, seed=args.seed, scale=network.scale, channels=network.channels, limit=args.limit
    )
    checked = found.checked(lambda pairs: tqdm(pairs, desc="checking", unit="pair", delay=1))
    checked.refuse_bad(args.skip_bad)
    for bad in checked.bad:
        print(f"tlsc: skipped: {bad}", file=sys.stderr)
    return checked
