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
    "Restore the images of a benchmark folder with a network as trained (whole and in tiles) and converted, and "
    "say which is best, by how much and how sure that is. Writes results.csv, results.json, timings.csv, plots, "
    "comparison.png and report.html. Several processes: torchrun --nproc-per-node N -m tlsc.eval eval ..."
)
_SWEEP = (
    "PSNR and SSIM against the size of the patches that test images are cut into, whole images last, of a network "
    "as trained and converted with several windows. The same files as eval."
)


def add_command(commands: Commands) -> None:
    """Add the two commands."""
    parser = commands.add_parser(
        "eval", help="compare ways to run a network on a benchmark folder", description=_EVAL
    )
    group = _add_first(parser, "auto: 1.5 training crops")
    group.add_argument(
        "--tile",
        type=numbers,
        metavar="N[,N]",
        help="tiles for the network as trained (default: the training crop)",
    )
    group.add_argument(
        "--overlap", type=numbers, metavar="N[,N]", help="of these tiles, in pixels (default: 0 and a quarter)"
    )
    group.add_argument("--tile-converted", action="store_true", help="the same tiles for converted networks, too")
    _add_last(parser, "tlsc-eval")
    parser.set_defaults(run=_run, command="eval")
    parser = commands.add_parser(
        "sweep", help="PSNR against test patch size, original and converted", description=_SWEEP
    )
    group = _add_first(parser, "auto: 1, 1.5 and 2 training crops")
    group.add_argument(
        "--patch-size",
        type=numbers,
        metavar="N[,N]",
        help="whole images are added (default: 1/2, 1, 1.5, 2 and 4 training crops)",
    )
    group.add_argument("--overlap", type=numbers, default=[0], metavar="N[,N]", help="blended; 0 by default")
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
        help=f"windows to convert with, each auto, none, N or HEIGHTxWIDTH ({auto}; none: the network as trained "
        "only)",
    )
    group.add_argument("--stride", type=numbers, default=[1], metavar="N[,N]", help="1 is exact (default)")
    add_plan(group, "compared, too")
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="each converted network also with its statistics calibrated, on the first four inputs (no targets); "
        "needs the training crop",
    )
    group.add_argument(
        "--source",
        type=sources,
        default=("window",),
        metavar="NAME[,NAME]",
        help="from where converted networks have their statistics: window (default), map, tile, table, centres, "
        "thumbnail, crops, or all",
    )
    group.add_argument(
        "--no-whole", action="store_true", help="never a whole image at once: for those larger than memory"
    )
    group.add_argument(
        "--protocol",
        default="rgb-uint8",
        help="rgb-uint8, rgb-float or y-uint8 (%(default)s); printed with every figure",
    )
    group.add_argument("--crop-border", type=int, default=0, metavar="N", help="pixels left out at each edge")
    group.add_argument("--lpips", action="store_true", help="LPIPS, too; needs pyiqa")
    return group


def _add_last(parser: argparse.ArgumentParser, out: str) -> None:
    """Where it runs, and what is written and told."""
    group = add_running_arguments(parser, threads=1)
    group.add_argument(
        "--backend", choices=["gloo", "nccl"], help="under torchrun (default: nccl if each has a GPU)"
    )
    group = add_out(parser, Path(out), "folder to write to (%(default)s)")
    group.add_argument(
        "--no-report", action="store_true", help="figures only: no plots, comparisons and report.html"
    )
    group.add_argument(
        "--log",
        type=trackers,
        default=(),
        metavar="NAME[,NAME]",
        help="means and plots also to tensorboard (into OUT/tensorboard) or wandb (Weights & Biases, where its "
        "environment says)",
    )
    group.add_argument("--resume", action="store_true", help="go on with what a killed run left in OUT")
    add_telling_arguments(group)


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.commands.evaluation import run

    return run(args)
