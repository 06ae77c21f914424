"""``tlsc demo``: what converting buys on real photographs, with networks that come along."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.eval.commands.arguments import Commands, add_out, add_telling_arguments, seed

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="show the effect of converting on photographs, with included networks",
        description="Restore photographs that scikit-image includes, in patches of growing size, with four "
        "small networks, as trained and converted. Prints a table and writes results.csv, "
        "results.json, psnr.png and comparison.png. Takes about three minutes on two cores.",
    )
    parser.add_argument("--seed", type=seed, default=0, help="random seed of the degradation (%(default)s)")
    group = add_out(parser, Path("tlsc-demo"), "folder to write to (%(default)s)")
    add_telling_arguments(group)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.show.demo import run

    return run(args.out, args.seed, args.overwrite)
