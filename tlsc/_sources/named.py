"""The sources by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._arguments import shown
from ..errors import ArgumentTypeError, ArgumentValueError
from .centres import Centres
from .crops import Crops
from .map import Map
from .source import Source
from .table import Table
from .thumbnail import Thumbnail
from .tile import Tile
from .window import Window

__all__ = ["NAMES", "as_source"]

NAMES: dict[str, type[Source]] = {kind.name: kind for kind in (Window, Map, Tile, Table, Centres, Thumbnail, Crops)}


def as_source(value: Any) -> Source:
    """A source, or that of a name with its usual options.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is neither; its options contradict each other.
    """
    if isinstance(value, Source):
        given = replace(value)
    elif not isinstance(value, str):
        raise ArgumentTypeError(
            f"source must be a name ({', '.join(NAMES)}) or one of tlsc.sources, got {shown(value)}"
        )
    elif value not in NAMES:
        raise ArgumentValueError(f"source must be one of {', '.join(NAMES)}, got {shown(value)}")
    else:
        given = NAMES[value]()
    if type(given) in (Window, Map) and given.own_padding:
        raise ArgumentValueError(f"source {given.name}: only tiles have a padding of their own")
    if type(given) in (Thumbnail, Crops) and not given.own_padding:
        raise ArgumentValueError(f"source {given.name}: it is a first pass by itself, own_padding cannot be False")
    if given.keep and not given.own_padding:
        raise ArgumentValueError(f"source {given.name}: there is no first pass whose statistics could be kept")
    return given
