"""``tlsc tune``: which sites of a network to convert, and with which windows, decided on photographs."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlsc.errors import ArgumentValueError
from tlsc.eval.commands.arguments import (
    Commands,
    add_calling_arguments,
    add_network,
    add_out,
    add_running_arguments,
    add_telling_arguments,
    count,
    network_of,
    seed,
    windows,
)
from tlsc.eval.telling import hand_over, note, progress, say

if TYPE_CHECKING:
    from torch import Tensor

    from tlsc.eval.networks import Network

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tune",
        help="decide which sites to convert, with which windows, from photographs",
        description="Decide for each site of a network (a place that takes a statistic of the whole feature "
        "map) whether it becomes local, over which window, and how far its statistics are corrected. With clean "
        "targets (--target, --degrade) the PSNR decides, otherwise the distance from results on training crops. On "
        "held-out photographs the result is compared with converting all sites or none, and used "
        "only if it is shown to gain. Writes a plan for restore, eval and export --plan, and for "
        "tlsc.convert(model, plan=...). A stopped run continues where it was.",
    )
    add_calling_arguments(add_network(parser))
    parser.add_argument("photographs", nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    group = parser.add_argument_group("targets")
    group.add_argument("--target", metavar="FOLDER", help="folder of clean photographs with the same names")
    group.add_argument(
        "--degrade",
        metavar="SPEC",
        help="if the photographs are clean: degrade them first (as eval --degrade does)",
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--base-size",
        type=windows,
        default=None,
        metavar="WINDOW,…",
        help="windows to try: auto (1.5 training crops), N or HEIGHTxWIDTH (default: 1.5 and 2 "
        "training crops; with targets also 1)",
    )
    group.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also decide for each site whether its statistics are corrected (calibrated on the photographs), and "
        "how far (the default; without it four times as fast)",
    )
    group.add_argument(
        "--crops", type=count, default=16, metavar="N", help="crops from each photograph (%(default)s)"
    )
    group.add_argument(
        "--seed", type=seed, default=0, help="random seed of crops, folds and --degrade (%(default)s)"
    )
    group = add_out(parser, Path("plan.json"), "file for the plan (plan.json)")
    add_telling_arguments(add_running_arguments(parser, threads=1))
    parser.set_defaults(run=_run, command="tune")


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.commands.photographs import images_of, pairs_of
    from tlsc.eval.files import make_folder, refuse_existing
    from tlsc.eval.networks import checksum
    from tlsc.eval.restore import sources
    from tlsc.eval.run.records import alone_with
    from tlsc.eval.run.runner import fixed_arithmetic
    from tlsc.eval.tune.scores import Journal
    from tlsc.eval.tune.tune import tune, windows_for

    given = sources(args.photographs if args.target is None else [*args.photographs, args.target])
    refuse_existing([args.out], args.overwrite, [Path(args.network), *given])
    network = network_of(args)
    network.refuse_onnx("tune it")
    if network.crop is None:
        raise ArgumentValueError(f"the training crop of {network.name} is not known: give --crop")
    if "none" in (args.base_size or []):
        raise ArgumentValueError("no site at all is always tried: leave --base-size none out")
    targets: list[Tensor] | None = None
    if args.target is not None or args.degrade is not None:
        images, targets = pairs_of(args.photographs, args.target, args.degrade, network, args.seed)
    else:
        images = images_of(args.photographs, network)
    tried = windows_for(network, args.base_size, targets is not None)
    settings = _settings(args, checksum(network.model), network, tried, [*images, *(targets or [])])
    make_folder(args.out.parent)
    with alone_with(args.out):
        journal = Journal(args.out.with_name(f"{args.out.name}.journal"), settings, args.overwrite)
        if journal.known:
            note(f"going on with {len(journal.known)} choices measured before")
        with fixed_arithmetic(args.threads), progress(desc="tuning", unit="choice") as bar:
            found = tune(
                network,
                images,
                targets,
                tried,
                calibrate=args.calibrate,
                crops_per_image=args.crops,
                seed=args.seed,
                journal=journal,
                told=bar.update,
            )
        found.plan.save(args.out)
        journal.done()
    hand_over({"network": args.network, "written": str(args.out), **found.as_dict()})
    say(f"{found}\n\nWritten: {args.out}")
    return 0


def _settings(
    args: argparse.Namespace, weights: str, network: Network, tried: Sequence[Any], images: Sequence[Tensor]
) -> dict[str, Any]:
    """Everything that scores depend on."""
    import torch

    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{tuple(image.shape)}\n".encode())
        digest.update(image.numpy().tobytes())
    return {
        "weights": weights,
        "images": digest.hexdigest(),
        "paired": args.target is not None or args.degrade is not None,
        "windows": [list(size) for size in tried],
        "crop": network.crop,
        "output": network.output,
        "pad_to": network.pad_to,
        "scale": network.scale,
        "sigma": network.sigma,
        "calibrate": args.calibrate,
        "crops": args.crops,
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "torch": torch.__version__,
    }
