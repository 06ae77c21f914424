"""``tlsc list``: the networks that come along."""

from __future__ import annotations

import argparse

from tlsc.eval.commands.arguments import Commands, add_telling_arguments
from tlsc.eval.telling import hand_over
from tlsc.eval.telling import say as tell

__all__ = ["COME_ALONG", "add_command", "run", "say"]

COME_ALONG = {
    "plain": "U-Net without global layers",
    "se": "U-Net with squeeze-excitation on every encoder level",
    "hin": "U-Net with half instance norm on the deepest level, borders replicated",
    "hin-all": "U-Net with half instance norm on every encoder level",
    "ffdnet": "FFDNet, which takes the noise level beside the image and has no global layer",
}
"""Names and descriptions, as in ``tlsc.adapters.DEMO_NETWORKS`` (tested), which would import PyTorch."""


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "list", help="list the included networks", description="Print the names of the included networks."
    )
    add_telling_arguments(parser)
    parser.set_defaults(run=run)


def say() -> None:
    """Print them, one a line."""
    for name, description in COME_ALONG.items():
        tell(f"{name}: {description}")


def run(args: argparse.Namespace) -> int:
    """The command."""
    say()
    hand_over(COME_ALONG)
    return 0
