"""One correction formula: tensors, NumPy's arrays and every back end give what the loops of this file give."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import tlsc
from tlsc._statistics import operations
from tlsc._statistics.correction import NAMES, NOTHING, Correction, corrected_mean, corrected_var, weakened

# Limits that are met and not, negative means, a variance that would become negative, NaN.
ROWS = [
    dict(zip(NAMES, row, strict=True))
    for row in (
        NOTHING,
        (1.5, 0.2, 0.3, 0.8, -0.1, 0.6, -0.5, 0.5),
        (0.1, -9.0, 0.0, 1.0, 0.0, math.inf, -math.inf, math.inf),
        (2.0, 0.0, 0.5, 2.0, 1.0, 0.1, 1.0, 2.0),
    )
]
STATISTICS = [(0.5, 0.2), (0.7, -3.0), (0.0, 3.0), (2.5, -0.5), (math.nan, 0.3), (0.3, math.nan)]


def _naively(row: dict[str, float], var: float, mean: float, share: float) -> tuple[float, float]:
    m = mean if math.isnan(mean) else min(max(mean, row["low"]), row["high"])
    v = var if math.isnan(var) else min(var, row["top"])
    new = var + share * ((row["a"] - 1) * v + row["b"] + row["c"] * m * m)
    return (new if math.isnan(new) else max(new, 0.0)), mean + share * ((row["d"] - 1) * m + row["e"])


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_the_formula_is_the_definition(share: float) -> None:
    rows = np.array([[row[name] for row in ROWS] for name in NAMES])
    for var, mean in STATISTICS:
        expected = np.array([_naively(row, var, mean, share) for row in ROWS])
        vars_, means = np.full(len(ROWS), var), np.full(len(ROWS), mean)
        np.testing.assert_allclose(corrected_var(np, rows, vars_, means, share), expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(corrected_mean(np, rows, means, share), expected[:, 1], rtol=1e-12)
        as_map = [torch.tensor(a).reshape(-1, 1, 1) for a in (vars_, means)]
        correction, w = Correction(torch.tensor(rows)), torch.tensor([[share]])
        np.testing.assert_allclose(correction.var_of(*as_map, w).flatten(), expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(correction.mean_of(as_map[1], w).flatten(), expected[:, 1], rtol=1e-12)


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_back_ends_correct_windows_by_the_formula(name: str) -> None:
    """Windows of one row that touch no end of the map, NaN and negative means among them."""
    x = torch.randn(1, len(ROWS), 1, 12, generator=torch.Generator().manual_seed(0)).double() - 0.3
    x[..., 9] = math.nan
    correction = Correction(torch.tensor([[row[n] for row in ROWS] for n in NAMES], dtype=torch.float64))
    with tlsc.backend(name):
        var, mean = operations.grid_moments(x, (1, 3), 1, correction)
    for c, row in enumerate(ROWS):
        for start in range(1, 9):
            window = x[0, c, 0, start : start + 3].tolist()
            centre = sum(window) / 3
            # The ends of the one-row map are touched above and below: of the outline, 2·(1 + 3), 6 lie there.
            wanted = _naively(row, sum((v - centre) ** 2 for v in window) / 3, centre, 0.25)
            found = var[0, c, 0, start].item(), mean[0, c, 0, start].item()
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_weakened_moves_statistics_by_a_part_of_the_way(strength: float) -> None:
    for row in (ROWS[1], ROWS[3]):
        weak = dict(
            zip(NAMES, (one[0] for one in weakened([[row[name]] for name in NAMES], strength)), strict=True)
        )
        for var, mean in STATISTICS[:4]:
            whole = _naively(row, var, mean, 1.0)
            expected = [a + strength * (b - a) for a, b in zip((var, mean), whole, strict=True)]
            np.testing.assert_allclose(_naively(weak, var, mean, 1.0), expected, rtol=1e-12)


def test_rows_are_one_tensor_that_calls_hand_on() -> None:
    correction = Correction.of(*torch.rand(8, 3).unbind())
    assert correction.on(torch.device("cpu")) is correction.rows
    for n, name in enumerate(NAMES):
        assert torch.equal(getattr(correction, name), correction.rows[n])
    elsewhere = correction.on(torch.device("meta"))
    assert correction.on(torch.device("meta")) is elsewhere  # copied once
    for copied in (copy.deepcopy(correction), pickle.loads(pickle.dumps(correction))):
        assert torch.equal(copied.rows, correction.rows)
        assert copied._elsewhere == {}


def test_the_coefficients_of_a_batch_are_those_of_each_image_in_turn() -> None:
    rows = torch.rand(len(NAMES), 3)
    assert torch.equal(Correction(rows).per_plane(2).rows, torch.cat([rows, rows], 1))
