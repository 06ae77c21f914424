"""``tlsc advise``: whether converting would help, and with which window, from photographs without targets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_calling_arguments,
    add_network,
    add_running_arguments,
    add_telling_arguments,
    count,
    network_of,
    positive,
    seed,
    windows,
)
from tlsc.eval.telling import hand_over, say

if TYPE_CHECKING:
    from torch import Tensor

    from tlsc.eval.networks import Network

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "advise",
        help="predict from degraded photographs whether converting would help",
        description="Predict whether converting helps, without clean photographs. The network's results on "
        "whole photographs, as trained and converted with each window, are compared with its "
        "results on random crops of its training size. Prints the predicted change with its 90% "
        "interval, and a recommendation. Writes nothing.",
    )
    add_calling_arguments(add_network(parser))
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help="degraded photographs, or folders of them")
    group = parser.add_argument_group("conversion")
    group.add_argument(
        "--base-size",
        type=windows,
        default=None,
        metavar="WINDOW,…",
        help="windows to try: auto (1.5 training crops), N or HEIGHTxWIDTH (default: 1, 1.5 and 2 training crops)",
    )
    group.add_argument("--calibrate", action="store_true", help="also try each window with calibrated statistics")
    group = parser.add_argument_group("prediction")
    group.add_argument(
        "--psnr",
        type=positive,
        metavar="DB",
        help="PSNR of the restored photographs, if known; changes are then printed in dB",
    )
    group.add_argument(
        "--degrade",
        metavar="SPEC",
        help="if the photographs are clean: degrade them first (as eval --degrade does)",
    )
    group.add_argument(
        "--crops", type=count, default=16, metavar="N", help="crops from each photograph (%(default)s)"
    )
    group.add_argument(
        "--seed", type=seed, default=0, help="random seed of the crops and of --degrade (%(default)s)"
    )
    add_telling_arguments(add_running_arguments(parser, threads=1))
    parser.set_defaults(run=_run, command="advise")


def _run(args: argparse.Namespace) -> int:
    import tlsc
    from tlsc.eval.run.runner import fixed_arithmetic

    network = network_of(args)
    network.refuse_onnx("predict what converting it would change")
    if network.crop is None:
        raise ArgumentValueError(
            f"the training crop of {network.name} is not known, and without it there is no reference: give --crop"
        )
    with fixed_arithmetic(args.threads):
        found = tlsc.predict(
            network.model,
            _given(args, network),
            _windows(args, network),
            crop=network.taken(network.crop),
            psnr=args.psnr,
            calibrate=args.calibrate,
            crops_per_image=args.crops,
            seed=args.seed,
            call=network,
        )
    hand_over({"network": args.network, **found.as_dict()})
    say(str(found))
    return 0


def _given(args: argparse.Namespace, network: Network) -> list[Tensor]:
    """What the network restores: the photographs, degraded first where that is asked for."""
    from tlsc.eval.commands.photographs import images_of, pairs_of

    if args.degrade is None:
        return images_of(args.photographs, network)
    return pairs_of(args.photographs, None, args.degrade, network, args.seed)[0]


def _windows(args: argparse.Namespace, network: Network) -> list[int | tuple[int, int]]:
    crop = network.crop
    assert crop is not None
    asked = args.base_size or [crop, crop * 3 // 2, crop * 2]
    if "none" in asked:
        raise ArgumentValueError("advise compares a network with itself converted: leave --base-size none out")
    return [network.taken(network.base_size if one == "auto" else one) for one in asked]
