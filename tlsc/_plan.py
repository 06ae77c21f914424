"""What will be done to a model, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Action", "Plan", "Site"]

Action = Literal["exact", "strided", "left global", "left alone"]


@dataclass(frozen=True)
class Site:
    """One place in a model that aggregates over all spatial positions, and what is done about it.

    Attributes:
        path: where it is, as in ``model.named_modules()``; empty for the model itself.
        operation: what it computes, by the name of the PyTorch layer.
        feature_size: (height, width) of its map when the input is ``base_size``; None if it was not reached.
        window: (height, width) of its window in pixels of its map; None if it is left.
        action: ``exact`` or ``strided`` where it becomes local; ``left global`` where it stays as it is, and
            ``left alone`` where it was not global in the first place.
        reason: why it is left; empty otherwise.
        owner: path of the module whose forward is rewritten for it, with all that follows the statistic until its
            result meets the map again; None where the site's own module is replaced.
        aliases: further paths under which the same place is found.
    """

    path: str
    operation: str
    feature_size: tuple[int, int] | None
    window: tuple[int, int] | None
    action: Action
    reason: str = ""
    aliases: tuple[str, ...] = ()
    owner: str | None = None

    @property
    def converted(self) -> bool:
        """Whether the site becomes local."""
        return self.action in ("exact", "strided")


@dataclass(frozen=True)
class Plan:
    """The sites of a model in the order in which a forward pass reaches them; prints as a table.

    Attributes:
        base_size: (height, width) at the model's input, in pixels.
        stride: grid on which local means are evaluated; 1 is exact.
        sites: one :class:`Site` each.

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

    def __str__(self) -> str:
        from tabulate import tabulate

        noun, verb = ("site", "becomes") if len(self.sites) == 1 else ("sites", "become")
        head = (
            f"base_size {_size(self.base_size)}, stride {self.stride}: "
            f"{len(self.converted)} of {len(self.sites)} {noun} {verb} local"
        )
        if not self.sites:
            return head
        rows = [
            (
                ",\n".join(path or "(the model)" for path in (site.path, *site.aliases)),
                site.operation,
                _size(site.feature_size),
                _size(site.window),
                site.action,
                site.reason,
            )
            for site in self.sites
        ]
        names = ["path", "operation", "feature size", "window", "action", "reason"]
        table = tabulate(rows, headers=names, disable_numparse=True, maxcolwidths=[*[None] * 5, 64])
        return head + "\n\n" + "\n".join(line.rstrip() for line in table.splitlines())


def _size(size: tuple[int, int] | None) -> str:
    return "–" if size is None else f"{size[0]}×{size[1]}"
