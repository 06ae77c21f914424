"""``tlsc list``: the networks that come along."""

from __future__ import annotations

import argparse

from tlsc.eval.commands.arguments import Commands

__all__ = ["COME_ALONG", "add_command", "say"]

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
        "list", help="the networks that come along", description="Print the names of the networks that come along."
    )
    parser.set_defaults(run=_run)


def say() -> None:
    """Print them, one a line."""
    for name, description in COME_ALONG.items():
        print(f"{name}: {description}")


def _run(args: argparse.Namespace) -> int:
    say()
    return 0
