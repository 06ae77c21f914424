"""A run's figures in TensorBoard or Weights & Biases, beside its files."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlsc.errors import ArgumentValueError, first_line, needing
from tlsc.eval.images import read_image

if TYPE_CHECKING:
    from tlsc.eval.judge.verdict import Summary
    from tlsc.eval.show.outputs import Outcome

__all__ = ["TRACKERS", "refuse_missing", "track"]

_FIGURES = ("psnr", "ssim", "lpips", "mismatch", "disparity", "seconds", "peak")
_PLOTS = ("psnr.png", "gain.png", "comparison.png")


def refuse_missing(names: Sequence[str]) -> None:
    """Refuse before the run what would fail after it.

    Raises:
        MissingPackageError: a tracker is not installed.
    """
    for name in names:
        with needing("tracking", f"--log {name}"):
            importlib.import_module(name)


def track(names: Sequence[str], folder: Path, outcome: Outcome) -> None:
    """Hand the means of a run, its verdict and its plots to trackers.

    Args:
        names: of ``TRACKERS``.
        folder: with the run's files; TensorBoard's go into ``tensorboard/`` in it, those of Weights & Biases into
            ``wandb/``.
        outcome: of the run.

    Raises:
        ArgumentValueError: the tracker refuses, with its own words; the run's files are there.
    """
    for name in names:
        try:
            TRACKERS[name](folder, outcome)
        except Exception as error:  # a tracker's own; it may ask a server
            raise ArgumentValueError(
                f"the figures are in {folder}, but {name} refuses them: {first_line(error)}"
            ) from error


def _figures(own: Summary) -> dict[str, float]:
    """Finite means of a cell, by name."""
    found = {name: getattr(own, name) for name in _FIGURES}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _tensorboard(folder: Path, outcome: Outcome) -> None:
    """A run of TensorBoard's for each variant: scalars over the patch size, those of whole images by themselves."""
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    for variant in dict.fromkeys(own.cell.variant for own in outcome.summaries):
        with SummaryWriter(str(place / re.sub(r"[^\w.-]+", "-", variant))) as writer:
            for own in outcome.summaries:
                if own.cell.variant == variant:
                    cut = "whole" if own.cell.patch_size is None else f"patches, overlap {own.cell.overlap}"
                    for name, value in _figures(own).items():
                        writer.add_scalar(f"{cut}/{name}", value, own.cell.patch_size or 0)
    with SummaryWriter(str(place)) as writer:
        writer.add_text("recommendation", outcome.verdict.recommendation)
        for name in filter(lambda name: (folder / name).exists(), _PLOTS):
            writer.add_image(Path(name).stem, read_image(folder / name)[..., :3], dataformats="HWC")


def _wandb(folder: Path, outcome: Outcome) -> None:
    """One run of Weights & Biases' with a table of means; where it goes, the environment says (``WANDB_MODE``)."""
    import wandb

    names = ("variant", "patch_size", "overlap", *_FIGURES)
    rows: list[list[Any]] = []
    for own in outcome.summaries:
        figures = _figures(own)
        rows.append([own.cell.variant, own.cell.size, own.cell.overlap, *map(figures.get, _FIGURES)])
    plots = {Path(name).stem: folder / name for name in _PLOTS if (folder / name).exists()}
    with wandb.init(project="tlsc", dir=str(folder), config=dict(outcome.settings)) as run:
        run.log({name: wandb.Image(str(path)) for name, path in plots.items()})
        run.log({"means": wandb.Table(columns=list(names), data=rows)})
        run.summary.update(
            {
                "recommendation": outcome.verdict.recommendation,
                "best": str(outcome.verdict.best),
                "gain_db": {
                    str(cell): change.mean
                    for cell, change in outcome.verdict.changes.items()
                    if math.isfinite(change.mean)
                },
            }
        )


TRACKERS: dict[str, Callable[[Path, Outcome], None]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""What writes a run's figures, by name."""
