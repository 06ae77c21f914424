"""Running sums along a row, which are written in LLVM's words."""

from __future__ import annotations

import numpy as np
import pytest

from tlsc._statistics.numba.compiling import PADDING, compiled, padded, running_sums, running_sums_of_two


@compiled
def _both(values, squares):  # type: ignore[no-untyped-def]
    width = values.shape[0]
    sources = padded(width), padded(width)
    sources[0][:width] = values
    sources[1][:width] = squares
    results = padded(width), padded(width), padded(width)
    running_sums(sources[0], results[0])
    running_sums_of_two(sources[0], sources[1], results[1], results[2])
    return results


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 64, 161])
def test_running_sums(width: int) -> None:
    """Of whole numbers, so that the order of additions does not matter; the first is 0, and the last of all."""
    values = np.random.default_rng(width).integers(-1000, 1000, width).astype(float)
    expected, expected2 = [0.0], [0.0]
    for value in values:
        expected.append(expected[-1] + value)
        expected2.append(expected2[-1] + value * value)
    alone, first, second = _both(values, values * values)
    assert len(alone) == width + PADDING
    assert alone[: width + 1].tolist() == expected
    assert first[: width + 1].tolist() == expected
    assert second[: width + 1].tolist() == expected2


@pytest.mark.parametrize("width", [1, 9, 64])
def test_a_row_begins_a_line_of_the_cache(width: int) -> None:
    row = padded(width)
    assert row.ctypes.data % 64 == 0
    assert row.tolist() == [0.0] * (width + PADDING)
