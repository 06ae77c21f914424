"""``tlsc app``: a page in the browser that restores a photograph as trained and converted."""

from __future__ import annotations

import argparse

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_calling_arguments,
    add_network,
    add_running_arguments,
    add_telling_arguments,
    add_window_arguments,
    count,
    network_of,
    positive,
)

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "app",
        help="open a page in the browser: a photograph as trained and converted, side by side",
        description="Serve a web page, to this machine only, that restores a photograph as trained and "
        "converted. It has a slider for the window and predicts the gain. Nothing leaves the "
        "machine. It needs pip install 'tlsc[app]'.",
    )
    add_calling_arguments(add_network(parser))
    add_window_arguments(parser)
    group = parser.add_argument_group("page")
    group.add_argument(
        "--port", type=count, metavar="N", help="port of the page (default: the first free one from 7860 on)"
    )
    group.add_argument(
        "--largest",
        type=positive,
        default=2.0,
        metavar="MEGAPIXELS",
        help="refuse larger photographs (%(default)s)",
    )
    add_telling_arguments(add_running_arguments(parser), json=False)
    parser.set_defaults(run=_run, json=False)


def _run(args: argparse.Namespace) -> int:
    if args.base_size == "none":
        raise ArgumentValueError("app compares a network with itself converted: leave --base-size none out")
    from tlsc.eval.show.app import Page, drawn_by, serve

    drawn_by()
    network = network_of(args)
    network.refuse_onnx("compare it with itself converted")
    start = None if args.base_size == "auto" else args.base_size
    if isinstance(start, tuple):
        raise ArgumentValueError("the page's windows are squares: give --base-size one number")
    serve(Page(network, start, int(args.largest * 1e6), args.stride), args.port)
    return 0
