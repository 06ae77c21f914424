"""What ``tlsc inspect`` prints: what was recognised of a network, and its plan with similar sites in one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from tlsc import Plan, Site
from tlsc.adapters import Descriptor
from tlsc.eval.networks import Network
from tlsc.eval.show.similar import end_of, in_groups, pattern

__all__ = ["plan_table", "recognised", "recognised_table"]


def recognised(network: Network, name: str, crop: int | None = None) -> dict[str, Any]:
    """What is known of a network and how it is known, ready for JSON.

    Args:
        network: as loaded.
        name: that the user gave.
        crop: that the user gave, if any.

    Example:
        >>> from tlsc.eval.networks import load_network
        >>> found = recognised(load_network("se"), "se")
        >>> found["architecture"], found["crop"], found["window"]
        ('UNet', 64, 96)
    """
    known = getattr(network.model, "tlsc", None)
    if not isinstance(known, Descriptor):
        known = Descriptor(type(network.model).__name__, source=type(network.model).__module__)
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    given = "as given by --crop"
    return {
        "name": name,
        "architecture": known.architecture,
        "source": known.source,
        "parameters": parameters,
        "weights": known.origin.get("weights", ""),
        "settings": dict(known.settings),
        "task": known.task,
        "task_from": known.origin.get("task", "") if known.task else "",
        "scale": network.scale,
        "channels": network.channels,
        "sizes": _sizes(known),
        "crop": network.crop,
        "crop_from": given if crop is not None else known.origin.get("crop", ""),
        "window": network.base_size,
    }


def _sizes(known: Descriptor) -> str:
    padding = known.padding
    parts = [
        f"multiples of {padding.multiple}" if padding.multiple > 1 else "any",
        *([f"at least {padding.minimum}"] if padding.minimum > 1 else []),
        *(["square"] if padding.square else []),
    ]
    said = ", ".join(parts)
    if said == "any":
        return said
    return f"{said} ({'it pads by itself' if padding.inside else 'images are padded'})"


def recognised_table(facts: dict[str, Any]) -> str:
    """The facts of :func:`recognised`, one a line; what is not known is left out or said to be unknown."""

    def with_source(value: str, source: str) -> str:
        return f"{value} ({source})" if source else value

    settings = ", ".join(f"{key}={_setting(value)}" for key, value in facts["settings"].items())
    window = facts["window"]
    rows = [
        ("architecture", with_source(facts["architecture"], f"code of {facts['source']}")),
        ("settings", settings),
        ("weights", with_source(f"{facts['parameters']:,} parameters", facts["weights"])),
        ("task", with_source(facts["task"], facts["task_from"]) if facts["task"] else ""),
        ("images", f"{facts['channels']} channels, scale {facts['scale']}, sizes: {facts['sizes']}"),
        ("training crop", with_source(str(facts["crop"]), facts["crop_from"]) if facts["crop"] else "not known"),
        ("window", f"{window}: 1.5 times the training crop" if window else "none recommended: give --base-size"),
    ]
    return str(tabulate([row for row in rows if row[1]], tablefmt="plain", maxcolwidths=[None, 96]))


def _setting(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, (list, tuple)) else str(value)


# -------------------------------------------------------------------------------------------------------- plan


def plan_table(plan: Plan, every: bool = False) -> str:
    """A plan as a table: its head as in ``str(plan)``, similar sites in one row, no column that is empty.

    Args:
        plan: what to print.
        every: a row for every site.

    Example:
        >>> from torch import nn
        >>> import tlsc
        >>> blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)) for _ in range(6)))
        >>> print(plan_table(tlsc.plan(blocks, 64)))
        base_size 64×64, stride 1: 6 of 6 sites become local
        <BLANKLINE>
        path     operation       feature size    window    action
        -------  --------------  --------------  --------  --------
        6 × *.1  InstanceNorm2d  64×64           64×64     exact
    """
    head = str(plan).partition("\n\n")[0]
    if every or not plan.sites:
        return str(plan)
    ordered = [_row(sites) for sites in in_groups(plan, _likeness)]
    names = ["path", "operation", "feature size", "window", "action", "reason"]
    kept = [number for number in range(len(names)) if any(row[number] for row in ordered)]
    table = tabulate(
        [[row[number] for number in kept] for row in ordered],
        headers=[names[number] for number in kept],
        disable_numparse=True,
        maxcolwidths=[64 if names[number] == "reason" else None for number in kept],
    )
    return head + "\n\n" + "\n".join(line.rstrip() for line in table.splitlines())


def _likeness(site: Site) -> Any:
    """What similar sites have in common: all but their places and sizes; the end of the path says what they are."""
    fitted = None if site.fit is None else site.fit.kept
    return site.operation, site.action, _unnumbered(site.reason), end_of(site.path), len(site.aliases), fitted


def _unnumbered(text: str) -> str:
    return re.sub(r"\S*\d\S*", "#", text)


def _row(sites: Sequence[Site]) -> tuple[str, ...]:
    one = sites[0]
    paths = [",\n".join(path or "(the model)" for path in (site.path, *site.aliases)) for site in sites]
    path = paths[0] if len(sites) == 1 else f"{len(sites)} × {pattern([site.path for site in sites])}"
    reason = one.reason or (f"not corrected: {one.fit.reason}" if one.fit is not None and one.fit.reason else "")
    return (
        path,
        one.operation,
        _range([site.feature_size for site in sites]),
        _range([site.window for site in sites]),
        one.action,
        reason,
    )


def _range(sizes: Sequence[tuple[int, int] | None]) -> str:
    """``96×96``, or from the smallest to the largest; nothing where there is none."""
    known = sorted({size for size in sizes if size is not None}, key=lambda size: size[0] * size[1])
    shown = [f"{height}×{width}" for height, width in known]
    return " to ".join(dict.fromkeys([*shown[:1], *shown[-1:]]))
