"""Calibrated statistics: the fit against SciPy, a ring known in closed form, guards, invariants, files."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

import tlsc
from tlsc._calibration import fit as _fit
from tlsc._calibration.choice import chosen, without_harm
from tlsc._calibration.distance import Distance
from tlsc._calibration.runs import Run
from tlsc._internal.statistics import weakened
from tlsc.adapters import load_demo_network
from tlsc.eval.data.degradations import degrade_photograph

BASE = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class MeanStd(nn.Module):
    """Attention by the mean and the standard deviation over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True, correction=0)
        return x * torch.sigmoid(self.mix(torch.cat([mean, std], 1)))


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.instance_norm(x, eps=1e-3)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)  # type: ignore[no-any-return]


SITES = {
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "squeeze-excitation": lambda: SqueezeExcitation(8),
    "mean and std": lambda: MeanStd(8),
    "inside a forward": lambda: Functional(),
}


def network(site: str = "instance norm", seed: int = 0) -> nn.Module:
    """Two convolutions with a bias, so that their ring of zeros shows, and a site behind each."""
    torch.manual_seed(seed)
    make = SITES[site]
    layers = (nn.Conv2d(3, 8, 3, padding=1), make(), nn.LeakyReLU(), nn.Conv2d(8, 8, 3, padding=1), make())
    model = nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1)).double().eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                layer.bias += torch.randn_like(layer.bias)
    return model


def images(count: int = 2, size: int = 96, seed: int = 1) -> Tensor:
    """Smooth fields with noise: statistics differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return smooth + 0.1 * smooth * torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def fits(plan: tlsc.Plan) -> list[Any]:
    return [site.fit for site in plan]


# ------------------------------------------------------------------------------------------------------ the fit


@pytest.mark.parametrize("levels", [(0.2, 0.9), (-1.0, 2.0)])
def test_a_ring_known_in_closed_form(levels: tuple[float, float]) -> None:
    """A 3×3 box blur with zero padding on a constant crop of side n: the 4(n−2) pixels of an edge keep 2/3 of the
    level L, the 4 corners 4/9, the others L. Inside a whole image the variance is 0 and the mean L.
    """
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.InstanceNorm2d(1, eps=1e-3)).double()
    with torch.no_grad():
        model[0].weight.fill_(1 / 9)
    n = BASE
    values = np.array([1.0] * (n - 2) ** 2 + [2 / 3] * 4 * (n - 2) + [4 / 9] * 4)
    low, high = levels
    given = [torch.full((1, 72, 72), float(level), dtype=torch.float64) for level in np.linspace(low, high, 9)]
    plan = tlsc.calibrate(tlsc.convert(model, n), given)
    fit = plan[0].fit
    assert fit is not None
    assert fit.kept
    _, b, c, d, e, _, _, _ = (row[0] for row in fit.coefficients)
    level = np.linspace(low, high, 40)
    level = level[np.abs(level) > 0.2]
    np.testing.assert_allclose(b + c * level**2, values.var() * level**2, rtol=0.06)
    np.testing.assert_allclose(d * level + e, values.mean() * level, rtol=0.01)
    assert fit.after < 0.3 * fit.before
    # And so a flat image comes out as the middle of a flat crop does.
    probe = torch.full((1, 1, 72, 72), (low + high) / 2, dtype=torch.float64)
    with torch.no_grad():
        inside = model(probe)[0, 0, 36, 36]
        crop = tlsc.revert(model)(probe[..., :n, :n])[0, 0, n // 2, n // 2]
    assert abs(float(inside - crop)) < 0.05 * abs(float(crop))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    crops=st.integers(8, 60),
    size=st.floats(-6, 6),
    mean=st.sampled_from([0.0, 1.0, 1e3]),
    independent=st.floats(4, 100),
)
def test_the_fit_is_the_best_within_bounds(
    seed: int, crops: int, size: float, mean: float, independent: float
) -> None:
    """Against SciPy's bounded least squares, channel by channel; bounded, and never a negative variance."""
    rng = np.random.default_rng(seed)
    var, m = 10**size * rng.gamma(1.0, 1.0, (crops, 5)), mean + 10 ** (size / 2) * rng.normal(size=(crops, 5))
    target = rng.uniform(0, 3) * var + rng.uniform(0, 2) * 10**size * rng.uniform(0.5, 2, var.shape) + 0.1 * m**2
    inside = _fit.Statistics(var, m, var)
    found = _fit.fit(inside, _fit.Statistics(target, m + rng.normal(size=m.shape), target), independent)
    a, b, c, d, _, _, low, high = found
    assert np.isfinite(found).all()
    assert (np.stack([a, b, c]) >= 0).all()
    assert ((d >= 0) & (d <= 2) & (low <= high)).all()
    for k in range(5):
        columns = np.stack([var[:, k], np.ones(crops), m[:, k] ** 2], 1) / target[:, [k]]
        lengths = np.sqrt((columns**2).mean(0))
        unit = np.concatenate([columns / lengths / crops**0.5, np.eye(3) * (_fit.RIDGE / independent) ** 0.5])
        rest = np.concatenate([(target[:, k] - var[:, k]) / target[:, k] / crops**0.5, np.zeros(3)])
        best = lsq_linear(unit, rest, ([-lengths[0], 0, 0], np.inf), tol=1e-14)
        ours = (np.array([a[k] - 1, b[k], c[k]]) * lengths, best.x)
        costs = [np.square(unit @ x - rest).sum() for x in ours]
        assert costs[0] <= costs[1] * (1 + 1e-6) + 1e-12
    anything = _fit.Statistics(10 ** rng.uniform(-12, 12, (50, 5)), rng.normal(0, 1e4, (50, 5)), var)
    corrected = _fit.corrected(anything, found)
    assert corrected.var is not None
    assert (corrected.var >= 0).all()
    # Beyond what was seen the correction is a constant: nothing explodes.
    assert (corrected.var - anything.var <= (target + var).max() * max(1.0, a.max()) * 10).all()


def test_few_crops_shrink_the_correction() -> None:
    rng = np.random.default_rng(0)
    var = rng.uniform(1, 2, (30, 1))
    inside = _fit.Statistics(var, var * 0, var)
    target = _fit.Statistics(3 * var, var * 0 + 1, 3 * var)
    moved = [_fit.corrected(inside, _fit.fit(inside, target, n)).var for n in (4.0, 8.0, 1000.0)]
    means = [float((value - var).mean() / (2 * var).mean()) for value in moved if value is not None]
    assert means == sorted(means)
    assert means[0] < 0.95
    assert means[2] > 0.99


def test_a_statistic_that_cannot_be_negative_stays_so() -> None:
    rng = np.random.default_rng(0)
    for slope, offset in ((0.3, 0.0), (2.0, -0.9), (0.0, 0.2)):
        mean = rng.uniform(1, 2, (30, 3))
        target = np.maximum(slope * mean + offset, 0)
        found = _fit.fit(_fit.Statistics(None, mean, mean), _fit.Statistics(None, target, mean), 50)
        anything = _fit.Statistics(None, rng.uniform(0, 5, (99, 3)), mean)
        assert (_fit.corrected(anything, found).mean >= 0).all()


# --------------------------------------------------------------------------------------------- the whole of it


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("stride", [1, 3])
@torch.no_grad()
def test_calibrating_brings_the_output_to_that_on_crops(site: str, stride: int) -> None:
    """On images that calibration has not seen, and with the statistics of every kind of site; in all back ends."""
    model, original = network(site), network(site)
    plan = tlsc.calibrate(tlsc.convert(model, BASE, stride=stride), images(3))
    assert all(fit.kept and fit.after < fit.before for fit in fits(plan)), str(plan)
    unseen = images(1, 80, seed=7)
    spots = [(28, 28), (20, 36), (36, 20), (30, 24)]
    half = BASE // 4
    errors = []
    for _ in range(2):
        out = model(unseen)
        found = []
        for top, left in spots:
            expected = original(unseen[..., top : top + BASE, left : left + BASE])
            inside = out[..., top : top + BASE, left : left + BASE]
            found.append((inside - expected)[..., half:-half, half:-half].square().mean())
        errors.append(float(torch.stack(found).mean().sqrt()))
        if len(errors) == 1:
            with tlsc.backend("torch"):
                torch.testing.assert_close(model(unseen), out)
            tlsc.convert(model, BASE, stride=stride)
    # In a group the channels' means are most of the variance, and no ring changes them much.
    assert errors[0] < (0.9 if site == "group norm" else 0.6) * errors[1]


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_invariants_hold_with_a_correction(site: str) -> None:
    """I1 identity up to base_size, I3 the state dict, I5 the same objects, and nothing is left behind."""
    model, original = network(site), network(site)
    before, attributes = dict(model.named_modules()), {n: set(m.__dict__) for n, m in model.named_modules()}
    plan = tlsc.calibrate(tlsc.convert(model, BASE), images())
    assert any(fit.kept for fit in fits(plan))
    for size in ((BASE, BASE), (7, BASE), (5, 9)):
        x = images(1, 96)[..., : size[0], : size[1]]
        torch.testing.assert_close(model(x), original(x), rtol=1e-10, atol=1e-10)
    state = model.state_dict()
    assert list(state) == list(original.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
    x = images(1, 60)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    tlsc.revert(model)
    assert all(module is before[path] for path, module in model.named_modules())
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == attributes
    torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)


class WithEps(nn.Module):
    """Instance norm with an eps of 0.3, as a function; the same norm as a module is the oracle."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.instance_norm(x, eps=0.3)


def test_the_eps_of_a_functional_norm_reaches_the_fit() -> None:
    found = []
    for norm in (WithEps(), nn.InstanceNorm2d(8, eps=0.3)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm).double()
        found.append(tlsc.calibrate(tlsc.convert(model, 32), images())[0].fit)
    assert found[1] is not None
    assert found[1].kept
    assert found[0] == found[1]


@torch.no_grad()
def test_the_same_seed_gives_the_same_corrections() -> None:
    plans = []
    for seed in (3, 3, 4):
        state = torch.random.get_rng_state()
        model = tlsc.convert(network(), BASE)
        plans.append(tlsc.calibrate(model, images(), seed=seed, crops_per_image=16))
        assert not model.training
        torch.random.set_rng_state(state)
    assert plans[0] == plans[1]
    assert fits(plans[0]) != fits(plans[2])


@torch.no_grad()
def test_a_calibrated_model_compiles() -> None:
    model = tlsc.convert(network("squeeze-excitation"), BASE, calibrate=images())
    x = images(1, 50)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


def test_gradients_pass_through_a_correction() -> None:
    model = tlsc.convert(network("group norm"), BASE, calibrate=images())
    x = images(1, 30).requires_grad_()
    (fast,) = torch.autograd.grad(model(x).square().sum(), x)
    with tlsc.backend("torch"):
        (slow,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(fast, slow)


@torch.no_grad()
def test_converting_again_calibrating_again_and_converted() -> None:
    model, x = network(), images(1, 60)
    plain = tlsc.convert(model, BASE)(x)
    plan = tlsc.calibrate(model, images())
    corrected = model(x)
    assert not torch.allclose(corrected, plain)
    assert tlsc.plan(model) == plan
    with tlsc.converted(model, BASE + 8):
        assert tlsc.plan(model).calibration is None
    assert torch.equal(model(x), corrected)
    assert tlsc.plan(model) == plan
    assert tlsc.plan(model, BASE) == dataclasses.replace(
        plan, sites=tuple(dataclasses.replace(site, fit=None) for site in plan), calibration=None
    )
    assert tlsc.calibrate(model, images()) == plan
    assert torch.equal(tlsc.convert(model, BASE)(x), plain)
    with tlsc.converted(model, BASE, calibrate=images()):
        assert torch.equal(model(x), corrected)


# ------------------------------------------------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([torch.rand(3, 32, 32, dtype=torch.float64)] * 2, "too few crops"),
        (torch.full((1, 3, 90, 90), 0.4, dtype=torch.float64), "crops are all alike"),
        (torch.rand(4, 3, 20, 90, dtype=torch.float64), "no image is larger than the crop"),
        (torch.rand(4, 3, BASE, BASE, dtype=torch.float64), "no image is larger than the crop"),
        (torch.zeros(3, 200, 200, dtype=torch.float64), "crops are all alike"),
    ],
    ids=["small", "constant", "too small", "as large as the crop", "black"],
)
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_from_too_little_nothing_is_learnt(site: str, given: Any, said: str) -> None:
    model, x = network(site), images(1, 60)
    plain = tlsc.convert(model, BASE)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        plan = tlsc.calibrate(model, given)
    assert all(not fit.kept and said in fit.reason for fit in fits(plan)), str(plan)
    assert said in str(plan).replace("\n", " ") or "all" in said
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("window", [BASE, 36, 48])
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_eight_crops_and_larger_windows_do_no_harm(site: str, window: int) -> None:
    """Never NaN, and no further from crop behaviour than without; also where windows meet what was never seen."""
    model = tlsc.convert(network(site), window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        plan = tlsc.calibrate(model, images(1, 112), BASE, crops_per_image=8)
    assert plan.calibration is not None
    assert plan.calibration.crops == 8
    assert plan.calibration.calibrated is not None
    assert plan.calibration.local is not None
    assert plan.calibration.calibrated <= plan.calibration.local
    for x in (torch.zeros(1, 3, 70, 90), 1e3 * torch.randn(1, 3, 70, 90), 1e-6 * torch.ones(1, 3, 70, 90)):
        assert bool(model(x.double()).isfinite().all())


@torch.no_grad()
def test_maxima_and_maps_that_do_not_grow_are_not_calibrated() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x.amax((2, 3), keepdim=True)) + x.mean((2, 3), keepdim=True)

    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Odd()).double().eval()
    plan = tlsc.calibrate(tlsc.convert(model, BASE), images())
    by_operation = {site.operation: site.fit for site in plan}
    assert by_operation["amax"] is not None
    assert "no mean and no variance" in by_operation["amax"].reason
    assert by_operation["mean"] is not None
    assert by_operation["mean"].before is not None


def test_a_right_correction_is_kept_where_another_does_harm_and_forwards_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told what the output's distance is: 1 as it is, 2 with both corrections, 0.5 with the first site's alone."""
    model = tlsc.convert(network(), BASE)
    assert isinstance(model, nn.Sequential)
    given, pixels = images(4, 72), [0]
    seen: list[tuple[bool, ...]] = []

    def distance(run: Run, outputs: Any) -> Distance:
        seen.append(tuple(place.module.correction is not None for place in run.places))
        distances: dict[tuple[bool, ...], float] = {(True, False): 0.5, (False, True): 3.0, (True, True): 2.0}
        return Distance(np.full(20, distances.get(seen[-1], 1.0) ** 2), 20.0)

    monkeypatch.setattr(Run, "distance", distance)
    model[0].register_forward_hook(lambda _, args, out: pixels.__setitem__(0, pixels[0] + args[0][:, 0].numel()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        first, second = fits(tlsc.calibrate(model, given, crops_per_image=500))
    assert (first.kept, second.kept) == (True, False)
    assert "without it the model's output would be closer" in second.reason
    assert len(seen) == 5
    assert [model[1].correction is None, model[4].correction is None] == [False, True]
    assert pixels[0] <= 10 * given[:, 0].numel()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_the_right_corrections_are_kept_beside_a_wrong_one(count: int) -> None:
    """Each of them halves the distance but one, which makes it huge: of up to four all others stay; of more those
    outside the part that the halving comes to, a quarter of all.
    """
    for wrong in range(count):
        tried: list[Any] = []

        def measure(some: Any, wrong: int = wrong, tried: list[Any] = tried) -> Distance:
            tried.append(list(some))
            return Distance(np.full(8, 1e9 if wrong in some else 4.0 ** -len(some)), 8.0)

        kept, after = chosen(range(count), Distance(np.ones(8), 8.0), measure)
        assert len(tried) <= 3
        assert wrong not in kept
        assert len(kept) >= count - max(1, -(-count // 4))
        assert after.rms == pytest.approx(0.5 ** len(kept))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_weak_correction_that_costs_what_others_gain_is_left_out(count: int) -> None:
    """Together they do good, each of them, but one that doubles the distance. It is found among those that gain
    least at their sites; more of these go with it if there are more than two.
    """
    cases = [(None, 1.0), *itertools.product(range((count + 1) // 2), (16.0, 1e9))]
    for wrong, cost in cases:
        tried: list[Any] = []

        def distance(some: Any, wrong: int | None = wrong, cost: float = cost) -> Distance:
            return Distance(np.full(8, (cost if wrong in some else 1.0) * 4.0 ** -len(some)), 8.0)

        def measure(some: Any, tried: list[Any] = tried, distance: Any = distance) -> Distance:
            tried.append(sorted(some))
            return distance(some)

        sites = list(range(count))
        kept, after = without_harm(sites, distance(sites), measure)
        assert len(tried) <= 3
        assert after.rms == distance(kept).rms
        if wrong is None:
            assert kept == sites
            assert len(tried) == 1
        elif after.rms < distance(sites).rms:
            assert wrong not in kept
            assert len(kept) >= count - max(1, -(-count // 4))
        else:
            assert kept == sites
            assert cost == 16
    assert without_harm([5], Distance(np.ones(8), 8.0), measure)[0] == [5]


@pytest.mark.parametrize("harmful", [0, 1])
def test_it_is_the_correction_that_gains_least_that_is_doubted(
    harmful: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that both do good, and that the output would be closer without one of them."""
    model, given = tlsc.convert(network(), BASE), images(4, 72)
    errors = [(fit.before, fit.after) for fit in fits(tlsc.calibrate(model, given))]
    left = [after / before for before, after in errors if before and after]
    assert len(left) == 2

    def distance(run: Run, outputs: Any) -> Distance:
        there = [place.module.correction is not None for place in run.places]
        rms = 0.8 if all(there) else 0.5 if any(there) and not there[harmful] else 1.0
        return Distance(np.full(20, rms**2), 20.0)

    monkeypatch.setattr(Run, "distance", distance)
    kept = [fit.kept for fit in fits(tlsc.calibrate(model, given))]
    doubted = harmful == left.index(max(left))
    assert kept == [not (doubted and site == harmful) for site in (0, 1)]


def test_crops_fit_into_every_window() -> None:
    """A site of its own, smaller window has not seen a larger crop whole either."""
    model, given = network(), images(2, 72)
    large, small = tlsc.plan(model, BASE + 8), tlsc.plan(model, BASE)
    own = dataclasses.replace(large[1], window=small[1].window, base_size=(BASE, BASE))
    tlsc.convert(model, plan=dataclasses.replace(large, sites=(large[0], own)))
    with pytest.raises(ValueError, match=rf"got {BASE + 8}×{BASE + 8} and base_size {BASE}×{BASE}: no such"):
        tlsc.calibrate(model, given, crop=BASE + 8)
    made = tlsc.calibrate(model, given, crop=BASE)
    assert any(fit.kept for fit in fits(made))
    assert tlsc.calibrate(model, given) == made


def test_what_is_called_instead_of_the_model() -> None:
    """A level beside the image, and a result among others: as for the model that takes an image alone."""

    class Levelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = network()

        def forward(self, x: Tensor, level: float) -> dict[str, Tensor]:
            return {"level": x.new_full((1, 1), level), "image": self.own(x)}

    model, given = Levelled(), images(2, 72)
    tlsc.convert(model, BASE, example_input=lambda high, wide: (torch.rand(1, 3, high, wide).double(), 0.1))
    expected = tlsc.calibrate(tlsc.convert(network(), BASE), given)
    found = tlsc.calibrate(model, given, call=lambda x: model(x, 0.1)["image"])
    assert any(fit.kept for fit in fits(found))
    assert fits(found) == fits(expected)
    with pytest.raises(tlsc.TLSCError, match="the model cannot be calibrated"):
        tlsc.calibrate(model, given)


def test_a_few_crops_that_disagree_drop_no_correction() -> None:
    """One of eight crops is far worse with it, seven are better: the mean is larger, but not clearly."""
    without = Distance(np.ones(8), 8.0)
    once = Distance(np.array([0.5] * 7 + [5.0]), 8.0)
    assert once.rms > without.rms
    assert not once.clearly_above(without)
    assert Distance(np.array([1.2] * 7 + [1.5]), 8.0).clearly_above(without)
    # Crops that cover each other count less.
    assert not Distance(np.array([0.8, 1.5] * 4), 2.0).clearly_above(without)
    assert Distance(np.array([0.8, 1.5] * 4), 8.0).clearly_above(without)


def test_a_warning_where_converting_moves_the_output_away() -> None:
    """A ring that dominates the variance, and too few crops to do something about it."""
    model = load_demo_network("hin-all")
    pair = degrade_photograph("chelsea", "motion-blur", 5)
    image = torch.from_numpy(pair.degraded[60:156, 100:196].copy()).permute(2, 0, 1)
    with pytest.warns(tlsc.TLSCWarning, match="moves the output away from what the model does on crops of 64×64"):
        tlsc.convert(model, 64, calibrate=image)
    about = tlsc.plan(model).calibration
    assert about is not None
    assert about.original is not None
    assert about.calibrated is not None
    assert about.calibrated > 1.02 * about.original


@torch.no_grad()
def test_it_mends_what_local_statistics_destroy() -> None:
    """The demo's network with instance norm on all levels, on a part of a photograph and its own fresh noise."""
    pair = degrade_photograph("chelsea", "motion-blur", 11)
    clean, image = pair.clean[40:248, 60:340], torch.from_numpy(pair.degraded[40:248, 60:340].copy())
    image = image.permute(2, 0, 1).unsqueeze(0)
    model = load_demo_network("hin-all")

    def psnr() -> float:
        out = model(image).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        return float(peak_signal_noise_ratio(clean, out, data_range=1))

    original = psnr()
    tlsc.convert(model, 64)
    local = psnr()
    tlsc.calibrate(model, image)
    assert local < original - 2
    assert psnr() > original + 2


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        (None, {}, TypeError, "must be a tensor .* got NoneType"),
        ("image.png", {}, TypeError, "got str"),
        ([], {}, ValueError, "empty"),
        ([1], {}, TypeError, "floating tensors.* got int"),
        (torch.zeros(3, 99, 99, dtype=torch.uint8), {}, TypeError, "torch.uint8"),
        (torch.zeros(99, 99), {}, ValueError, r"\(99, 99\)"),
        (torch.full((3, 99, 99), torch.nan), {}, ValueError, "NaN or Inf"),
        ([torch.zeros(3, 99, 99), torch.zeros(1, 99, 99)], {}, ValueError, "channels"),
        (torch.zeros(3, 99, 99), {"crop": 25}, ValueError, "crop must not be larger"),
        (torch.zeros(3, 99, 99), {"crop": 0}, ValueError, "crop"),
        (torch.zeros(3, 99, 99), {"crops_per_image": 0}, ValueError, "crops_per_image"),
        (torch.zeros(3, 99, 99), {"seed": -1}, ValueError, "seed"),
        (torch.rand(2, 99, 99), {}, tlsc.TLSCError, "fails on crops of 24×24"),
    ],
)
def test_bad_input_is_named_and_the_model_is_as_before(given: Any, options: Any, error: Any, said: str) -> None:
    model = tlsc.convert(network().float(), BASE)
    plan, before = tlsc.plan(model), {n: set(m.__dict__) for n, m in model.named_modules()}
    with pytest.raises(error, match=said) as caught:
        tlsc.calibrate(model, given, **options)
    assert isinstance(caught.value, tlsc.TLSCError)
    assert tlsc.plan(model) == plan
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == before
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_a_model_that_is_not_converted() -> None:
    for call in (lambda: tlsc.calibrate(network(), images()), lambda: tlsc.plan(network())):
        with pytest.raises(tlsc.errors.ArgumentValueError, match=r"not converted: use tlsc\.convert"):
            call()
    with pytest.raises(tlsc.errors.ArgumentTypeError, match=r"must be a torch\.nn\.Module"):
        tlsc.calibrate("model", images())  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- files


@torch.no_grad()
def test_a_plan_is_saved_loaded_and_applied(tmp_path: Path) -> None:
    model, x = network("mean and std"), images(1, 60)
    plan = tlsc.calibrate(tlsc.convert(model, (BASE, 28)), images(), BASE)
    file = tmp_path / "plan.json"
    file.write_text("before")
    plan.save(file)
    loaded = tlsc.Plan.load(file)
    assert loaded == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    for other in (tlsc.convert(network("mean and std"), (BASE, 28), calibrate=loaded),):
        assert torch.equal(other(x), model(x))
        assert tlsc.plan(other) == plan
    with pytest.raises(tlsc.errors.ArgumentValueError, match="another conversion"):
        tlsc.convert(network("mean and std"), BASE, calibrate=loaded)
    with pytest.raises(tlsc.errors.ArgumentValueError, match="another conversion"):
        tlsc.calibrate(tlsc.convert(network("group norm"), (BASE, 28)), loaded)
    with pytest.raises(tlsc.errors.ArgumentValueError, match="holds no calibration"):
        tlsc.calibrate(model, tlsc.plan(model, (BASE, 28)))
    with pytest.raises(OSError, match="nowhere"):
        plan.save("/proc/nowhere/plan.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("stride"),
        lambda d: d.update(more=1),
        lambda d: d.update(format="tlsc plan 0"),
        lambda d: d.update(stride=0),
        lambda d: d.update(stride=True),
        lambda d: d.update(base_size=[24]),
        lambda d: d["sites"][0].update(action="other"),
        lambda d: d["sites"][0].update(path=3),
        lambda d: d["sites"][0]["fit"].update(coefficients=[]),
        lambda d: d["sites"][0]["fit"]["coefficients"].pop(),
        lambda d: d["sites"][0]["fit"]["coefficients"][2].pop(),
        lambda d: d["sites"][0]["fit"]["coefficients"][0].__setitem__(0, -1.0),
        lambda d: d["sites"][0]["fit"]["coefficients"][0].__setitem__(0, "1"),
        lambda d: d["sites"][0]["fit"]["coefficients"][6].__setitem__(0, 1e9),
        lambda d: d["sites"][0]["fit"]["coefficients"][1].__setitem__(0, float("nan")),
    ],
)
def test_a_file_that_is_not_a_plan_is_refused(spoil: Any, tmp_path: Path) -> None:
    plan = tlsc.calibrate(tlsc.convert(network(), BASE), images())
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    spoil(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(tlsc.errors.ArgumentValueError, match=r"plan\.json is no plan"):
        tlsc.Plan.load(tmp_path / "plan.json")


def test_a_digit_that_changed_is_noticed_unless_it_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = tlsc.calibrate(tlsc.convert(network(), BASE), images())
    plan.save(file)
    data = json.loads(file.read_text())
    data["sites"][0]["fit"]["coefficients"][1][0] += 0.001
    file.write_text(json.dumps(data))
    with pytest.raises(tlsc.errors.ArgumentValueError, match=r'checksum is another.*delete its "sha256"'):
        tlsc.Plan.load(file)
    del data["sha256"]
    file.write_text(json.dumps(data))
    assert tlsc.Plan.load(file) != plan


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(tlsc.errors.ArgumentValueError, match=r"plan\.json is no plan"):
        tlsc.Plan.load(tmp_path / "plan.json")


def test_a_plan_with_too_few_channels_is_refused() -> None:
    model = tlsc.convert(network(), BASE)
    plan = tlsc.calibrate(model, images())
    fit = plan[0].fit
    assert fit is not None
    short = dataclasses.replace(fit, coefficients=tuple(row[:-1] for row in fit.coefficients))
    bad = dataclasses.replace(plan, sites=(dataclasses.replace(plan[0], fit=short), *plan.sites[1:]))
    with pytest.raises(tlsc.errors.ArgumentValueError, match="corrects 7 channels, the model has 8"):
        tlsc.calibrate(model, bad)


def test_a_plan_that_is_corrected_in_part_is_the_models_own_and_prints() -> None:
    """A site that nobody looked at has no fit; of half a correction what it leaves was not measured."""
    model = network()
    made = tlsc.calibrate(tlsc.convert(model, BASE), images())
    own = [site.fit for site in made]
    assert own[0] is not None
    assert own[0].kept
    half = dataclasses.replace(own[0], after=None, coefficients=weakened(own[0].coefficients, 0.5))
    sites = (
        dataclasses.replace(made[0], fit=half),
        *(dataclasses.replace(site, fit=None) for site in made.sites[1:]),
    )
    assert len(sites) > 1
    part = dataclasses.replace(made, sites=sites)
    assert tlsc.plan(tlsc.convert(model, plan=part)) == part
    line = next(line for line in str(part).splitlines() if line.startswith(made[0].path))
    assert line.split()[-2:] == [f"{half.before:.3f}", "–"]


def test_the_plan_prints_what_was_found() -> None:
    text = str(tlsc.calibrate(tlsc.convert(network(), BASE), images()))
    assert "calibrated on 64 crops of 24×24: 2 of 2 sites corrected" in text
    assert "before" in text.splitlines()[3]
    assert "after" in text.splitlines()[3]


def test_images_of_one_colour_each_are_no_reason_for_a_warning() -> None:
    """A map that is constant on each crop has a mean and no variance."""

    class Levelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    model = tlsc.convert(Levelled(), 16)
    images = [torch.full((3, 64, 64), 0.1 * n + 0.1) for n in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = tlsc.calibrate(model, images)
    fit = plan[0].fit
    assert fit is not None
    assert not fit.kept
    assert fit.before is not None
    assert fit.before < 1
    assert "gain too little" in fit.reason
