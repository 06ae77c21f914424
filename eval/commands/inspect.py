"""``tlsc inspect``: what converting would do to a network, and how far its pixels reach."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import NAMES, Commands, add_overwrite_argument, size
from tlsc.eval.commands.list import say

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="what converting would do to a network, and how far its pixels reach",
        description="Print the plan of a network: every site, its window, and what is done about it; with "
        "--influence also how far input pixels reach before and after, measured, and the module that lets them.",
    )
    parser.add_argument("network", help=NAMES)
    parser.add_argument(
        "--base-size",
        type=size,
        help="window at the network's input, in pixels: N or HEIGHTxWIDTH (default: 1.5 training crops, where "
        "these are known; a network of your own needs one)",
    )
    parser.add_argument("--stride", type=int, default=1, help="grid of the strided path; 1 is exact (%(default)s)")
    parser.add_argument(
        "--influence",
        type=size,
        nargs="?",
        const=0,
        metavar="SIZE",
        help="measure the influence on an input of this size: N or HEIGHTxWIDTH (default: three windows)",
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the influence; implies --influence")
    parser.add_argument("--json", action="store_true", help="print it all as JSON")
    add_overwrite_argument(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.network == "list":  # as it was called before there was the command of that name
        say()
        return 0
    import tlsc
    from tlsc.eval.files import refuse_existing
    from tlsc.eval.networks import find_network

    if args.picture is not None:
        refuse_existing([args.picture], args.overwrite, [Path(args.network)])
    model = find_network(args.network)
    known = getattr(model, "tlsc", None)
    base_size = args.base_size or getattr(known, "base_size", None)
    if base_size is None:
        raise ArgumentValueError(
            f"{args.network} needs --base-size: the window in pixels, such as 1.5 times its training crop"
        )
    plan = tlsc.plan(model, base_size, stride=args.stride)
    data = plan.as_dict()
    if not args.json:
        print(plan)
    if args.influence is not None or args.picture is not None:
        size = args.influence or (3 * plan.base_size[0], 3 * plan.base_size[1])
        output = getattr(known, "output", None)
        before, after = tlsc.influence(model, size, output=output), None
        if plan.converted:
            after = tlsc.influence(tlsc.convert(model, base_size, stride=args.stride), size, output=output)
        data["influence"] = {"before": before.as_dict(), "after": after and after.as_dict()}
        if not args.json:
            print(f"\nbefore: {before}\n")
            print(f"after: {after}" if after is not None else "after: the same, as nothing becomes local")
        if args.picture is not None:
            if after is None:
                before.draw(args.picture)
            else:
                after.draw(args.picture, before=before)
    if args.json:
        print(json.dumps(data, indent=2))
    return 0
