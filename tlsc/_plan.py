"""What will be done to a model, as data and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ._files import CHECK, replacing, sealed
from ._plan_file import from_json
from ._statistics.correction import NAMES
from .errors import ArgumentValueError

__all__ = ["Action", "Calibration", "Fit", "Plan", "Site", "smallest_window"]

Action = Literal[
    "exact", "strided", "map", "tile", "table", "centres", "thumbnail", "crops", "left global", "left alone"
]
FORMAT = "tlsc plan 1"


@dataclass(frozen=True)
class Fit:
    """What :func:`tlsc.calibrate` found at a site.

    Attributes:
        kept: whether the site's statistics are corrected.
        before: how far they are from those of training crops, on crops held out, averaged over channels: for a norm
            ``sqrt(log(s'/s)² + (m' − m)²/s²)`` with mean m and ``s² = var + eps``, for a mean ``|m' − m|/s``.
            None where nothing was measured.
        after: the same with the correction. None where that was not measured: of a correction taken in part.
        reason: why there is none; empty otherwise.
        coefficients: the eight rows of the correction (a, b, c, d, e, top, low, high), a number per channel each:
            ``var' = a·var + b + c·mean²``, ``mean' = d·mean + e``, as they are up to a variance of ``top`` and for
            means between ``low`` and ``high``. Empty where nothing was fitted.
    """

    kept: bool = False
    before: float | None = None
    after: float | None = None
    reason: str = ""
    coefficients: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Calibration:
    """How a plan was calibrated, and what that did to the output.

    Attributes:
        crop: (height, width) of the training crops in pixels.
        images: how many were given.
        crops: how many of them were looked at.
        seed: of their places.
        original: RMS difference between the original's output on images and on crops, at the crops' centres.
        local: the same for the converted model without corrections.
        calibrated: and with those that are kept. None, all three, where nothing was measured.
    """

    crop: tuple[int, int]
    images: int
    crops: int
    seed: int
    original: float | None = None
    local: float | None = None
    calibrated: float | None = None


@dataclass(frozen=True)
class Site:
    """One place in a model that aggregates over all spatial positions, and what is done about it.

    Attributes:
        path: where it is, as in ``model.named_modules()``; empty for the model itself.
        operation: what it computes, by the name of the PyTorch layer.
        feature_size: (height, width) of its map when the input is ``base_size``; None if it was not reached.
        window: (height, width) of its window in pixels of its map; None if it does not become local.
        action: ``exact`` or ``strided`` if the site becomes local, or the name of the source of its statistics.
            ``left global`` if it stays as it is; ``left alone`` if it was not global in the first place.
        reason: why it stays as it is; empty otherwise.
        owner: path of the module whose forward is rewritten for it, from the statistic to the point where its
            result is combined with the map again; None if the site's own module is replaced.
        aliases: further paths under which the same place is found.
        fit: its correction, once the model is calibrated.
        base_size: (height, width) at the model's input that corresponds to its window, if it differs from the
            plan's.
    """

    path: str
    operation: str
    feature_size: tuple[int, int] | None
    window: tuple[int, int] | None
    action: Action
    reason: str = ""
    aliases: tuple[str, ...] = ()
    owner: str | None = None
    fit: Fit | None = None
    base_size: tuple[int, int] | None = None

    @property
    def converted(self) -> bool:
        """Whether the site becomes local, or has its statistics from another source."""
        return not self.action.startswith("left")


@dataclass(frozen=True)
class Plan:
    """The sites of a model in the order in which a forward pass reaches them; prints as a table.

    Attributes:
        base_size: (height, width) at the model's input, in pixels; if sites have their own, the largest.
        stride: grid on which local means are evaluated; 1 is exact.
        sites: one :class:`Site` each.
        calibration: how it was calibrated; None if it was not.
        source: where the sites take their statistics from, with all options that differ from the defaults.

    Example:
        >>> from torch import nn
        >>> import tlsc
        >>> plan = tlsc.plan(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8)), 64)
        >>> plan[0].window
        (64, 64)
        >>> print(plan)
        base_size 64×64, stride 1: 1 of 1 site becomes local
        <BLANKLINE>
        path    operation       feature size    window    action    reason
        ------  --------------  --------------  --------  --------  --------
        1       InstanceNorm2d  64×64           64×64     exact
    """

    base_size: tuple[int, int]
    stride: int
    sites: tuple[Site, ...]
    calibration: Calibration | None = None
    source: str = "window"

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, index: int) -> Site:
        return self.sites[index]

    @property
    def converted(self) -> tuple[Site, ...]:
        """The sites that become local."""
        return tuple(site for site in self.sites if site.converted)

    @property
    def left(self) -> tuple[Site, ...]:
        """The sites that do not, each with its reason."""
        return tuple(site for site in self.sites if not site.converted)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python data, ready for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, its corrections included, to a JSON file. The file is written whole or not at all.

        Its last field, ``sha256``, is a checksum of the others: whoever changes them on purpose deletes it.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps(sealed({"format": FORMAT, **self.as_dict()}), indent=1, allow_nan=False)
        with replacing(Path(path)) as new:
            new.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what :meth:`save` wrote; nothing in it is trusted.

        Raises:
            ArgumentValueError: it is no such file, or holds values that cannot be, or others than were written.
            OSError: it cannot be read.

        Example:
            >>> import tempfile, tlsc
            >>> from torch import nn
            >>> plan = tlsc.plan(nn.Sequential(nn.InstanceNorm2d(8)), 64)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     plan.save(f"{folder}/plan.json")
            ...     Plan.load(f"{folder}/plan.json") == plan
            True
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArgumentValueError(f"{path} is no plan: {str(error).splitlines()[0]}") from error
        except RecursionError as error:
            raise ArgumentValueError(f"{path} is no plan: nested too deep") from error
        seal = data.pop(CHECK, None) if isinstance(data, dict) else None
        changed = seal is not None and seal != sealed(data)[CHECK]
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ArgumentValueError(f"{path} is no plan: it does not begin with the format {FORMAT!r}")
        try:
            plan = from_json(cls, {"source": "window", **data})  # files of 0.2 name none
            assert isinstance(plan, Plan)
            _check(plan)
        except (TypeError, ValueError) as error:
            raise ArgumentValueError(f"{path} is no plan: {error}") from error
        if changed:
            raise ArgumentValueError(
                f"{path} is not as it was written: its checksum is another's. Make the plan again, or delete its "
                f'"{CHECK}" if the change is meant'
            )
        return plan

    def __str__(self) -> str:
        from tabulate import tabulate

        noun, verb = ("site", "becomes") if len(self.sites) == 1 else ("sites", "become")
        how, what = f"stride {self.stride}", f"{verb} local"
        if self.source != "window":
            how, what = f"source {self.source}", "converted"
        own = [site for site in self.converted if site.base_size is not None]
        size = _size(self.base_size) + (f" (smaller at {len(own)})" if own else "")
        head = f"base_size {size}, {how}: {len(self.converted)} of {len(self.sites)} {noun} {what}"
        if not self.sites:
            return head
        names = ["path", "operation", "feature size", "window", "action", "reason"]
        if self.calibration is not None:
            head += f"\n{_calibrated(self)}"
            names[5:5] = ["before", "after"]
        rows = [
            (
                ",\n".join(path or "(the model)" for path in (site.path, *site.aliases)),
                site.operation,
                _size(site.feature_size),
                _size(site.window),
                site.action,
                *(() if self.calibration is None else _figures(site.fit)),
                _reason(site),
            )
            for site in self.sites
        ]
        table = tabulate(rows, headers=names, disable_numparse=True, maxcolwidths=[*[None] * (len(names) - 1), 64])
        return head + "\n\n" + "\n".join(line.rstrip() for line in table.splitlines())


def smallest_window(plan: Plan) -> tuple[int, int]:
    """(height, width) at the model's input that every window of a plan holds: the least of each, over its sites.

    Example:
        >>> smallest_window(Plan((96, 64), 1, ()))
        (96, 64)
    """
    sizes = [site.base_size or plan.base_size for site in plan.converted] or [plan.base_size]
    return min(high for high, _ in sizes), min(wide for _, wide in sizes)


def _calibrated(plan: Plan) -> str:
    about, kept = plan.calibration, sum(site.fit is not None and site.fit.kept for site in plan)
    assert about is not None
    said = (
        f"calibrated on {about.crops} crops of {_size(about.crop)}: {kept} of {len(plan.converted)} sites corrected"
    )
    if about.original is None:
        return said
    return (
        f"{said}. Off from the output on crops (RMS, at their centres): original {about.original:.2g}, "
        f"local {about.local:.2g}, calibrated {about.calibrated:.2g}"
    )


def _figures(fit: Fit | None) -> tuple[str, str]:
    """How far a site's statistics are from those of training crops; unchanged where nothing is corrected."""
    if fit is None or fit.before is None:
        return "–", "–"
    after = fit.after if fit.kept else fit.before
    return f"{fit.before:.3f}", "–" if after is None else f"{after:.3f}"


def _reason(site: Site) -> str:
    return site.reason or (f"not corrected: {site.fit.reason}" if site.fit is not None and site.fit.reason else "")


def _check(plan: Plan) -> None:
    own = [size for site in plan for size in (site.window, site.base_size) if size is not None]
    sizes = [plan.base_size, *own]
    if plan.stride < 1 or any(n < 1 for size in sizes for n in size):
        raise ValueError("sizes and stride must be at least 1")
    for site in plan:
        if site.converted and site.window is None:
            raise ValueError(f"{site.path or 'the model'}: a site that becomes local has a window")
        if site.fit is not None:
            why = _why_wrong(site.fit)
            if why is not None:
                raise ValueError(f"{site.path or 'the model'}: {why}")


def _why_wrong(fit: Fit) -> str | None:
    rows = fit.coefficients
    if not rows:
        return "a correction that is kept has coefficients" if fit.kept else None
    if len(rows) != len(NAMES) or len({len(row) for row in rows}) != 1 or not rows[0]:
        return f"coefficients are {len(NAMES)} rows of one length"
    found = dict(zip(NAMES, rows, strict=True))
    if any(value < 0 for name in ("a", "b", "c", "d", "top") for value in found[name]):
        return "a, b, c, d and top are not negative"
    if any(low > high for low, high in zip(found["low"], found["high"], strict=True)):
        return "low is at most high"
    return None


def _size(size: tuple[int, int] | None) -> str:
    return "–" if size is None else f"{size[0]}×{size[1]}"
