"""``tlsc export``: a checkpoint becomes an ONNX file for images of any size."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_network,
    add_out,
    add_plan,
    add_telling_arguments,
    add_window_arguments,
    network_of,
)
from tlsc.eval.telling import hand_over, say

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="export a network, converted or not, to ONNX, for images of any size",
        description="Export to ONNX with dynamic batch, height and width. The network is converted unless "
        "--base-size none is given. ONNX Runtime is compared with PyTorch at several sizes before "
        "the file is written.",
    )
    group = add_network(parser)
    group.add_argument("names", metavar="OUT.onnx", nargs="*", help="the same as -o")
    parser.collects = "names"
    add_plan(add_window_arguments(parser))
    group = add_out(parser, None, "file to write (default: the network's name with .onnx)")
    group.add_argument("--opset", type=int, help="version of ONNX's standard operators (default: the exporter's)")
    group.add_argument(
        "--no-cumsum",
        action="store_true",
        help="refuse a network that uses a CumSum itself; converting never adds one",
    )
    add_telling_arguments(group)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import tlsc
    from tlsc.eval.files import refuse_existing

    written = [*map(Path, args.names), *([] if args.out is None else [args.out])]
    if len(written) > 1:
        raise ArgumentValueError(f"one file is written: {written[0]} or {written[1]}?")
    # The part behind module: or path.py: is the network's name; a checkpoint's is its file's.
    out = written[0] if written else Path(Path(args.network.rpartition(":")[2]).stem + ".onnx")
    refuse_existing([out], args.overwrite, [Path(args.network)])
    network = network_of(args, runs=False)
    network.refuse_onnx("export")
    _, said = network.converted(args.base_size, args.stride, plan=args.plan)
    made = tlsc.export(network.model, out, opset=args.opset, cumsum=not args.no_cumsum)
    say(f"{args.network}: {said}\n{made}")
    errors = {"×".join(map(str, size)): error for size, error in made.errors.items()}
    hand_over({"network": args.network, "done": said, **asdict(made), "errors": errors})
    return 0
