"""``tlsc shift``: how far the statistics at a network's sites move from training crops to whole images."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_calling_arguments,
    add_data_arguments,
    add_network,
    add_out,
    add_running_arguments,
    add_telling_arguments,
    count,
    data_of,
    network_of,
    window,
)
from tlsc.eval.telling import hand_over, progress

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "shift",
        help="measure how far a network's statistics on whole images are from those on crops",
        description="See why a network gets worse on whole images. Measures mean and standard deviation per "
        "channel at every site (a place that takes a statistic of the whole feature map): on "
        "crops of the training size, on whole images, and on whole images after converting. "
        "Prints the Wasserstein distances between them. Writes shift.csv, shift.json and "
        "shift.png. Runs in one process.",
    )
    add_calling_arguments(add_network(parser))
    add_data_arguments(parser)
    group = parser.add_argument_group("conversion")
    group.add_argument(
        "--base-size",
        type=window,
        default="auto",
        metavar="WINDOW",
        help="window: auto (1.5 training crops), N or HEIGHTxWIDTH (%(default)s)",
    )
    group.add_argument("--crops", type=count, default=8, metavar="N", help="crops from each image (%(default)s)")
    group.add_argument("--calibrate", action="store_true", help="also measure after calibrating on these images")
    add_running_arguments(parser, threads=1)
    group = add_out(parser, Path("tlsc-shift"), "folder to write to (%(default)s)")
    add_telling_arguments(group)
    parser.set_defaults(run=_run, command="shift")


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.files import refuse_existing, replacing
    from tlsc.eval.judge.shift import measure, shifts
    from tlsc.eval.run.records import alone_in
    from tlsc.eval.run.runner import fixed_arithmetic
    from tlsc.eval.show import shift as shown

    if args.base_size == "none":
        raise ArgumentValueError("shift compares a network with itself converted: leave --base-size none out")
    refuse_existing((args.out / name for name in shown.FILES), args.overwrite)
    network = network_of(args)
    network.refuse_onnx("measure its statistics")
    if network.crop is None:
        raise ArgumentValueError(f"the training crop of {network.name} is not known: give --crop")
    base_size = network.taken(network.base_size if args.base_size == "auto" else args.base_size)
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / shown.FILES[0]):  # can it be written to?
        pass
    data = data_of(args, network)
    with alone_in(args.out), fixed_arithmetic(args.threads):
        plan, samples = measure(
            network,
            data,
            base_size,
            network.crop,
            args.crops,
            args.seed,
            lambda pairs: progress(pairs, desc=network.name, unit="image"),
            args.calibrate,
        )
        found = shifts(plan, samples)
        shown.write(args.out, found, plan, samples, network, data)
    shown.say(args.out, found, plan, samples, network, data)
    hand_over(shown.as_dict(found, plan, samples, network, data))
    return 0
