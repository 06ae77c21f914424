"""Arguments that several commands share, and what they mean: one way for all verbs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.parser import Parser
from tlsc.eval.telling import note, progress

if TYPE_CHECKING:
    from tlsc.eval.data.datasets import Dataset
    from tlsc.eval.networks import Network

__all__ = [
    "Commands",
    "add_calling_arguments",
    "add_data_arguments",
    "add_network",
    "add_out",
    "add_overwrite",
    "add_plan",
    "add_running_arguments",
    "add_telling_arguments",
    "add_window_arguments",
    "count",
    "data_of",
    "network_of",
    "numbers",
    "odd",
    "positive",
    "seed",
    "size",
    "sizes",
    "sources",
    "window",
    "windows",
]

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What a command adds itself to."""

Asked: TypeAlias = "int | tuple[int, int] | Literal['auto', 'none']"
"""A window that is asked for."""

NAMES = (
    "an included network by name ('tlsc list' prints them), a checkpoint (.pth, .pt, .ckpt, "
    ".safetensors), Real-CUGAN's .param, module:factory, path.py:factory, or an ONNX file"
)
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


def window(text: str) -> Asked:
    """``auto``, ``none``, ``384`` or ``384x512``."""
    word = text.strip().lower()
    if word == "auto":
        return "auto"
    if word == "none":
        return "none"
    try:
        return size(word)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"must be auto, none, N or HEIGHTxWIDTH, in pixels, got {text!r}"
        ) from error


def windows(text: str) -> list[Asked]:
    """``auto,384,512x640``."""
    return [window(part) for part in text.split(",")]


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


def seed(text: str) -> int:
    """What random numbers begin with: zero or a positive whole number."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def odd(text: str) -> int:
    """A positive odd number."""
    value = count(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd, so that it has a centre, got {text}")
    return value


# ------------------------------------------------------------------------------------------------------ groups


def add_network(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What names a network, and what is known of it; returns the group."""
    group = parser.add_argument_group("network")
    group.add_argument("network", metavar="NETWORK", help=NAMES)
    group.add_argument(
        "--crop", type=count, metavar="N", help="side of the training crops in pixels, if tlsc does not know it"
    )
    return group


def add_calling_arguments(group: argparse._ArgumentGroup) -> None:
    """How a network is called."""
    group.add_argument("--output", metavar="KEY", help="which of several outputs is the result: an index or a key")
    group.add_argument(
        "--pad-to", type=count, metavar="N", help="pad images to multiples of N pixels, if the network requires it"
    )
    group.add_argument(
        "--scale", type=count, metavar="N", help="how many times the network enlarges (default: 1 if not known)"
    )
    group.add_argument(
        "--sigma",
        type=float,
        metavar="S",
        help="noise level (0 to 255), for a network that takes one as an input (default: that of "
        "--degrade noise:S, if given)",
    )


def sources(text: str) -> tuple[str, ...]:
    """Names of sources, see :func:`tlsc.convert`."""
    known = ("window", "map", "tile", "table", "centres", "thumbnail", "crops")
    return known if text == "all" else _among(known, text)


def trackers(text: str) -> tuple[str, ...]:
    """Names of trackers, see :mod:`tlsc.eval.show.trackers`."""
    return _among(("tensorboard", "wandb"), text)


def _among(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


def add_window_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How a network is converted: one window and one stride; returns the group."""
    group = parser.add_argument_group("conversion")
    group.add_argument(
        "--base-size",
        type=window,
        default="auto",
        metavar="WINDOW",
        help="window at the network's input, in pixels: auto (1.5 training crops if known and if there "
        "is something to convert), none (as trained), N or HEIGHTxWIDTH (%(default)s)",
    )
    group.add_argument(
        "--stride",
        type=int,
        default=1,
        metavar="N",
        help="step of the grid on which pools are evaluated; 1 is exact, 8 is faster (%(default)s)",
    )
    return group


def add_plan(group: argparse._ArgumentGroup, text: str = "instead of a window") -> None:
    """A plan from a file; ``text`` says what for."""
    group.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help=f"{text}: the sites, windows and corrections of a plan (tlsc tune, Plan.save)",
    )


def add_running_arguments(parser: argparse.ArgumentParser, threads: int | None = None) -> argparse._ArgumentGroup:
    """Where and in which numbers a network runs; returns the group.

    Args:
        parser: of a command.
        threads: how many by default; None for a command that has no such argument.
    """
    group = parser.add_argument_group("running")
    group.add_argument(
        "--device",
        default="auto",
        help="auto (an NVIDIA GPU if there is one), cpu, cuda, cuda:1 … (%(default)s)",
    )
    group.add_argument(
        "--dtype",
        default="float32",
        help="type of weights and images: float32, float16, bfloat16 or float64 (%(default)s)",
    )
    if threads is not None:
        group.add_argument(
            "--threads",
            type=int,
            default=threads,
            metavar="N",
            help="CPU threads per process; the last digits of figures depend on it, so keep it fixed (%(default)s)",
        )
    return group


def add_out(parser: argparse.ArgumentParser, default: Path | None, text: str) -> argparse._ArgumentGroup:
    """Where results are written to, and whether over what exists; returns the group, for the rest of it."""
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--out", type=Path, default=default, metavar="OUT", help=text)
    add_overwrite(group)
    return group


def add_overwrite(group: argparse._ArgumentGroup) -> None:
    """Whether what exists may be replaced."""
    group.add_argument("--overwrite", action="store_true", help="replace existing files (default: refuse)")


def add_telling_arguments(group: argparse._ActionsContainer, json: bool = True) -> None:
    """How much is told, and to whom."""
    if json:
        group.add_argument("--json", action="store_true", help="print the result as one JSON document")
    group.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print details, and for an error its origin")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What names the images."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "data",
        nargs="+",
        metavar="INPUT",
        help="a benchmark folder with inputs and targets (input/target, lq/gt, blur/sharp, hazy/GT, "
        "rain/norain, also nested); or two folders, inputs and targets; or one folder of clean "
        "images with --degrade",
    )
    group.add_argument(
        "--degrade",
        metavar="SPEC",
        help="make the inputs from clean images: noise:25, noise:0-50 (varying), blur:2, blur:11@30 "
        "(motion), jpeg:40, bicubic:4, haze, motion-blur",
    )
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="random seed of --degrade; every image has its own stream (%(default)s)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="use only the first N images by name")
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="skip and count pairs that cannot be evaluated; if the network fails on an image, the "
        "exit status is still 1",
    )


# ----------------------------------------------------------------------------------------------- what they name


def network_of(args: argparse.Namespace, runs: bool = True) -> Network:
    """The network that the arguments of the groups above name.

    Args:
        args: as parsed; what a command has no argument for has its default.
        runs: whether it will be given images.
    """
    from tlsc.eval.networks import load_network

    given = vars(args)
    return load_network(
        args.network,
        device=given.get("device", "cpu"),
        dtype=given.get("dtype", "float32"),
        output=given.get("output"),
        pad_to=given.get("pad_to"),
        crop=given.get("crop"),
        scale=given.get("scale"),
        sigma=_sigma(given.get("sigma"), given.get("degrade")),
        runs=runs,
    )


def _sigma(given: float | None, degrade: str | None) -> float | None:
    """The noise level of 255 that is told to a network which asks for one: that given, or that which is added."""
    if given is not None:
        if not 0 <= given < math.inf:
            raise ArgumentValueError(f"--sigma must be finite and not negative, got {given}")
        return float(given)
    kind, _, amount = (degrade or "").partition(":")
    try:
        return float(amount) if kind == "noise" else None
    except ValueError:
        return None  # it varies over the image, or is refused where it is read


def data_of(args: argparse.Namespace, network: Network) -> Dataset:
    """The images that the arguments of :func:`add_data_arguments` name, checked; bad ones raise or are left out."""
    from tlsc.eval.data.datasets import find_pairs

    found = find_pairs(
        args.data, args.degrade, seed=args.seed, scale=network.scale, channels=network.channels, limit=args.limit
    )
    checked = found.checked(lambda pairs: progress(pairs, desc="checking", unit="pair", delay=1))
    checked.refuse_bad(args.skip_bad)
    for bad in checked.bad:
        note(f"skipped: {bad}")
    return checked
