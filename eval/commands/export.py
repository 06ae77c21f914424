"""``tlsc export``: a checkpoint becomes an ONNX file for images of any size."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.eval.commands.arguments import NAMES, Commands, add_overwrite_argument, size

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a network, converted or not, to ONNX for images of any size",
        description="Export to ONNX with dynamic batch, height and width, and compare ONNX Runtime with PyTorch at "
        "several sizes before the file is put in place.",
    )
    parser.add_argument("network", help=NAMES)
    parser.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    parser.add_argument(
        "--base-size", type=size, help="convert with this window at the input, in pixels: N or HEIGHTxWIDTH"
    )
    parser.add_argument("--stride", type=int, default=1, help="grid of the strided path; 1 is exact (%(default)s)")
    parser.add_argument("--opset", type=int, help="of ONNX's standard operators (default: the exporter's)")
    parser.add_argument(
        "--no-cumsum",
        action="store_true",
        help="refuse a graph that holds a CumSum; what converting adds never holds one",
    )
    add_overwrite_argument(parser)
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    import tlsc
    from tlsc.eval.files import refuse_existing
    from tlsc.eval.networks import find_network

    refuse_existing([args.out], args.overwrite, [Path(args.network)])
    model = find_network(args.network)
    if args.base_size is not None:
        base_size = args.base_size
        padding = getattr(getattr(model, "tlsc", None), "padding", None)
        if padding is not None and not padding.inside:
            base_size = padding.padded(*((base_size, base_size) if isinstance(base_size, int) else base_size))
        tlsc.convert(model, base_size, stride=args.stride)
    made = tlsc.export(model, args.out, opset=args.opset, cumsum=not args.no_cumsum)
    print(made)
    return 0
