"""``tlsc eval`` and ``tlsc sweep``: a network on a benchmark folder, as trained, in tiles, and converted."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlsc.errors import ArgumentValueError, TLSCError

if TYPE_CHECKING:
    from tlsc.eval.data.datasets import Dataset
    from tlsc.eval.networks import Network
    from tlsc.eval.run.cells import Cell
    from tlsc.eval.run.distributed import Team
    from tlsc.eval.run.runner import Job
    from tlsc.eval.show.outputs import Outcome

__all__ = ["add_commands", "add_data_arguments", "add_network_arguments", "load_data", "named_network"]

FILES = ("results.csv", "results.json", "timings.csv", "psnr.png", "gain.png", "comparison.png", "report.html")

_EVAL = (
    "Restore the images of a benchmark folder with a network as trained (whole and in tiles) and converted, and "
    "say which is best, by how much and how sure that is. Writes results.csv, results.json, timings.csv, plots, "
    "comparison.png and report.html. Several processes: torchrun --nproc-per-node N -m tlsc.eval eval ..."
)
_SWEEP = (
    "PSNR and SSIM against the size of the patches that test images are cut into, whole images last, of a network "
    "as trained and converted with several windows. The same files as eval."
)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``eval``, ``sweep`` and ``shift``."""
    parser = commands.add_parser(
        "eval", help="compare ways to run a network on a benchmark folder", description=_EVAL
    )
    _add_common(parser)
    parser.add_argument(
        "--tile",
        type=_numbers,
        metavar="N[,N]",
        help="tiles for the network as trained (default: the training crop)",
    )
    parser.add_argument(
        "--overlap", type=_numbers, metavar="N[,N]", help="of these tiles, in pixels (default: 0 and a quarter)"
    )
    parser.add_argument("--tile-converted", action="store_true", help="the same tiles for converted networks, too")
    parser.set_defaults(run=_run, command="eval")
    parser = commands.add_parser(
        "sweep", help="PSNR against test patch size, original and converted", description=_SWEEP
    )
    _add_common(parser)
    parser.add_argument(
        "--patch-size",
        type=_numbers,
        metavar="N[,N]",
        help="whole images are added (default: 1/2, 1, 1.5, 2 and 4 training crops)",
    )
    parser.add_argument("--overlap", type=_numbers, default=[0], metavar="N[,N]", help="blended; 0 by default")
    parser.set_defaults(run=_run, command="sweep")
    parser = commands.add_parser(
        "shift",
        help="how far a network's statistics on whole images are from those on training crops",
        description="Measure the statistics (mean and standard deviation per channel) at every site on crops of "
        "the training size, on whole images, and on whole images after converting, and how far apart they are "
        "(Wasserstein distance). Writes shift.csv, shift.json and shift.png. Runs in one process.",
    )
    add_network_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--base-size", type=_one_size, help="N or HEIGHTxWIDTH (default: 1.5 training crops)")
    parser.add_argument("--crops", type=int, default=8, metavar="N", help="crops from each image (%(default)s)")
    parser.add_argument(
        "--calibrate", action="store_true", help="also after calibrating on these images: corrected statistics"
    )
    parser.add_argument("--out", type=Path, default=Path("tlsc-shift"), help="folder to write to (%(default)s)")
    parser.set_defaults(run=_shift, command="shift")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        "--base-size",
        type=_sizes,
        metavar="N[,N]",
        help="windows to convert with, each N or HEIGHTxWIDTH (default: 1.5 training crops; sweep: 1, 1.5 and 2)",
    )
    parser.add_argument("--stride", type=_numbers, default=[1], metavar="N[,N]", help="1 is exact (default)")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="each converted network also with its statistics calibrated, on the first four inputs (no targets); "
        "needs the training crop",
    )
    parser.add_argument(
        "--no-whole", action="store_true", help="never a whole image at once: for those larger than memory"
    )
    parser.add_argument(
        "--protocol",
        default="rgb-uint8",
        help="rgb-uint8, rgb-float or y-uint8 (%(default)s); printed with every figure",
    )
    parser.add_argument("--crop-border", type=int, default=0, metavar="N", help="pixels left out at each edge")
    parser.add_argument("--lpips", action="store_true", help="LPIPS, too; needs pyiqa")
    parser.add_argument("--out", type=Path, default=None, help="folder to write to (tlsc-eval or tlsc-sweep)")
    parser.add_argument(
        "--no-report", action="store_true", help="figures only: no plots, comparisons and report.html"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what a killed run left in --out")
    parser.add_argument("--overwrite", action="store_true", help="throw away what is in --out")
    parser.add_argument(
        "--backend", choices=["gloo", "nccl"], help="under torchrun (default: nccl if each has a GPU)"
    )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a network and says how to run it."""
    parser.add_argument("network", help="a demo network, a checkpoint file, or module:factory")
    parser.add_argument(
        "--crop", type=int, metavar="N", help="side of the network's training crops, if it is not known"
    )
    parser.add_argument("--output", metavar="KEY", help="which of several outputs is the result: an index or a key")
    parser.add_argument("--pad-to", type=int, metavar="N", help="sizes the network takes are multiples of this")
    parser.add_argument(
        "--scale", type=int, metavar="N", help="how many times the network enlarges (1 if not known)"
    )
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.add_argument("--dtype", default="float32", help="float32, float16, bfloat16 or float64 (%(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="per process, on the CPU. The last digits of figures depend on it: keep it fixed (%(default)s)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What names the images."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FOLDER",
        help="a benchmark folder (input/target, lq/gt, blur/sharp, hazy/GT, rain/norain, also nested), or two "
        "folders: inputs and targets; or one of clean images with --degrade",
    )
    parser.add_argument(
        "--degrade",
        metavar="SPEC",
        help="make the inputs: noise:25, noise:0-50 (varying), blur:2, blur:11@30 (motion), jpeg:40, bicubic:4, "
        "haze, motion-blur",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --degrade; every image has its own stream (%(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images by name")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out and count pairs that cannot be evaluated"
    )


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers such as 64,128, got {text!r}")
    return [int(part) for part in parts]


def _sizes(text: str) -> list[Any]:
    return [_one_size(part.strip()) for part in text.split(",")]


def _one_size(text: str) -> Any:
    from tlsc.eval.cli import _size

    return _size(text)


def _shift(args: argparse.Namespace) -> int:
    from tlsc.eval.judge.shift import run

    return run(args)


def _run(args: argparse.Namespace) -> int:
    from tlsc.eval.run.distributed import team
    from tlsc.eval.run.runner import fixed_arithmetic

    if args.threads < 1:
        raise ArgumentValueError(f"--threads must be at least 1, got {args.threads}")
    if args.limit is not None and args.limit < 1:
        raise ArgumentValueError(f"--limit must be at least 1, got {args.limit}")
    out = args.out or Path(f"tlsc-{args.command}")
    with fixed_arithmetic(args.threads), team(args.device, args.backend) as ours:
        outcome, job = _measured(args, out, ours)
        if not ours.leads or outcome is None or job is None:
            # Rank 0 speaks for all: torchrun would end it, still writing, if another process reported a failure.
            return 0
        _write(out, outcome, job, not args.no_report)
        _say(outcome, out)
        return 1 if outcome.failed and not args.skip_bad else 0


def _together(team: Team, work: Any) -> Any:
    """What ``work`` gives on rank 0, in all processes; None in the others where it fails there."""
    value, error = None, None
    if team.leads:
        try:
            value = work()
        except (TLSCError, OSError) as caught:
            error = caught
    value, failed = team.share((value, error is not None))
    if error is not None:
        raise error
    return None if failed else value


def _measured(args: argparse.Namespace, out: Path, team: Team) -> tuple[Outcome | None, Job | None]:
    from tlsc.eval.judge.metrics import Protocol, lpips_metric
    from tlsc.eval.judge.verdict import judge, summarise
    from tlsc.eval.run.cells import cells_of
    from tlsc.eval.run.runner import Job, run
    from tlsc.eval.show.outputs import Outcome

    protocol = Protocol(args.protocol, args.crop_border)
    network = named_network(args)
    if args.lpips:
        lpips_metric(network.reference.device)
    base_sizes, cuts = _asked(args, network)
    cells, remarks = cells_of(
        network.model,
        base_sizes,
        args.stride,
        cuts,
        args.command == "sweep" or args.tile_converted,
        not args.no_whole,
        args.calibrate,
    )
    data = _together(team, lambda: load_data(args, network))
    if data is None:
        return None, None
    settings = _settings(args, network, data, cells)
    if _together(team, lambda: _opened(out, settings, args)) is None:
        return None, None
    job = Job(network, data, cells, protocol, args.lpips)
    records = run(job, out, team, args.resume)
    summaries = summarise(cells, records)
    name = f"{network.name} ({network.description})" if network.description else network.name
    outcome = Outcome(
        args.command,
        name,
        data,
        protocol,
        cells,
        records,
        summaries,
        judge(cells, records, remarks),
        settings,
        team.size,
        _device(args),
    )
    return outcome, job


def _opened(out: Path, settings: dict[str, Any], args: argparse.Namespace) -> bool:
    from tlsc.eval.run.records import open_run

    open_run(out, settings, args.resume, args.overwrite)
    return True


def named_network(args: argparse.Namespace) -> Network:
    """The network that the arguments name."""
    from tlsc.eval.networks import load_network

    for name in ("crop", "pad_to", "scale"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ArgumentValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    return load_network(
        args.network,
        device=args.device,
        dtype=args.dtype,
        output=args.output,
        pad_to=args.pad_to,
        crop=args.crop,
        scale=args.scale,
    )


def _asked(args: argparse.Namespace, network: Network) -> tuple[list[Any], list[tuple[int | None, int]]]:
    """Windows, and patch sizes with overlaps: those asked for, or what the training crop suggests."""
    crop = network.crop
    if args.calibrate and crop is None:
        raise ArgumentValueError(f"--calibrate needs the training crop of {network.name}: give --crop")
    needs = f"the training crop of {network.name} is not known: give --crop, or --base-size and "
    if args.base_size is not None:
        base_sizes = list(args.base_size)
    elif crop is None:
        raise ArgumentValueError(needs + ("--patch-size" if args.command == "sweep" else "--tile"))
    elif args.command == "sweep":
        base_sizes = [crop, crop * 3 // 2, crop * 2]
    else:
        base_sizes = [network.base_size or crop * 3 // 2]
    base_sizes = [network.taken(size) for size in base_sizes]
    for size in base_sizes if args.calibrate else []:
        if crop is not None and min((size, size) if isinstance(size, int) else size) < crop:
            raise ArgumentValueError(
                f"--calibrate needs windows no smaller than the training crop, {crop}, got {size}"
            )
    if args.command == "sweep":
        if args.patch_size is None and crop is None:
            raise ArgumentValueError(needs + "--patch-size")
        sizes = args.patch_size or [max(1, (crop or 0) // 2), *((crop or 0) * n // 2 for n in (2, 3, 4, 8))]
        return base_sizes, [(size, overlap) for size in sizes for overlap in args.overlap]
    tiles = args.tile or ([crop] if crop is not None else [])
    return base_sizes, [
        (tile, overlap)
        for tile in tiles
        for overlap in (args.overlap if args.overlap is not None else (0, tile // 4))
    ]


def load_data(args: argparse.Namespace, network: Network) -> Dataset:
    """The images that the arguments name, checked; bad ones raise, or are said and left out."""
    from tqdm import tqdm

    from tlsc.eval.data.datasets import find_pairs

    found = find_pairs(
        args.data, args.degrade, seed=args.seed, scale=network.scale, channels=network.channels, limit=args.limit
    )
    checked = found.checked(lambda pairs: tqdm(pairs, desc="checking", unit="pair", delay=1))
    checked.refuse_bad(args.skip_bad)
    for bad in checked.bad:
        print(f"tlsc: skipped: {bad}", file=sys.stderr)
    return checked


def _settings(args: argparse.Namespace, network: Network, data: Any, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything that figures depend on, up to the hardware."""
    from tlsc.eval.networks import checksum
    from tlsc.eval.show.outputs import versions

    return {
        "command": args.command,
        "network": network.name,
        "weights_sha256": checksum(network.model),
        "output": network.output,
        "pad_to": network.pad_to,
        "scale": network.scale,
        "dtype": args.dtype,
        "device": args.device.partition(":")[0],
        "threads": args.threads,
        "data": list(args.data),
        "degrade": args.degrade,
        "seed": args.seed if args.degrade else None,
        "limit": args.limit,
        "files_sha256": data.checksum,
        "bad": [str(bad) for bad in data.bad],
        "cells": [str(cell) for cell in cells],
        "protocol": args.protocol,
        "crop_border": args.crop_border,
        "lpips": args.lpips,
        "versions": versions(),
    }


def _device(args: argparse.Namespace) -> str:
    import torch

    if args.device.startswith("cuda"):
        return torch.cuda.get_device_name()
    noun = "thread" if args.threads == 1 else "threads"
    return f"{platform.machine()} CPU, {args.threads} {noun} per process"


def _write(out: Path, outcome: Outcome, job: Job, report: bool) -> None:
    import json
    from datetime import datetime, timezone

    from tlsc.eval.files import replacing
    from tlsc.eval.show.outputs import as_json, write_results, write_timings

    write_results(out / "results.csv", outcome)
    write_timings(out / "timings.csv", outcome)
    with replacing(out / "results.json") as new:
        found = as_json(outcome, datetime.now(timezone.utc).isoformat(timespec="seconds"), sys.argv[1:])
        new.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    for name in FILES[3:]:
        (out / name).unlink(missing_ok=True)  # of an earlier run
    if report:
        _draw(out, outcome, job)


def _draw(out: Path, outcome: Outcome, job: Job) -> None:
    from tlsc.eval.files import replacing
    from tlsc.eval.show import comparisons, plots
    from tlsc.eval.show.report import write_report

    shown = comparisons.shown_cells(outcome.verdict)
    drawn = []
    with replacing(out / "psnr.png") as new:
        if outcome.command == "sweep":
            plots.draw_sweep(new, outcome, job.network.crop)
        else:
            plots.draw_means(new, outcome)
    caption = "Mean PSNR against the size of the patches that images are cut into; bands: 95% bootstrap interval"
    drawn.append((caption if outcome.command == "sweep" else "Mean PSNR; lines: 95% interval", out / "psnr.png"))
    with replacing(out / "gain.png") as new:
        plots.draw_gains(new, outcome, shown)
    drawn.append((f"Gain over {outcome.verdict.baseline}, image by image", out / "gain.png"))
    found = comparisons.compare(job, outcome)
    if found:
        with replacing(out / "comparison.png") as new:
            comparisons.draw(new, found)
    write_report(out / "report.html", outcome, drawn, found)


def _say(outcome: Outcome, out: Path) -> None:
    from tabulate import tabulate

    from tlsc.eval.show.outputs import head, sweep_table, table

    print("\n".join(head(outcome)), end="\n\n")
    print(table(outcome), end="\n\n")
    if outcome.command == "sweep":
        names, body = sweep_table(outcome)
        print(
            tabulate(body, headers=names, disable_numparse=True, colalign=("left", *["right"] * (len(names) - 1)))
        )
        print()
    print(f"Gain: {outcome.verdict.interval}.")
    print(f"Time: median over images, {outcome.device}; peak memory of the process or the GPU.")
    for remark in outcome.verdict.remarks:
        print(f"- {remark}")
    print(f"\n{outcome.verdict.recommendation}\n")
    for record in outcome.failed[:20]:
        print(f"tlsc: failed: {record.image} ({record.cell}): {record.message}", file=sys.stderr)
    if len(outcome.failed) > 20:
        print(f"tlsc: {len(outcome.failed) - 20} more in results.csv", file=sys.stderr)
    written = [name for name in FILES if (out / name).exists()]
    print(f"Written to {out}: {', '.join(written)}")
