"""``tlsc shift``: how far the statistics at a network's sites move from training crops to whole images."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_data_arguments,
    add_network_arguments,
    add_overwrite_argument,
    data_of,
    network_of,
    size,
)

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "shift",
        help="how far a network's statistics on whole images are from those on training crops",
        description="Measure the statistics (mean and standard deviation per channel) at every site on crops of "
        "the training size, on whole images, and on whole images after converting, and how far apart they are "
        "(Wasserstein distance). Writes shift.csv, shift.json and shift.png. Runs in one process.",
    )
    add_network_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--base-size", type=size, help="N or HEIGHTxWIDTH (default: 1.5 training crops)")
    parser.add_argument("--crops", type=int, default=8, metavar="N", help="crops from each image (%(default)s)")
    parser.add_argument(
        "--calibrate", action="store_true", help="also after calibrating on these images: corrected statistics"
    )
    parser.add_argument("--out", type=Path, default=Path("tlsc-shift"), help="folder to write to (%(default)s)")
    add_overwrite_argument(parser)
    parser.set_defaults(run=_run, command="shift")


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tlsc.eval.files import refuse_existing, replacing
    from tlsc.eval.judge.shift import measure, shifts
    from tlsc.eval.run.records import alone_in
    from tlsc.eval.run.runner import fixed_arithmetic
    from tlsc.eval.show import shift as shown

    if args.crops < 1 or args.threads < 1:
        raise ArgumentValueError(f"--crops and --threads must be at least 1, got {args.crops} and {args.threads}")
    refuse_existing((args.out / name for name in shown.FILES), args.overwrite)
    network = network_of(args)
    if network.crop is None:
        raise ArgumentValueError(f"the training crop of {network.name} is not known: give --crop")
    base_size = network.taken(args.base_size or network.base_size)
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
            lambda pairs: tqdm(pairs, desc=network.name, unit="image"),
            args.calibrate,
        )
        found = shifts(plan, samples)
        shown.write(args.out, found, plan, samples, network, data)
    shown.say(args.out, found, plan, samples, network, data)
    return 0
