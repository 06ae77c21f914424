"""Kernel of the sums that strips start from: of blocks of rows down each column, and of rows of first windows."""

from __future__ import annotations

import triton
import triton.language as tl

from .parts import aligned, padded, sample, window_start

__all__ = ["block_sums"]


@triton.jit
def block_sums(
    x, sums, planes, depth, height, width, groups, image_stride, channel_stride, row_stride, column_stride,
    size, count, tiles, channel_tiles, columns, behind, segments, programs,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, LAST: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    SEGMENT: tl.constexpr, FRONT: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Sums, and sums of squares, of ``size`` rows down every column, relative to the plane's sample.

    ``sums``: (1 or 2, N, K, count, W), or (1 or 2, N, count, W, K) where channels come last. ``programs`` a plane;
    those beyond its blocks sum up the heads of its rows (:func:`_heads`), which stand behind.
    """
    number = tl.program_id(0).to(tl.int64)
    heads = sums + padded((2 if MOMENTS else 1) * (number * 0 + planes) * count * width)
    plane, within = number // programs, (number % programs).to(tl.int32)
    tile, block = within % tiles, (within // tiles).to(tl.int64)
    lane = tl.arange(0, COLUMNS)
    row_step, channel_step = number * 0 + row_stride, number * 0 + channel_stride
    if ALIGN > 1:
        row_step, image_stride = aligned(row_step, ALIGN), aligned(image_stride, ALIGN)
        if LAST:
            groups, column_stride = aligned(groups, ALIGN), aligned(column_stride, ALIGN)
        else:
            channel_step = aligned(channel_step, ALIGN)
            width, columns = aligned(width, ALIGN), aligned(columns, ALIGN)
    if LAST:
        image = plane // channel_tiles
        j = (tile * COLUMNS + lane)[:, None]
        group = (((plane % channel_tiles) * CHANNELS).to(tl.int32) + tl.arange(0, CHANNELS))[None, :]
        out = sums + (image * count + block) * width * groups + j * groups + group
    else:
        image = plane // groups
        j = tile * COLUMNS + lane
        group = plane % groups
        out = sums + plane * count * width + block * width + j
    at = x + image * image_stride + group * (depth * channel_step)
    raw = sample(at, height // 2, height // 4, width, row_step, column_stride, group < groups, TYPE)
    shift = raw.to(TYPE)
    if within >= count * tiles:
        _heads(
            at, heads, image, group, within - count * tiles, planes, depth, height, width, groups, row_step,
            channel_step, column_stride, columns, behind, segments, raw, shift,
            TYPE, MOMENTS, LAST, SEGMENT, FRONT, ALIGN,
        )  # fmt: skip
    else:
        there = (group + j * 0 < groups) & (j < width)
        first = tl.where(there, 0.0, 0.0).to(TYPE)
        second = first
        for d in range(depth):
            column = at + d * channel_step + block * size * row_step + j * column_stride
            for r in tl.range(0, tl.minimum(size, height - block * size).to(tl.int32), loop_unroll_factor=8):
                value = tl.load(column + r * row_step, mask=there, other=raw).to(TYPE) - shift
                first += value
                if MOMENTS:
                    second += value * value
        tl.store(out, first, mask=there)
        if MOMENTS:
            tl.store(out + (number * 0 + planes) * count * width, second, mask=there)


@triton.jit
def _heads(
    at, heads, image, group, within, planes, depth, height, width, groups, row_step, channel_step, column_stride,
    columns, behind, segments, raw, shift,
    TYPE: tl.constexpr, MOMENTS: tl.constexpr, LAST: tl.constexpr, SEGMENT: tl.constexpr, FRONT: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """What sixteen rows add to the first window of a segment.

    ``heads``: (1 or 2, N, K, segments, H), or (1 or 2, N, segments, H, K) where channels come last.
    """
    segment, block = within % segments, within // segments
    start = window_start(segment * SEGMENT, behind, width - columns)
    if ALIGN > 1 and not LAST:
        start = aligned(start, ALIGN)
    whole = (image * 0 + planes) * segments * height
    if LAST:
        lane = tl.arange(0, 64)[:, None]
        known = group + lane * 0 < groups
        for r in range(block * 16, tl.minimum(block * 16 + 16, height)):
            first = tl.where(known, 0.0, 0.0).to(TYPE)
            second = first
            for d in range(depth):
                row = at + d * channel_step + r * row_step
                for c in range(0, columns, 64):
                    there = known & (c + lane < columns)
                    place = row + (start + c + lane) * column_stride
                    value = tl.load(place, mask=there, other=raw).to(TYPE) - shift
                    first += value
                    if MOMENTS:
                        second += value * value
            out = heads + ((image * segments + segment) * height + r) * groups + group
            tl.store(out, tl.sum(first, 0, keep_dims=True), mask=group < groups)
            if MOMENTS:
                tl.store(out + whole, tl.sum(second, 0, keep_dims=True), mask=group < groups)
    else:
        lane = tl.arange(0, FRONT)[None, :]
        line = block * 16 + tl.arange(0, 16)
        r = line[:, None]
        first = tl.zeros([16, FRONT], TYPE)
        second = first
        for d in range(depth):
            row = at + d * channel_step + r * row_step
            for c in range(0, columns, FRONT):
                there = (c + lane < columns) & (r < height)
                value = tl.load(row + (start + c + lane) * column_stride, mask=there, other=raw).to(TYPE) - shift
                first += value
                if MOMENTS:
                    second += value * value
        out = heads + ((image * groups + group) * segments + segment) * height + line
        tl.store(out, tl.sum(first, 1), mask=line < height)
        if MOMENTS:
            tl.store(out + whole, tl.sum(second, 1), mask=line < height)
