"""Sums of windows along a row, which are written in LLVM's words."""

from __future__ import annotations

import numpy as np
import pytest

from tlsc._statistics.numba.compiling import PADDING, compiled, padded, window_sums, window_sums_of_two


@compiled
def _both(values, squares, columns):  # type: ignore[no-untyped-def]
    width = values.shape[0]
    sources = padded(width), padded(width)
    sources[0][:width] = values
    sources[1][:width] = squares
    results = padded(width), padded(width), padded(width)
    window_sums(sources[0], columns, results[0])
    window_sums_of_two(sources[0], sources[1], columns, results[1], results[2])
    return results


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 64, 161])
def test_sums_of_windows(width: int) -> None:
    """Of whole numbers, so that the order of additions does not matter."""
    values = np.random.default_rng(width).integers(-1000, 1000, width).astype(float)
    for columns in {1, 2, min(width, 8), max(1, width // 3), max(1, width - 1), width} & set(range(1, width + 1)):
        expected, expected2 = (
            [sum(row[j : j + columns]) for j in range(width - columns + 1)]
            for row in (values.tolist(), (values * values).tolist())
        )
        alone, first, second = _both(values, values * values, columns)
        assert len(alone) == width + PADDING
        assert alone[: len(expected)].tolist() == expected
        assert first[: len(expected)].tolist() == expected
        assert second[: len(expected)].tolist() == expected2


@pytest.mark.parametrize("width", [1, 9, 64])
def test_a_row_begins_a_line_of_the_cache(width: int) -> None:
    row = padded(width)
    assert row.ctypes.data % 64 == 0
    assert row.tolist() == [0.0] * (width + PADDING)
