"""``tlsc eval`` and ``tlsc sweep``: a network on a benchmark folder, as trained, in tiles, and converted."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.eval.commands.arguments import (
    Commands,
    add_calling_arguments,
    add_data_arguments,
    add_network,
    add_out,
    add_plan,
    add_running_arguments,
    add_telling_arguments,
    numbers,
    sources,
    trackers,
    windows,
)

__all__ = ["add_command"]

_EVAL = (
    "Find out how a network works best on your images. Restores the images of a benchmark "
    "folder with the network as trained (whole and in tiles) and converted. Names the best of "
    "these, by how much, and how certain that is. Writes results.csv, results.json, "
    "timings.csv, plots, comparison.png and report.html. Several processes: torchrun "
    "--nproc-per-node N -m tlsc.eval eval ..."
)
_SWEEP = (
    "Show how quality depends on image size. Cuts test images into patches of several sizes, "
    "and restores the patches and whole images with the network as trained and converted with "
    "several windows. Prints and plots PSNR and SSIM. Writes the same files as eval."
)


def add_command(commands: Commands) -> None:
    """Add the two commands."""
    parser = commands.add_parser(
        "eval",
        help="compare a network as trained, in tiles and converted, on a benchmark folder",
        description=_EVAL,
    )
    group = _add_first(parser, "auto: 1.5 training crops")
    group.add_argument(
        "--tile",
        type=numbers,
        metavar="N[,N]",
        help="tile sizes for the network as trained (default: the training crop)",
    )
    group.add_argument(
        "--overlap",
        type=numbers,
        metavar="N[,N]",
        help="overlaps of these tiles, in pixels (default: 0 and a quarter)",
    )
    group.add_argument("--tile-converted", action="store_true", help="also run converted networks in these tiles")
    _add_last(parser, "tlsc-eval")
    parser.set_defaults(run=_run, command="eval")
    parser = commands.add_parser(
        "sweep", help="plot PSNR against the size of test patches, as trained and converted", description=_SWEEP
    )
    group = _add_first(parser, "auto: 1, 1.5 and 2 training crops")
    group.add_argument(
        "--patch-size",
        type=numbers,
        metavar="N[,N]",
        help="patch sizes; whole images are always added (default: 1/2, 1, 1.5, 2 and 4 training crops)",
    )
    group.add_argument(
        "--overlap",
        type=numbers,
        default=[0],
        metavar="N[,N]",
        help="overlaps of the patches, in pixels; overlaps are blended (default: 0)",
    )
    _add_last(parser, "tlsc-sweep")
    parser.set_defaults(run=_run, command="sweep")


def _add_first(parser: argparse.ArgumentParser, auto: str) -> argparse._ArgumentGroup:
    """Network, images and windows; returns the group for what is compared."""
    add_calling_arguments(add_network(parser))
    add_data_arguments(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--base-size",
        type=windows,
        default=["auto"],
        metavar="WINDOW[,WINDOW]",
        help=f"windows to convert with: each auto, none, N or HEIGHTxWIDTH ({auto}; none alone: only the "
        "network as trained)",
    )
    group.add_argument(
        "--stride",
        type=numbers,
        default=[1],
        metavar="N[,N]",
        help="step of the grid on which pools are evaluated; 1 is exact (default)",
    )
    add_plan(group, "also compare")
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="also compare each converted network with calibrated statistics, fitted on the first four "
        "inputs (without targets); needs the training crop",
    )
    group.add_argument(
        "--source",
        type=sources,
        default=("window",),
        metavar="NAME[,NAME]",
        help="where converted networks take statistics from: window (default), map, tile, table, "
        "centres, thumbnail, crops, or all",
    )
    group.add_argument(
        "--no-whole", action="store_true", help="never run a whole image at once; for images larger than memory"
    )
    group.add_argument(
        "--protocol",
        default="rgb-uint8",
        help="how PSNR is measured: rgb-uint8, rgb-float or y-uint8 (%(default)s)",
    )
    group.add_argument("--crop-border", type=int, default=0, metavar="N", help="ignore N pixels at each edge")
    group.add_argument("--lpips", action="store_true", help="also measure LPIPS (needs pyiqa)")
    return group


def _add_last(parser: argparse.ArgumentParser, out: str) -> None:
    """Where it runs, and what is written and told."""
    group = add_running_arguments(parser, threads=1)
    group.add_argument(
        "--backend",
        choices=["gloo", "nccl"],
        help="communication under torchrun (default: nccl if each process has a GPU)",
    )
    group = add_out(parser, Path(out), "folder to write to (%(default)s)")
    group.add_argument(
        "--no-report", action="store_true", help="write figures only: no plots, no comparison, no report.html"
    )
    group.add_argument(
        "--log",
        type=trackers,
        default=(),
        metavar="NAME[,NAME]",
        help="also send means and plots to tensorboard (OUT/tensorboard) or wandb (Weights & Biases, "
        "configured by its environment variables)",
    )
    group.add_argument(
        "--resume", action="store_true", help="continue a run that was killed, from what it left in OUT"
    )
    add_telling_arguments(group)


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.commands.evaluation import run

    return run(args)
