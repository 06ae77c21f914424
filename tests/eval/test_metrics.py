"""PSNR and SSIM against BasicSR's, scikit-image's and a naive loop's."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tlsc.eval.images import read_image
from tlsc.eval.images.photographs import load_photograph
from tlsc.eval.judge.metrics import NotFiniteError, Protocol, Scorer, lpips_metric, score

RNG = np.random.default_rng(0)


def _photograph(height: int, width: int) -> NDArray[np.uint8]:
    return np.rint(load_photograph("chelsea")[40 : 40 + height, 60 : 60 + width] * 255).astype(np.uint8)


def _cases() -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    """Results in [0, 1] (a little beyond where noisy) and their targets; odd sizes."""
    for height, width in ((61, 83), (11, 12), (300, 41)):
        target = _photograph(height, width)
        clean = target.astype(np.float32) / np.float32(255)
        yield f"noisy {height}x{width}", clean + RNG.normal(0, 0.2, clean.shape).astype(np.float32), target
        yield f"blurred {height}x{width}", (clean + np.roll(clean, 1, 0)) / 2, target
    target = _photograph(41, 43)
    clean = target.astype(np.float32) / np.float32(255)
    yield "identical", clean, target
    yield "black", np.zeros_like(clean), target
    yield "black, identical", np.zeros_like(clean), np.zeros_like(target)
    nearly = clean.copy()
    nearly[7, 9, 2] += np.float32(1 / 255)
    yield "one value off by one", nearly, target


CASES = {name: (result, target) for name, result, target in _cases()}


def _rounded(result: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (result.clip(0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def basicsr() -> Any:
    """BasicSR's own module of metrics."""
    if importlib.util.find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    import tlsc.adapters.basicsr  # noqa: F401  # makes BasicSR importable with current torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from basicsr.metrics import psnr_ssim
    return psnr_ssim


# SSIM needs 11 pixels.
FITTING = [
    (case, border) for case in CASES for border in (0, 4) if 2 * border + 11 <= min(CASES[case][1].shape[:2])
]


@pytest.mark.parametrize("luma", [False, True], ids=["colour", "y"])
@pytest.mark.parametrize(("case", "border"), FITTING)
def test_figures_equal_basicsr(basicsr: Any, case: str, luma: bool, border: int) -> None:
    result, target = CASES[case]
    figures = score(result, target, Protocol("y-uint8" if luma else "rgb-uint8", border))
    images = _rounded(result)[..., ::-1], target[..., ::-1]  # BasicSR has BGR
    assert figures.psnr == pytest.approx(
        basicsr.calculate_psnr(*images, border, test_y_channel=luma), abs=1e-6, rel=0
    )
    assert figures.ssim == pytest.approx(
        basicsr.calculate_ssim(*images, border, test_y_channel=luma), abs=1e-6, rel=0
    )


def _scikit(one: NDArray[Any], two: NDArray[Any], data_range: float) -> tuple[float, float]:
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(two, one, data_range=data_range)
    ssim = structural_similarity(
        one,
        two,
        data_range=data_range,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(psnr), float(ssim)


@pytest.mark.parametrize("name", ["rgb-uint8", "rgb-float"])
@pytest.mark.parametrize(("case", "border"), FITTING)
def test_figures_equal_scikit_image(case: str, name: str, border: int) -> None:
    result, target = CASES[case]
    inside = (slice(border, -border or None),) * 2
    if name == "rgb-uint8":
        psnr, ssim = _scikit(_rounded(result)[inside].astype(float), target[inside].astype(float), 255)
    else:
        psnr, ssim = _scikit(result.clip(0, 1)[inside].astype(float), target[inside] / 255, 1)
    figures = score(result, target, Protocol(name, border))
    assert figures.psnr == pytest.approx(psnr, abs=1e-6, rel=0)
    assert figures.ssim == pytest.approx(ssim, abs=1e-6, rel=0)


@pytest.mark.parametrize("name", ["rgb-uint8", "rgb-float"])
def test_sixteen_bit(tmp_path: Path, name: str) -> None:
    """A 16-bit target from a file: rounded to 8 bit by the first protocol, taken as it is by the second."""
    tifffile = pytest.importorskip("tifffile")
    target = RNG.integers(0, 65536, (37, 45, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", target)
    result = (target / 65535 + RNG.normal(0, 0.01, target.shape)).clip(0, 1).astype(np.float32)
    figures = score(result, read_image(tmp_path / "a.tif"), Protocol(name))
    if name == "rgb-uint8":
        psnr, ssim = _scikit(_rounded(result).astype(float), np.rint(target / 257), 255)
    else:
        psnr, ssim = _scikit(result.astype(float) * 65535, target.astype(float), 65535)
    assert figures.psnr == pytest.approx(psnr, abs=1e-6, rel=0)
    assert figures.ssim == pytest.approx(ssim, abs=1e-6, rel=0)
    exact = score(target, target, Protocol(name))
    assert exact.psnr == math.inf
    assert exact.ssim == pytest.approx(1)


def _reference_ssim(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Equation 13 of Wang et al. 2004, window by window, in float64; one channel, range 255."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / np.outer(taps, taps).sum()
    values = []
    for y in range(one.shape[0] - 10):
        for x in range(one.shape[1] - 10):
            a, b = (image[y : y + 11, x : x + 11].astype(np.float64) for image in (one, two))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_equals_its_definition() -> None:
    one, two = (RNG.integers(0, 256, (17, 23, 1), dtype=np.uint8) for _ in range(2))
    assert score(one, two).ssim == pytest.approx(_reference_ssim(one[..., 0], two[..., 0]), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), border=st.integers(0, 6))
def test_bands_give_what_the_whole_gives(cuts: list[int], border: int) -> None:
    result, target = CASES["noisy 61x83"]
    scorer = Scorer(Protocol("rgb-float", border), *target.shape[:2])
    edges = [0, *sorted(cuts), len(target)]
    for top, bottom in itertools.pairwise(edges):
        scorer.add(result[top:bottom], target[top:bottom])
    whole = score(result, target, Protocol("rgb-float", border))
    assert scorer.figures().psnr == pytest.approx(whole.psnr, abs=1e-9)
    assert scorer.figures().ssim == pytest.approx(whole.ssim, abs=1e-9)


def test_more_rows_than_a_band() -> None:
    one, two = (RNG.integers(0, 256, (600, 16, 1), dtype=np.uint8) for _ in range(2))
    psnr, ssim = _scikit(one.astype(float), two.astype(float), 255)
    assert score(one, two).psnr == pytest.approx(psnr, abs=1e-9)
    assert score(one, two).ssim == pytest.approx(ssim, abs=1e-9)


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    small = np.zeros((10, 40, 3), np.uint8)
    assert math.isnan(score(small, small).ssim)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite_have_no_figures(bad: float) -> None:
    result = np.zeros((20, 20, 3), np.float32)
    result[3, 4, 1] = bad
    with pytest.raises(NotFiniteError, match="1 NaN or Inf in rows 0 to 19"):
        score(result, np.zeros((20, 20, 3), np.uint8))


def test_what_cannot_be_compared() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="border 10 leaves nothing of 20×20"):
        score(image, image, Protocol(crop_border=10))
    with pytest.raises(ValueError, match="no protocol 'psnr'"):
        Protocol("psnr")
    with pytest.raises(ValueError, match=r"\(20, 20, 3\) and \(20, 19, 3\)"):
        score(image, image[:, 1:])


def test_lpips_comes_from_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network gets RGB in [0, 1] as (1, 3, H, W), result first; without pyiqa an error says how to get it."""
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match="pip install pyiqa"):
        lpips_metric("cpu")
    asked = []

    def create_metric(name: str, device: Any) -> Any:
        asked.append((name, device))
        return lambda result, target: (result - 2 * target).mean()

    stand_in = types.ModuleType("pyiqa")
    stand_in.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", stand_in)
    measured = lpips_metric("cpu")
    white = np.full((12, 13, 3), 255, np.uint8)
    assert measured(np.full((12, 13, 3), 1.5, np.float32), white) == pytest.approx(-1)
    assert asked == [("lpips", "cpu")]
