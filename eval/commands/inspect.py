"""``tlsc inspect``: what a network is, what converting would do to it, and how far its pixels reach."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_network,
    add_out,
    add_telling_arguments,
    add_window_arguments,
    network_of,
    size,
)
from tlsc.eval.commands.list import say as say_list
from tlsc.eval.telling import hand_over, progress, say, wanted

if TYPE_CHECKING:
    import tlsc
    from tlsc.eval.networks import Network

__all__ = ["add_command"]

_ROUNDING = 1e-6
"""Relative to the largest change: less is rounding in float32."""
_ANY = 64
"""A window that tells whether a network has sites, where none is known."""


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a network is and what converting would change",
        description="Print what was recognised of a network, and what would become local. Every site (a place "
        "that takes a statistic of the whole feature map) is listed with its window and its "
        "treatment; similar sites share a row (-v lists all). --influence also measures how far "
        "input pixels reach before and after converting, and names the module that still lets "
        "distant ones through.",
    )
    add_network(parser)
    add_window_arguments(parser)
    group = parser.add_argument_group("influence")
    group.add_argument(
        "--influence",
        type=size,
        nargs="?",
        const=0,
        metavar="SIZE",
        help="measure how far pixels reach, on an input of this size: N or HEIGHTxWIDTH (default: three windows)",
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="measure in float64 on two inputs, which takes several times as long; implies --influence "
        "(default: one input in the network's own precision; float64 only if the responsible "
        "module is uncertain)",
    )
    group.add_argument(
        "--picture", type=Path, metavar="PNG", help="draw the influence into this file; implies --influence"
    )
    group = add_out(parser, None, "write what --json prints to this file")
    add_telling_arguments(group)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.network == "list":  # as it was called before there was the command of that name
        say_list()
        return 0
    from tlsc.eval.files import refuse_existing, replacing
    from tlsc.eval.show.plan import plan_table, recognised, recognised_table

    written = [path for path in (args.picture, args.out) if path is not None]
    refuse_existing(written, args.overwrite, [Path(args.network)])
    network = network_of(args, runs=False)
    network.refuse_onnx("inspect")
    facts = recognised(network, args.network, args.crop)
    plan = _planned(args, network)
    say(recognised_table(facts) + "\n")
    say(plan_table(plan, every=wanted().verbose))
    data = {"network": facts, **plan.as_dict()}
    if args.influence is not None or args.picture is not None or args.exact:
        data["influence"] = _influence(args, network, plan)
    hand_over(data)
    if args.out is not None:
        with replacing(args.out) as new:
            new.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _planned(args: argparse.Namespace, network: Network) -> tlsc.Plan:
    import tlsc

    asked = network.base_size if args.base_size == "auto" else args.base_size
    known = asked is not None and asked != "none"
    plan = tlsc.plan(network.model, network.taken(asked if known else _ANY), stride=args.stride)
    if plan.sites and not known:
        raise ArgumentValueError(
            f"{args.network} needs --base-size: the window in pixels, such as 1.5 times its training crop; or its "
            "--crop"
        )
    return plan


def _influence(args: argparse.Namespace, network: Network, plan: tlsc.Plan) -> dict[str, Any]:
    import tlsc

    size = args.influence or (3 * plan.base_size[0], 3 * plan.base_size[1])
    after = None
    with progress(desc="influence", unit=" passes", leave=False, delay=1) as bar:
        words: dict[str, Any] = {"exact": args.exact, "samples": 2 if args.exact else 1}
        words["output"] = getattr(getattr(network.model, "tlsc", None), "output", None)
        words["progress"] = lambda passes: bar.update()
        before = tlsc.influence(network.model, size, **words)
        if plan.converted:
            bar.reset(2 * bar.n)
            bar.update(bar.total // 2)
            converted = tlsc.convert(network.model, plan.base_size, stride=args.stride, check=False)
            after = tlsc.influence(converted, size, **words)
    verdict = _verdict(before, after)
    say(f"\n{verdict}\n\nbefore: {before}\n")
    say(f"after: {after}" if after is not None else "after: the same, as nothing becomes local")
    if args.picture is not None:
        if after is None:
            before.draw(args.picture)
        else:
            after.draw(args.picture, before=before)
    return {"verdict": verdict, "before": before.as_dict(), "after": after and after.as_dict()}


def _verdict(before: tlsc.Influence, after: tlsc.Influence | None) -> str:
    """What converting did, in one line."""
    distance, was = int(before.change_distance[-1]), float(before.change[-1])
    start = f"Replacing all pixels farther than {distance} changes the centre of the output by {was:.2g} as trained"
    if after is None:
        return f"{start}; nothing becomes local, so this stays."
    now = float(after.change[after.change_distance.tolist().index(distance)])
    if now == 0:
        return f"{start}, and not at all converted: influence is local."
    if after.culprit is None and now <= _ROUNDING * after.change.max():
        return f"{start}, and converted by less than a millionth of what near pixels do: influence is local."
    if after.culprit is not None:
        return f"{start}, by {now:.2g} converted: {after.culprit} still looks at the whole image."
    return f"{start}, by {now:.2g} converted, where windows add up and nothing looks at the whole image."
