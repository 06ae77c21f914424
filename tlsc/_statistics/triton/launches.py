"""How kernels are launched: over how many programs, how large each, and what that moves. Numbers only, no tensors.

All of it follows from sizes and is worked out once for each: a call costs a look-up. The figures are reasoned from
bytes moved and from registers of the compiled kernels (``tests/statistics/test_triton_compile.py``); see
``python -m benchmarks gpu`` for times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..._windows import before

__all__ = ["Cells", "Strips", "Tiles", "cells", "strips", "tiles"]

# Warps that keep an H100 busy where each has rows enough: 8 on each of its 132 processors.
BUSY = 132 * 8
# Elements of a thread; warps, and positions, of a program; where channels come last, positions × channels.
PER_THREAD, MOST_WARPS, MOST_COLUMNS, MOST_COLUMNS_LAST = 8, 16, 256, 2048
# Positions that a program works on at once, in several rows where these are short; no more rows than that.
TOGETHER, MOST_TOGETHER = 512, 8
# Channels that are taken together where they are neighbours: a sector of half types, 32 bytes.
NEIGHBOURS = 16
# Rows of a strip that adds up the rows of its first window itself; and of one that starts from sums of blocks: the
# fewer, the shorter it takes to start, and planes then follow each other through the cache.
FEWEST_ROWS, MOST_ROWS, FEWEST_BLOCKED, MOST_BLOCKED = 8, 128, 16, 32
# Up to this window a strip adds the rows of its first window itself; a launch costs more.
DIRECT = 64
# Columns of a first window that are added up at once, where that has programs of its own.
HEAD = 128
# Up to so many positions a program has registers enough to repair its own strip.
ALONE = 128


def _power(n: int) -> int:
    """The power of two from ``n`` on."""
    return 1 << max(0, n - 1).bit_length()


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Strips:
    """Launches of exact statistics: :func:`.sums.block_sums`, where ``size`` is not 0, and one pass."""

    columns: int
    front: int  # columns of the first window that are read at once
    rows: int  # rows that are worked on at once
    channels: int
    one: bool
    segments: int
    channel_tiles: int
    strips: int
    strip: int
    warps: int
    programs: int
    stages: tuple[str, ...]  # of the pass: with its repair inside, or a launch of its own for that
    # Of the sums of blocks.
    size: int
    count: int
    block_columns: int
    block_channels: int
    tiles: int
    block_channel_tiles: int
    block_programs: int
    per_plane: int
    head: int  # columns of a first window that are added up at once


@lru_cache(maxsize=4096)
def strips(
    images: int,
    groups: int,
    depth: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
    windows: bool,
    last: bool,
) -> Strips:
    """For planes (images, groups, depth, height, width) and a window (rows, columns) inside them.

    Args:
        windows: the result is one value a window, not one a position.
        last: channels are neighbours in memory.
    """
    out_height, out_width = (height - rows + 1, width - columns + 1) if windows else (height, width)
    channels = min(NEIGHBOURS, _power(groups)) if last else 1
    most = MOST_COLUMNS_LAST // channels if last else MOST_COLUMNS
    lanes = min(most, _power(max(out_width, columns)))
    segments = _ceil(out_width, lanes)
    warps = max(1, min(MOST_WARPS, lanes * channels // (32 * PER_THREAD)))
    channel_tiles = _ceil(groups, channels)
    planes = images * (channel_tiles if last else groups)
    direct = rows <= DIRECT
    one = direct and segments == 1 and columns <= lanes
    strip = _strip(planes * segments * out_height * warps, rows, direct)
    above = 0 if windows else before(rows)
    count = _ceil(out_height + (strip - above % strip) % strip, strip) if not windows else _ceil(out_height, strip)
    size = 0 if direct else 32 if strip % 32 == rows % 32 == 0 else 16
    together = max(1, min(MOST_TOGETHER, TOGETHER // lanes)) if one and not last else 1
    front = lanes if one else min(lanes, _power(columns))
    return Strips(
        lanes, front, together, channels, one, segments, channel_tiles, count, strip, warps,
        planes * count * segments,
        ("only",) if lanes * channels <= ALONE else ("first", "repair"),
        size, *_blocks(images, groups, height, width, size, segments, last), min(HEAD, _power(columns)),
    )  # fmt: skip


def _blocks(
    images: int, groups: int, height: int, width: int, size: int, segments: int, last: bool
) -> tuple[int, int, int, int, int, int, int]:
    """Of the sums of blocks of ``size`` rows, with those of first windows for each of ``segments``."""
    count = _ceil(height, size) if size else 1
    channels = min(32, _power(groups)) if last else 1
    columns = min(1024 // channels, _power(width))
    tiles, channel_tiles = _ceil(width, columns), _ceil(groups, channels)
    programs = count * tiles + segments * _ceil(height, 16)
    planes = images * (channel_tiles if last else groups)
    return count, columns, channels, tiles, channel_tiles, planes * programs, programs


def _strip(work: int, window_rows: int, direct: bool) -> int:
    """Rows of a strip: few programs do not fill the GPU, and many short strips start too often.

    Args:
        work: rows of all planes, times the warps of each.
        direct: a strip adds up its first window itself.
    """
    even = _ceil(work, BUSY)
    if direct:
        return _ceil(min(MOST_ROWS, max(FEWEST_ROWS, even)), 8) * 8
    most = min(MOST_BLOCKED, window_rows // 12 // 16 * 16)
    return max(FEWEST_BLOCKED, min(most, _ceil(even, 16) * 16))


@dataclass(frozen=True)
class _Axis:
    """An axis of ``n`` cut into cells at every place where an evaluated window may begin or end."""

    parts: int  # cells of a block of one stride
    cut: int  # where, inside a block
    cut2: int
    blocks: int
    length: int  # cells of a window that starts with a block
    last: int  # the first cell of the last window
    count: int  # windows


def _axis(n: int, k: int, stride: int) -> _Axis:
    rest, offset = k % stride, (n - k) % stride
    cuts = sorted({rest, offset} - {0})
    parts = len(cuts) + 1
    cut, cut2 = (*cuts, stride, stride)[:2]
    at = {0: 0, **{place: i + 1 for i, place in enumerate(cuts)}}
    length = k // stride * parts + at[rest]
    last = (n - k) // stride * parts + at[offset]
    return _Axis(parts, cut, cut2, _ceil(n, stride), length, last, _ceil(n - k, stride) + 1)


@dataclass(frozen=True)
class Cells:
    """Launches of strided statistics: :func:`.grid_kernels.cell_sums` and :func:`.grid_kernels.grid_statistics`."""

    down: _Axis
    across: _Axis
    span: int
    blocks: int
    channels: int
    tiles: int
    channel_tiles: int
    programs: int
    lanes: int
    warps: int
    grid_programs: int


@lru_cache(maxsize=4096)
def cells(
    images: int, groups: int, height: int, width: int, rows: int, columns: int, stride: int, last: bool
) -> Cells:
    """For planes (images, groups, …, height, width), a window (rows, columns) inside them, every ``stride``."""
    down, across = _axis(height, rows, stride), _axis(width, columns, stride)
    span = _power(stride)
    channels = min(32, _power(groups)) if last else 1
    blocks = max(1, min(1024 // (channels if last else span), _power(across.blocks)))
    tiles = _ceil(across.blocks, blocks)
    channel_tiles = _ceil(groups, channels)
    planes = images * (channel_tiles if last else groups)
    lanes = _power(across.blocks * across.parts)
    warps = max(1, min(16, lanes // 64))
    return Cells(
        down, across, span, blocks, channels, tiles, channel_tiles, planes * down.blocks * tiles, lanes, warps,
        images * groups * down.count,
    )  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """The launch of :func:`.grid_kernels.place`."""

    rows: int
    columns: int
    channels: int
    row_tiles: int
    tiles: int
    channel_tiles: int
    programs: int
    warps: int


@lru_cache(maxsize=4096)
def tiles(
    images: int, channels: int, height: int, width: int, window_rows: int, stride: int, size: int, last: bool
) -> Tiles:
    """For a map (images, channels, height, width) of elements of ``size`` bytes; windows every ``stride``."""
    together = min(32, _power(channels)) if last else 1
    wide = min(MOST_COLUMNS * 8 // together if last else MOST_COLUMNS, _power(width))
    # Rows between two evaluated windows, the first of them where windows begin to move.
    tall = stride if stride > 1 else FEWEST_ROWS
    offset = (stride - before(window_rows) % stride) % stride if stride > 1 else 0
    channel_tiles = _ceil(channels, together)
    planes = images * (channel_tiles if last else channels)
    row_tiles, across = _ceil(height + offset, tall), _ceil(width, wide)
    warps = max(1, min(8, wide * together * size // (32 * 16)))
    return Tiles(tall, wide, together, row_tiles, across, channel_tiles, planes * row_tiles * across, warps)
