"""``tlsc restore``: from a network's name and pictures on disk to restored pictures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.commands.arguments import (
    NAMES,
    Commands,
    add_calling_arguments,
    add_out,
    add_plan,
    add_running_arguments,
    add_telling_arguments,
    add_window_arguments,
    count,
    network_of,
)
from tlsc.eval.telling import detail, hand_over, say, telling

if TYPE_CHECKING:
    import tlsc
    from tlsc.eval.run.distributed import Team

__all__ = ["add_command"]

_TEXT = (
    "Restore photographs with a pretrained network. The network is recognised from its "
    "checkpoint, and converted to local statistics unless --base-size none is given. 8 and 16 "
    "bit, grey, RGB and transparency are kept, and EXIF orientation is applied. Results of "
    "several images are PNG. A file is written completely or not at all. Inputs are never "
    "overwritten, other files only with --overwrite. If an image fails, the others are still "
    "restored; it is named at the end, and the exit status is 1."
)


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "restore",
        help="restore photographs with a pretrained network, recognised from its checkpoint",
        description=_TEXT,
    )
    group = parser.add_argument_group("network and images")
    group.add_argument("network", metavar="NETWORK", help=NAMES)
    group.add_argument("inputs", metavar="INPUT", nargs="*", help="images, folders of images, or glob patterns")
    parser.collects = "inputs"
    group.add_argument(
        "--checkpoint",
        "--model",
        metavar="NETWORK",
        help="another way to name the network; then all names are inputs, and the last of several is "
        "OUT unless -o is given",
    )
    group.add_argument("--crop", type=count, metavar="N", help="side of the training crops, if it is not known")
    add_calling_arguments(group)
    group = add_window_arguments(parser)
    add_plan(group)
    group.add_argument(
        "--calibrate",
        nargs="?",
        const="",
        metavar="PLAN",
        help="correct the converted network's statistics for the effect of the training crops' "
        "borders: on each image itself, or by a saved plan (JSON, Plan.save)",
    )
    group.add_argument(
        "--source",
        default="window",
        choices=("window", "map", "tile", "table", "centres", "thumbnail", "crops"),
        help="where the converted network takes statistics from (%(default)s)",
    )
    group = parser.add_argument_group("images larger than memory")
    group.add_argument(
        "--tile", type=int, metavar="N", help="cut images into blended tiles of N×N pixels (default: whole images)"
    )
    group.add_argument(
        "--overlap", type=int, metavar="M", help="overlap of these tiles, in pixels (default: N / 8)"
    )
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="cut images into pieces that use at most this memory (4GiB, or free) and together equal "
        "the whole result; needs a converted network",
    )
    group.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="X",
        help="largest difference from the whole result that these pieces may have, for values in [0, "
        "1], such as 0.5/255 or 0.002 (default: 1/255); alone, it means --memory free",
    )
    add_running_arguments(parser)
    group = add_out(
        parser, None, "a folder, or a file's name for a single image (default: the folder tlsc-restore)"
    )
    add_telling_arguments(group)
    parser.set_defaults(run=_run)


def _tolerance(text: str) -> float:
    above, _, below = text.partition("/")
    value = float(above) / (float(below) if below else 1.0)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, such as 0.5/255, got {text!r}")
    return value


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.networks import chosen_device
    from tlsc.eval.run.distributed import team

    args.device = chosen_device(args.device)
    with team(args.device, "gloo") as crew, _speaking(crew):
        try:
            return _restored(args, crew)
        except (TLSCError, OSError):
            if crew.leads:
                raise
            return 0  # rank 0 speaks for all


@contextmanager
def _speaking(crew: Team) -> Iterator[None]:
    """One of several processes tells what is done; all compute with as many threads as one that is alone."""
    import torch

    if crew.size == 1:
        yield
        return
    threads = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # what torchrun sets: others' last digits
        torch.set_num_threads(_cores())
    try:
        if crew.leads:
            yield
        else:
            with telling(quiet=True, json=True):
                yield
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _restored(args: argparse.Namespace, crew: Team) -> int:
    from tlsc.adapters.pieces.sharing import first

    inputs, out = _named(args)
    tile, overlap = _tiling(args)
    if args.calibrate is not None and args.base_size == "none":
        raise ArgumentValueError("--calibrate corrects a converted network: leave --base-size none out")
    if args.source != "window" and (args.calibrate is not None or args.memory is not None):
        option = "--memory" if args.calibrate is None else "--calibrate"
        raise ArgumentValueError(f"{option} is for windows: leave --source {args.source} out")
    places = first(crew, lambda: _places(args, inputs, out))

    import tlsc
    from tlsc.eval.restoring import Wanted, Work

    plan = tlsc.Plan.load(args.calibrate) if args.calibrate else None
    network = network_of(args)
    converted, said = network.converted(args.base_size, args.stride, args.source, args.plan)
    known = getattr(network.model, "tlsc", None)
    name = network.name if network.kind == "ONNX file" else getattr(known, "architecture", network.kind)
    say(f"{name}{f', {known.task}' if known is not None and known.task else ''}, {said}")
    detail(f"on {network.reference.device} in {network.reference.dtype}".replace("torch.", ""))
    _check_converted(args, converted, said)
    if plan is not None:
        tlsc.calibrate(network.model, plan)
    for folder in dict.fromkeys(place.parent for place in places.values()):
        folder.mkdir(parents=True, exist_ok=True)
    work = Work(network, Wanted(tile, overlap, args.memory, args.tolerance, args.calibrate == "", args.crop), crew)
    done = work.through(places)
    if not crew.leads:
        return 0
    failed = [one for one in done if one.error is not None]
    hand_over(
        {"network": args.network, "done": said, "images": [asdict(one) for one in done], "failed": len(failed)}
    )
    say(f"restored {len(done) - len(failed)} of {len(done)} images to {out}")
    for one in failed:
        print(f"tlsc: {one.input}: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def _places(args: argparse.Namespace, inputs: list[str], out: Path) -> dict[Path, Path]:
    """Where each image is written to; nothing that is there already is replaced unasked."""
    from tlsc.eval.files import refuse_existing
    from tlsc.eval.images import check_writable
    from tlsc.eval.restore import targets

    places = targets(inputs, out)
    for place in places.values():
        check_writable(place)
    try:
        refuse_existing(places.values(), args.overwrite, [Path(args.network)])
    except ArgumentValueError as error:
        if args.checkpoint is None or args.out is not None:
            raise
        raise ArgumentValueError(f"{error} (without -o, the last name is the output)") from error
    return places


def _named(args: argparse.Namespace) -> tuple[list[str], Path]:
    """The inputs and the output among the names; the network's becomes ``args.network``."""
    names, out = [args.network, *args.inputs], args.out
    if args.checkpoint is not None:
        args.network = args.checkpoint
        if out is None and len(names) > 1:
            out = Path(names.pop())
    else:
        del names[0]
        if not names:
            raise ArgumentValueError(
                f"nothing to restore with {args.network}: tlsc restore NETWORK INPUT… [-o OUT]"
            )
    return names, Path("tlsc-restore") if out is None else out


def _tiling(args: argparse.Namespace) -> tuple[int | None, int]:
    tile, overlap = args.tile, args.overlap
    if args.tolerance is not None and args.memory is None:
        args.memory = "free"
    if tile is None:
        if overlap is not None:
            raise ArgumentValueError("--overlap is of tiles: give --tile, too")
        return None, 0
    if args.memory is not None:
        raise ArgumentValueError("--tile blends tiles, --memory and --tolerance cut pieces: give one of them")
    if tile < 1:
        raise ArgumentValueError(f"--tile must be a positive number of pixels, got {tile}")
    overlap = tile // 8 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ArgumentValueError(f"--overlap must be at least 0 and less than --tile {tile}, got {overlap}")
    return tile, overlap


def _check_converted(args: argparse.Namespace, plan: tlsc.Plan | None, said: str) -> None:
    """What only a converted network can do is refused for one that stays as it is."""
    for given, option in ((args.calibrate is not None, "--calibrate"), (args.memory is not None, "--memory")):
        if given and plan is None:
            way = (
                ": --tile N runs a file in blended tiles" if said == "as exported" and option == "--memory" else ""
            )
            raise ArgumentValueError(f"{option} is for a converted network, and {args.network} runs {said}{way}")
