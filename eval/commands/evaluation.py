"""What ``tlsc eval`` and ``tlsc sweep`` do once their arguments are read: measure, judge, write, say."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.commands.arguments import data_of, network_of
from tlsc.eval.files import replacing
from tlsc.eval.judge.metrics import Protocol, lpips_metric
from tlsc.eval.judge.verdict import judge, summarise
from tlsc.eval.networks import Asked, Network, checksum, chosen_device
from tlsc.eval.onnx_file import OnnxFile
from tlsc.eval.run.cells import Cell, cells_of, planned_cell
from tlsc.eval.run.distributed import Team, team
from tlsc.eval.run.records import alone_in, open_run
from tlsc.eval.run.runner import Job, fixed_arithmetic
from tlsc.eval.run.runner import run as run_job
from tlsc.eval.show import comparisons, plots, seams
from tlsc.eval.show.outputs import (
    Outcome,
    as_json,
    head,
    sweep_table,
    table,
    versions,
    write_results,
    write_timings,
)
from tlsc.eval.show.report import write_report
from tlsc.eval.show.trackers import refuse_missing, track
from tlsc.eval.telling import hand_over, say

__all__ = ["run"]

FILES = ("results.csv", "results.json", "timings.csv", "psnr.png", "gain.png", "comparison.png", "report.html")


def run(args: argparse.Namespace) -> int:
    """Either command, with its parsed arguments; returns the exit status."""

    if args.threads < 1:
        raise ArgumentValueError(f"--threads must be at least 1, got {args.threads}")
    if args.limit is not None and args.limit < 1:
        raise ArgumentValueError(f"--limit must be at least 1, got {args.limit}")
    refuse_missing(args.log)
    out = args.out
    args.device = chosen_device(args.device)
    with fixed_arithmetic(args.threads), team(args.device, args.backend) as ours, ExitStack() as held:
        outcome, job = _measured(args, out, ours, held)
        if not ours.leads or outcome is None or job is None:
            # Rank 0 speaks for all: torchrun would end it, still writing, if another process reported a failure.
            return 0
        _write(out, outcome, job, not args.no_report)
        _say(outcome, out)
        hand_over(_document(outcome))
        track(args.log, out, outcome)
        return 1 if outcome.failed else 0


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


def _measured(
    args: argparse.Namespace, out: Path, team: Team, held: ExitStack
) -> tuple[Outcome | None, Job | None]:

    protocol = Protocol(args.protocol, args.crop_border)
    network = network_of(args)
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
        args.source,
    )
    if args.plan is not None:
        network.refuse_onnx("compare a plan")
        planned = planned_cell(str(args.plan))
        if planned is None:
            remarks.append(f"{args.plan} leaves every site: that is the original")
        else:
            cells.append(planned)
    if isinstance(network.model, OnnxFile):
        remarks.append("an ONNX file runs as it was exported: it is not converted here")
    data = _together(team, lambda: data_of(args, network))
    if data is None:
        return None, None
    settings = _settings(args, network, data, cells)
    if _together(team, lambda: _opened(out, settings, args, held)) is None:
        return None, None
    job = Job(network, data, cells, protocol, args.lpips, indicators=args.command == "eval")
    records = run_job(job, out, team, args.resume)
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


def _opened(out: Path, settings: dict[str, Any], args: argparse.Namespace, held: ExitStack) -> bool:
    held.enter_context(alone_in(out))
    open_run(out, settings, args.resume, args.overwrite, FILES)
    return True


def _asked(args: argparse.Namespace, network: Network) -> tuple[list[Any], list[tuple[int | None, int]]]:
    """Windows, and patch sizes with overlaps: those asked for, or what the training crop suggests."""
    needs = f"the training crop of {network.name} is not known: give --crop, or --base-size and "
    return _windows_asked(args, network, needs), _patches_asked(args, network.crop, needs)


def _windows_asked(args: argparse.Namespace, network: Network, needs: str) -> list[Any]:
    crop = network.crop
    if args.calibrate and crop is None:
        raise ArgumentValueError(f"--calibrate needs the training crop of {network.name}: give --crop")
    if isinstance(network.model, OnnxFile):
        if any(size not in ("auto", "none") for size in args.base_size):
            network.refuse_onnx("convert it")
        return []
    asked = [one for size in args.base_size for one in _meant(size, args.command, network, needs)]
    sizes = [network.taken(size) for size in asked if size != "none"]
    for size in sizes if args.calibrate else []:
        if crop is not None and min((size, size) if isinstance(size, int) else size) < crop:
            raise ArgumentValueError(
                f"--calibrate needs windows no smaller than the training crop, {crop}, got {size}"
            )
    return sizes


def _meant(asked: Asked, command: str, network: Network, needs: str) -> list[Any]:
    """The windows that one that is asked for stands for: several, if a sweep shall choose them."""
    crop = network.crop
    if asked != "auto":
        return [asked]
    if crop is None:
        raise ArgumentValueError(needs + ("--patch-size" if command == "sweep" else "--tile"))
    return [crop, crop * 3 // 2, crop * 2] if command == "sweep" else [network.base_size]


def _patches_asked(args: argparse.Namespace, crop: int | None, needs: str) -> list[tuple[int | None, int]]:
    if args.command == "sweep":
        if args.patch_size is None and crop is None:
            raise ArgumentValueError(needs + "--patch-size")
        sizes = args.patch_size or [max(1, (crop or 0) // 2), *((crop or 0) * n // 2 for n in (2, 3, 4, 8))]
        return [(size, overlap) for size in sizes for overlap in args.overlap]
    tiles = args.tile or ([crop] if crop is not None else [])
    return [
        (tile, overlap)
        for tile in tiles
        for overlap in (args.overlap if args.overlap is not None else (0, tile // 4))
    ]


def _settings(args: argparse.Namespace, network: Network, data: Any, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything that figures depend on, up to the hardware."""

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
        **({} if args.plan is None else {"plan": args.plan.read_text(encoding="utf-8")}),
        "protocol": args.protocol,
        "crop_border": args.crop_border,
        "lpips": args.lpips,
        "versions": versions(),
    }


def _device(args: argparse.Namespace) -> str:

    if args.device.startswith("cuda"):
        return torch.cuda.get_device_name()
    noun = "thread" if args.threads == 1 else "threads"
    return f"{platform.machine()} CPU, {args.threads} {noun} per process"


def _write(out: Path, outcome: Outcome, job: Job, report: bool) -> None:

    write_results(out / "results.csv", outcome)
    write_timings(out / "timings.csv", outcome)
    with replacing(out / "results.json") as new:
        text = json.dumps(_document(outcome), indent=1, ensure_ascii=False)
        new.write_text(text + "\n", encoding="utf-8", errors="replace")
    for name in FILES[3:]:
        (out / name).unlink(missing_ok=True)  # of an earlier run
    if report:
        _draw(out, outcome, job)


def _document(outcome: Outcome) -> dict[str, Any]:
    return as_json(outcome, datetime.now(timezone.utc).isoformat(timespec="seconds"), sys.argv[1:])


def _draw(out: Path, outcome: Outcome, job: Job) -> None:

    shown = comparisons.shown_cells(outcome.verdict)
    if outcome.command == "sweep":
        caption = (
            "Mean PSNR against the size of the patches that images are cut into; bands: 95% intervals of gains"
        )
        means = _plot(out / "psnr.png", lambda path: plots.draw_sweep(path, outcome, job.network.crop))
    else:
        caption = "Mean PSNR; lines: 95% interval of the gain"
        means = _plot(out / "psnr.png", lambda path: plots.draw_means(path, outcome))
    gains = _plot(out / "gain.png", lambda path: plots.draw_gains(path, outcome, shown))
    drawn = [(caption, means), (f"Gain over {outcome.verdict.baseline}, image by image", gains)]
    found = comparisons.compare(job, outcome)
    if found:
        with replacing(out / "comparison.png") as new:
            comparisons.draw(new, found)
    write_report(out / "report.html", outcome, drawn, found)


def _plot(target: Path, draw: Callable[[Path], None]) -> bytes:
    """A plot as a PNG file, and as SVG for the report."""
    with replacing(target) as new:
        draw(new)
    with tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder, "plot.svg")
        draw(drawing)
        return drawing.read_bytes()


def _say(outcome: Outcome, out: Path) -> None:

    say("\n".join(head(outcome)) + "\n")
    say(table(outcome) + "\n")
    if outcome.command == "sweep":
        names, body = sweep_table(outcome)
        say(tabulate(body, headers=names, disable_numparse=True, colalign=("left", *["right"] * (len(names) - 1))))
        say()
    say(f"*: the highest mean PSNR. Gain: {outcome.verdict.interval}.")
    say(f"Time: median over images, {outcome.device}; peak memory of the process or the GPU.")
    for sentence in seams.sentences(outcome.summaries):
        say(sentence)
    for remark in outcome.verdict.remarks:
        say(f"- {remark}")
    say(f"\n{outcome.verdict.recommendation}\n")
    for record in outcome.failed[:20]:
        print(f"tlsc: failed: {record.image} ({record.cell}): {record.message}", file=sys.stderr)
    if len(outcome.failed) > 20:
        print(f"tlsc: {len(outcome.failed) - 20} more in results.csv", file=sys.stderr)
    written = [name for name in FILES if (out / name).exists()]
    say(f"Written to {out}: {', '.join(written)}")
