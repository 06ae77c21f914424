"""``tlsc nlm``: learn the strength of non-local means, and show a network that reads it off the image."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.eval.commands.arguments import (
    Commands,
    add_out,
    add_overwrite,
    add_telling_arguments,
    count,
    odd,
    positive,
    seed,
    window,
)

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Adds ``nlm`` with its own commands to the command line."""
    parser = commands.add_parser("nlm", help="non-local means: learn its strength, or estimate it from the image")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_fit(actions)
    _add_map(actions)
    _add_demo(actions)


def _add_fit(actions: Commands) -> None:
    parser = actions.add_parser(
        "fit",
        help="learn the strength h by gradient descent",
        description="Add white noise to a clean image and learn the strength h of non-local means by gradient "
        "descent on the mean squared error. Prints step, PSNR in dB (of values in [0, 1]) and h.",
    )
    parser.add_argument("--clean", required=True, help=f"an image file, or a photograph by name: {_names()}")
    parser.add_argument("--sigma", type=positive, default=0.05, help="of the noise (%(default)s)")
    parser.add_argument("--h0", type=positive, default=0.05, help="initial strength (%(default)s)")
    parser.add_argument("--steps", type=count, default=100, help="steps of gradient descent (%(default)s)")
    parser.add_argument("--search-window", type=odd, default=11, help="in pixels, odd (%(default)s)")
    parser.add_argument("--patch", type=odd, default=5, help="in pixels, odd (%(default)s)")
    parser.add_argument("--border", choices=("circular", "reflect"), default="circular", help="(%(default)s)")
    parser.add_argument(
        "--distance", choices=("luma", "color"), default="luma", help="distance between patches (%(default)s)"
    )
    parser.add_argument(
        "--weights", choices=("exponential", "gaussian"), default="exponential", help="(%(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (%(default)s)")
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--plot", type=Path, metavar="PNG", help="draw PSNR against h, with the steps of the descent"
    )
    add_overwrite(group)
    add_telling_arguments(group)
    parser.set_defaults(run=_run_fit)


def _add_map(actions: Commands) -> None:
    parser = actions.add_parser(
        "map",
        help="denoise an image with converted NLMNet and draw its map of strengths",
        description="Denoise an image with NLMNet as trained (one strength h) and converted (a map of h), and "
        "draw both. --sigma adds noise first and prints PSNR in dB (of values in [0, 1]).",
    )
    parser.add_argument("image", help=f"an image file, or a photograph by name: {_names()}")
    parser.add_argument(
        "--sigma",
        type=positive,
        nargs="+",
        metavar="SIGMA",
        help="standard deviation of noise to add; with two values, it varies smoothly from the first to the second",
    )
    _add_window(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (%(default)s)")
    group = add_out(parser, Path("h_map.png"), "PNG to draw (%(default)s)")
    add_telling_arguments(group)
    parser.set_defaults(run=_run_map)


def _add_demo(actions: Commands) -> None:
    parser = actions.add_parser(
        "demo",
        help="compare NLMNet as trained and converted, on photographs it was not trained on",
        description="Denoise whole photographs with NLMNet as trained (one strength h) and converted (a map "
        "of h). The noise varies over the photograph, or is constant. Prints PSNR in dB (of "
        "values in [0, 1]).",
    )
    _add_window(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (%(default)s)")
    add_telling_arguments(parser)
    parser.set_defaults(run=_run_demo)


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-size",
        type=window,
        default="auto",
        metavar="WINDOW",
        help="in pixels: auto (the training crop), N or HEIGHTxWIDTH (%(default)s)",
    )


def _names() -> str:
    return "coffee, chelsea, astronaut, …"


def _run_fit(args: argparse.Namespace) -> int:
    from tlsc.eval.show.nlm import run_fit

    return run_fit(args)


def _run_map(args: argparse.Namespace) -> int:
    from tlsc.eval.show.nlm import run_map

    return run_map(args)


def _run_demo(args: argparse.Namespace) -> int:
    from tlsc.eval.show.nlm import run_demo

    return run_demo(args)
