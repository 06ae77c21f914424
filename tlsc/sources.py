"""Where the sites of a converted model take their statistics from: ``tlsc.convert(model, 384, source=…)``.

By name, or one of these with its options, ``source=sources.Table(kernel=5)``.
"""

from __future__ import annotations

from ._sources.centres import Centres
from ._sources.crops import Crops
from ._sources.map import Map
from ._sources.source import Source
from ._sources.table import Table
from ._sources.thumbnail import Thumbnail
from ._sources.tile import Tile
from ._sources.window import Window

__all__ = ["Centres", "Crops", "Map", "Source", "Table", "Thumbnail", "Tile", "Window"]
