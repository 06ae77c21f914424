"""``tlsc tune``: sites that help become local and others stay, only where that is shown on images held out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import tlsc
from tlsc._internal import prediction
from tlsc._internal.statistics import weakened
from tlsc.errors import ArgumentValueError
from tlsc.eval import cli
from tlsc.eval.judge.intervals import images_to_settle, interval
from tlsc.eval.networks import Network, load_network
from tlsc.eval.run.cells import as_cell, planned_cell
from tlsc.eval.run.records import alone_with
from tlsc.eval.tune.corrections import Corrections, uncorrected
from tlsc.eval.tune.groups import MOST, Choice, Group, Local, groups_of
from tlsc.eval.tune.scores import Energies, Journal, Pairs
from tlsc.eval.tune.search import Found, tuned
from tlsc.eval.tune.tune import Tuning, tune

WINDOWS = [(16, 16), (24, 24)]
SMALL, LARGE = map(Local, WINDOWS)
Values = NDArray[np.float64]

# Out = x − level − contrast, of which the level is rightly local, the contrast rightly the whole image's.
NET = """
import torch
from torch import nn

class Level(nn.Module):
    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)

class Contrast(nn.Module):
    def forward(self, x, light):
        return x + 0.8 - 3 * (light - 0.5).square().mean((2, 3), keepdim=True)

class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.level, self.contrast = Level(), Contrast()

    def forward(self, x):
        return self.contrast(self.level(x), x)

def make():
    return Levels()
"""


def _photographs(number: int) -> list[tuple[Values, Values]]:
    """Input and target: texture on a level that rises across; texture, and the contrast of the whole image."""
    found = []
    for n in range(number):
        rng = np.random.default_rng(n)
        texture = 0.02 * rng.standard_normal((48, 80, 3))
        given = 0.5 + texture + np.linspace(-0.3, 0.3, 80)[:, None] * (0.8 + 0.05 * n)
        whole = ((given - 0.5) ** 2).mean((0, 1))
        found.append((given, texture + 0.8 - 3 * whole))
    return found


# ------------------------------------------------------------------------------------------------------- search


def _scored(worth: dict[int, float], noise: float, images: int) -> tuple[list[Choice], object]:
    """Each group is worth something when it is local, more over the larger window; and noise for each image."""
    asked: list[Choice] = []

    def score(choice: Choice) -> Values:
        if choice not in asked:
            asked.append(choice)
        rng = np.random.default_rng([0 if one is None else one.size[0] for one in choice])
        value = sum(worth[n] * (1.1 if one == LARGE else 1) for n, one in enumerate(choice) if one is not None)
        return value + noise * rng.standard_normal(images)

    return asked, score


def test_sites_that_help_and_their_window_are_found_with_few_scores() -> None:
    asked, score = _scored({0: 0.3, 1: -0.5, 2: 0.2, 3: -0.01}, 0.005, 8)
    found = tuned(score, 4, WINDOWS, 8, 0.005)  # type: ignore[arg-type]
    assert found.choice == found.best == (LARGE, None, LARGE, None)
    assert found.fallback == (None,) * 4 or found.fallback == (SMALL,) * 4
    assert found.shown_to_gain
    assert found.low < 0.55 - 0 < found.high + 0.05
    assert len(asked) < 40


def test_what_is_not_shown_to_gain_is_not_taken() -> None:
    """Noise alone: what looks best on some images is no better on others; few images show nothing."""
    _, score = _scored(dict.fromkeys(range(4), 0.0), 1.0, 8)
    found = tuned(score, 4, WINDOWS, 8, 0.005)  # type: ignore[arg-type]
    assert found.choice == found.fallback
    assert not found.shown_to_gain
    _, score = _scored({0: 1.0, 1: -1.0}, 0.001, 2)
    found = tuned(score, 2, WINDOWS, 2, 0.005)  # type: ignore[arg-type]
    assert found.best == (LARGE, None)
    assert found.choice == found.fallback
    assert np.isnan(found.low)


def test_what_a_score_cannot_vouch_for_counts_against_a_gain() -> None:
    _, score = _scored({0: 0.3, 1: -0.5}, 0.001, 8)
    kept = tuned(score, 2, WINDOWS, 8, 0.005, lambda one, other: np.full(8, 0.1))  # type: ignore[arg-type]
    dropped = tuned(score, 2, WINDOWS, 8, 0.005, lambda one, other: np.full(8, 0.4))  # type: ignore[arg-type]
    assert (kept.choice, dropped.choice) == (kept.best, dropped.fallback)


def test_the_lower_end_of_the_interval_decides_and_is_wrong_once_in_twenty() -> None:
    """One photograph in six loses: an interval of 90% shows the gain, one of 95% would not."""
    gains = np.array([0.9, 0.5, 1.1, -0.1, 0.2, 0.8])

    def score(choice: Choice) -> Values:
        return gains if choice == (SMALL, None) else np.zeros(6) if choice[1] is None else np.full(6, -1.0)

    found = tuned(score, 2, WINDOWS[:1], 6, 0.005)
    assert (found.low, found.high) == interval(gains.tolist(), 0.9)
    assert interval(gains.tolist(), 0.95)[0] < 0 < found.low
    assert found.choice == found.best == (SMALL, None)


def test_a_gain_that_is_not_shown_says_how_many_photographs_would_show_it() -> None:
    gains = (0.9, 0.5, 1.1, -1.0, 0.0, 0.8)
    low, high = interval(gains, 0.9)
    found = Found((None, None), (SMALL, None), (None, None), 0.5, low, high, gains)
    groups = (Group("a", (0,)), Group("b", (1,)))
    tuning = Tuning(tlsc.Plan((16, 16), 1, ()), groups, (WINDOWS[0],), True, 6, (), found)
    needed = images_to_settle(gains, 0.9)
    assert needed is not None
    assert needed > 6
    assert tuning.sentence == (
        f"No site: another choice is not shown to gain (+0.500 [{low:+.3f}, {high:+.3f}] dB, on images held "
        f"out); about {needed} images may show it."
    )
    for other in (replace(tuning, paired=False), replace(tuning, found=replace(found, gain=-0.5))):
        assert "may show it" not in other.sentence


def test_doubt_and_the_drawn_photographs_add_up_in_squares() -> None:
    """Mean 1, half width 0.6 by the photographs: shown with a doubt of 0.7 (0.92), no longer with 0.9 (1.08)."""
    shape = np.array([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0])
    gains = 1 + shape * 0.6 / interval(shape.tolist(), 0.9)[1]

    def score(choice: Choice) -> Values:
        return gains if choice == (SMALL, None) else np.zeros(6) if choice[1] is None else np.full(6, -1.0)

    for doubt, shown in ((0.0, True), (0.7, True), (0.9, False)):
        found = tuned(score, 2, WINDOWS[:1], 6, 0.005, lambda one, other, doubt=doubt: np.full(6, doubt))
        assert found.low == pytest.approx(1 - math.hypot(0.6, doubt))
        assert found.high == pytest.approx(1 + math.hypot(0.6, doubt))
        assert found.gain == pytest.approx(1)
        assert found.shown_to_gain == shown


def test_corrections_are_taken_as_far_as_they_gain() -> None:
    """Corrected, group 0 gains, group 1 most by half, group 2 loses; the windows are each the better one's."""
    gains = {
        0: {0.0: -0.2, 0.5: 0.1, 1.0: 0.4},
        1: {0.0: -0.3, 0.5: 0.3, 1.0: 0.1},
        2: {0.0: 0.1, 0.5: 0.0, 1.0: -0.1},
    }

    def score(choice: Choice) -> Values:
        noise = 0.01 * np.random.default_rng(len(str(choice))).standard_normal(8)
        return sum((gains[n][one.strength] for n, one in enumerate(choice) if one is not None), 0.0) + noise

    best = (Local((24, 24), 1.0), Local((24, 24), 0.5), LARGE)
    plain = tuned(score, 3, WINDOWS[1:], 8, 0.005)
    assert plain.choice == (None, None, LARGE)
    found = tuned(score, 3, WINDOWS[1:], 8, 0.005, correctable=WINDOWS[1:])
    assert found.choice == found.best == best
    assert found.fallback == (Local((24, 24), 1.0),) * 3
    assert found.shown_to_gain
    # without targets what is corrected has to be shown to gain
    for doubt, choice in ((0.1, best), (5.0, (None,) * 3)):
        found = tuned(score, 3, WINDOWS[1:], 8, 0.005, lambda one, other, d=doubt: np.full(8, d), 0, WINDOWS[1:])
        assert (found.best, found.choice, found.fallback) == (best, choice, (None,) * 3)
        assert found.low == pytest.approx(0.8 - doubt, abs=0.03)
    # and a correction that gains nothing is not taken
    gains = {n: dict.fromkeys((0.0, 0.5, 1.0), 0.1 * n) for n in range(3)}
    found = tuned(lambda choice: score(choice) * 0, 3, WINDOWS, 8, 0.005, correctable=WINDOWS)
    assert found.choice == found.best == (None,) * 3


def test_a_network_that_fails_in_one_form_is_tuned_with_the_others() -> None:
    _, score = _scored({0: 0.3, 1: 0.5}, 0.001, 6)

    def failing(choice: Choice) -> Values:
        return np.full(6, np.nan) if choice[1] is not None else score(choice)  # type: ignore[operator,no-any-return]

    assert tuned(failing, 2, WINDOWS, 6, 0.005).choice == (LARGE, None)


def test_groups_are_sites_alike_and_not_too_many() -> None:
    def planned(sizes: list[int]) -> tlsc.Plan:
        sites = [tlsc.Site(f"{n}", "GroupNorm", (k, k), (k, k), "exact") for n, k in enumerate(sizes)]
        return tlsc.Plan((16, 16), 1, tuple(sites))

    groups = groups_of(planned([16, 8, 16]))
    assert [(group.name, group.sites) for group in groups] == [("0", (0,)), ("1", (1,)), ("2", (2,))]
    groups = groups_of(planned([16, 8, 16] * 3))
    assert [(group.name, group.sites) for group in groups] == [
        ("6 × GroupNorm on 16×16", (0, 2, 3, 5, 6, 8)),
        ("3 × GroupNorm on 8×8", (1, 4, 7)),
    ]
    groups = groups_of(planned(list(range(1, 12))))
    assert len(groups) <= MOST
    assert [n for group in groups for n in group.sites] == list(range(11))


# ------------------------------------------------------------------------------------------- plans from photographs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "levels.py").write_text(NET)
    for folder, side in (("in", 0), ("clean", 1)):
        (tmp_path / folder).mkdir()
        for n, pair in enumerate(_photographs(6)):
            values = np.rint(pair[side].clip(0, 1) * 255).astype(np.uint8)
            PIL.Image.fromarray(values).save(tmp_path / folder / f"{n}.png")
    return tmp_path


def test_tune_with_targets_writes_a_plan_that_all_commands_take(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["./levels.py:make", "in", "--crop", "16"]
    argv = ["tune", *network, "--target", "clean", "--base-size", "16,24", "--json"]
    assert cli.main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shown_to_gain"]
    plan = tlsc.Plan.load("plan.json")
    assert [site.action for site in plan] == ["exact", "left global"]
    assert said["scores"]["the best found"] > max(said["scores"][name] for name in ("none", "all at 16×16")) + 1
    assert not Path("plan.json.journal").exists()
    assert cli.main(argv) == 1
    assert "plan.json exists" in capsys.readouterr().err
    assert cli.main(["restore", *network[:2], "-o", "out", "--plan", "plan.json"]) == 0
    assert "1 of 2 sites local, as plan.json says" in capsys.readouterr().out
    model = tlsc.convert(load_network("./levels.py:make").model, plan=plan)
    given = np.asarray(PIL.Image.open("in/0.png")).astype(np.float32) / 255
    expected = model(torch.from_numpy(given).permute(2, 0, 1)[None]).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(PIL.Image.open("out/0.png")) - expected * 255).max() < 0.51
    argv = [
        "eval",
        network[0],
        "in",
        "clean",
        *network[2:],
        "--plan",
        "plan.json",
        "--base-size",
        "16",
        "--tile",
        "16",
    ]
    assert cli.main([*argv, "--no-report", "-o", "run"]) == 0
    assert "plan plan.json,16x16,1,whole" in Path("run/results.csv").read_text()


def test_without_targets_the_output_on_crops_is_the_measure(place: Path) -> None:
    """On crops the contrast is a crop's own, so that both sites become local; no window like the crop is tried."""
    network = load_network("./levels.py:make", crop=16)
    images = [torch.from_numpy(given.astype(np.float32)).permute(2, 0, 1) for given, _ in _photographs(4)]
    found = tune(network, images)
    assert found.windows == ((24, 24), (32, 32))
    assert found.found.choice in [(one, one) for one in map(Local, found.windows)]
    assert found == tune(network, images)
    scores = dict(found.scores)
    assert scores["none"] < scores["all at 24×24"] < 0
    with pytest.raises(ArgumentValueError, match="4 of 4 images are smaller than the training crop"):
        tune(load_network("./levels.py:make", crop=64), images)
    with pytest.raises(ArgumentValueError, match="no site becomes local"):
        tune(load_network("plain"), images, windows=WINDOWS)


class _Ring(nn.Module):
    """A norm whose statistics a crop's padding spoils, and a mean that is rightly the whole image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6)
        with torch.no_grad():
            self.conv.bias.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(self.conv(x))
        return 0.5 + 0.1 * normed[:, :3] + 0.5 * x.square().mean((2, 3), keepdim=True)


def _ringed(number: int) -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """A network, images, and what it makes of them with each crop's own statistics in its norm, a mean of all."""
    torch.manual_seed(0)
    model = _Ring().eval().requires_grad_(False)
    images = [torch.from_numpy(given.astype(np.float32)).permute(2, 0, 1) for given, _ in _photographs(number)]
    images = [F.interpolate(x[None], scale_factor=1.5, mode="bilinear")[0] for x in images]
    with tlsc.converted(model, 16, source="crops", crop=16, include="norm"):
        return model, images, [model(image[None])[0] for image in images]


def test_corrected_statistics_are_a_choice_and_belong_to_the_plan(tmp_path: Path) -> None:
    model, images, clean = _ringed(6)
    network = Network("ring", model, crop=16)
    found = tune(network, images, clean, windows=[(16, 16)])
    assert found.found.choice == (None, Local((16, 16), 1.0))
    assert str(found).splitlines()[-1].startswith("(the model): left; norm: 16×16 corrected: +1")
    assert found.as_dict()["choice"]["norm"] == {"base_size": (16, 16), "correction": 1.0}
    scores = dict(found.scores)
    assert scores["the best found"] > max(value for name, value in scores.items() if name != "the best found") + 10
    found.plan.save(tmp_path / "plan.json")
    trained = [network(image[None])[0] for image in images]
    with tlsc.converted(model, plan=tlsc.Plan.load(tmp_path / "plan.json")):
        restored = [network(image[None])[0] for image in images]
    assert _psnr(restored, clean) > _psnr(trained, clean) + 10
    assert _psnr(restored, clean) == pytest.approx(scores["the best found"], abs=1)
    plain = tune(network, images, clean, windows=[(16, 16)], calibrate=False)
    assert all(site.fit is None for site in plain.plan)
    assert not any("corrected" in name for name, _ in plain.scores)


def test_without_targets_corrected_statistics_are_taken_where_crops_vouch_for_them() -> None:
    """On crops the mean is a crop's own, so that it becomes local, too."""
    model, images, _ = _ringed(6)
    found = tune(Network("ring", model, crop=16), images, windows=[(16, 16), (24, 24)])
    assert found.found.choice == (Local((16, 16), 1.0),) * 2
    assert found.found.fallback == (LARGE, LARGE)
    assert found.found.shown_to_gain


def _psnr(images: list[torch.Tensor], clean: list[torch.Tensor]) -> float:
    errors = [float((a.clamp(0, 1) - b).square().mean()) for a, b in zip(images, clean, strict=True)]
    return float(np.mean(-10 * np.log10(errors)))


def test_each_half_is_tried_with_what_was_found_on_the_other() -> None:
    model, given, _ = _ringed(4)
    network = Network("ring", model, crop=16)
    planned = cache(lambda size: tlsc.plan(network.model, size))
    groups = groups_of(planned((16, 16)))
    corrections = Corrections(network, given, groups, (16, 16), 0)
    score = Pairs(network, given, groups, planned, (16, 16), corrections)
    choice = (None, Local((16, 16), 0.5))
    out = dict(score.outputs(choice))
    for own, others in ((given[::2], given[1::2]), (given[1::2], given[::2])):
        with tlsc.converted(network.model, 16):
            full = tlsc.calibrate(network.model, others)
        fit = full[1].fit
        assert fit is not None
        assert fit.kept
        half = replace(fit, coefficients=weakened(fit.coefficients, 0.5))
        left = score.plan_of(uncorrected(choice))[0]
        with tlsc.converted(network.model, plan=replace(full, sites=(left, replace(full[1], fit=half)))):
            for image in own:
                n = next(n for n in range(4) if given[n] is image)
                assert torch.equal(out[n], network(image[None])[0])
    whole, part = (score.plan_of(one).calibration for one in ((Local((16, 16), 1.0),) * 2, choice))
    assert whole is not None
    assert part is not None
    assert whole.calibrated is not None
    assert part.calibrated is None  # it was measured with all corrections
    sizes = [(16, 16), (24, 16), (12, 96)]
    assert [corrections.possible(size) for size in sizes] == [True, True, False]
    assert not Corrections(network, given[:1], groups, (16, 16), 0).possible((16, 16))


def test_corrections_are_found_with_all_groups_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stay as trained have the largest window meanwhile; one calibration for all strengths."""
    model, given, _ = _ringed(2)
    groups = [Group(name, (n,)) for n, name in enumerate("abc")]
    corrections = Corrections(Network("ring", model, crop=16), given, groups, (16, 16), 0)
    site = tlsc.Site("", "mean", (16, 16), (16, 16), "exact")
    asked: list[Choice] = []

    def plan_of(choice: Choice) -> tlsc.Plan:
        asked.append(choice)
        return tlsc.Plan((16, 16), 1, (site,) * 3)

    monkeypatch.setattr(corrections, "_found", lambda plan, use: plan)
    for strength in (1.0, 0.5):
        corrections.corrected((None, Local((16, 16), strength), Local((24, 24), 1.0)), plan_of)
    assert asked == [(LARGE, SMALL, LARGE), (None, SMALL, LARGE), (None, SMALL, LARGE)]


def test_doubt_is_of_what_moves_between_two_choices() -> None:
    model, images, _ = _ringed(3)
    network = Network("ring", model, crop=16)
    planned = cache(lambda size: tlsc.plan(model, size))
    energies = Energies(network, images, groups_of(planned((16, 16))), planned, (16, 16))
    energies.measure_crops((16, 16), 8, 0)
    found = energies.doubt((LARGE, LARGE), (None, None))
    before = [network(image[None]) for image in images]
    with tlsc.converted(model, 24):
        after = [network(image[None]) for image in images]
    for n, own in enumerate(energies.crops):
        moved = float((after[n] - before[n]).double().square().mean())
        assert found[n] == pytest.approx(prediction.doubt(moved, own.disagreement), rel=1e-5)
        assert found[n] > 0


def test_a_run_that_was_stopped_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["tune", "./levels.py:make", "in", "--crop", "16", "--target", "clean", "--base-size", "16,24", "-q"]
    assert cli.main([*argv, "-o", "first.json"]) == 0
    add, left = Journal.add, iter(range(3))

    def stopping(self: Journal, choice: Choice, values: Values) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, choice, values)

    monkeypatch.setattr(Journal, "add", stopping)
    assert cli.main([*argv, "-o", "second.json"]) == 130
    journal = Path("second.json.journal")
    with journal.open("a") as file:
        file.write("[[null, nu")
    measured: list[Choice] = []
    monkeypatch.setattr(
        Journal, "add", lambda self, choice, values: (measured.append(choice), add(self, choice, values))
    )
    assert cli.main([*argv[:-1], "--seed", "1", "-o", "second.json", "-q"]) == 1
    assert cli.main([*argv, "-o", "second.json"]) == 0
    assert Path("second.json").read_bytes() == Path("first.json").read_bytes()
    assert len(measured) >= 1
    assert len(measured) < len(set(measured)) + 1
    assert not {(SMALL, SMALL), (LARGE, LARGE)} & set(measured)
    assert not journal.exists()


def test_a_journal_that_is_damaged_or_in_use(tmp_path: Path) -> None:
    file = tmp_path / "plan.json.journal"
    journal = Journal(file, {"seed": 1})
    choices: list[Choice] = [(SMALL, None), (None, LARGE), (Local((16, 16), 0.5), None), (None, None)]
    for choice in choices:
        journal.add(choice, np.array([31.25, 30.5]))
    whole = file.read_text()
    assert list(Journal(file, {"seed": 1}).known) == choices
    for before, after in (
        ("31.25", "31.26"),
        ("31.25", "true"),
        ("31.25", "1e308"),
        ("[16, 16]", "[16, 1]"),
        ("]", "["),
    ):
        file.write_text(whole.replace(before, after, 1))
        known = Journal(file, {"seed": 1}).known
        assert list(known) == choices[1:]
        assert all(np.array_equal(values, [31.25, 30.5]) for values in known.values())
    for spoilt in (whole.replace('"seed": 1', '"seed": 2'), "[]\n" + whole, "\0" * 50 + "\n"):
        file.write_text(spoilt)
        with pytest.raises(ArgumentValueError, match="or damaged: --overwrite throws it away"):
            Journal(file, {"seed": 1})
        assert file.read_text() == spoilt
    file.unlink()
    Journal(file, {"seed": 1})
    assert not file.exists()
    file.mkdir()
    with pytest.raises(ArgumentValueError, match=r"journal is a folder.*another --out"):
        Journal(file, {"seed": 1})
    plan = tmp_path / "plan.json"
    said = r"another process writes to .*plan\.json"
    with alone_with(plan), pytest.raises(ArgumentValueError, match=said), alone_with(plan):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_an_image_within_the_smallest_window_is_as_by_the_original(place: Path) -> None:
    network = load_network("./levels.py:make")
    model = network.model
    large, small = tlsc.plan(model, 24), tlsc.plan(model, 16)
    mixed = replace(large, sites=(large[0], replace(large[1], window=small[1].window, base_size=(16, 16))))
    mixed.save("mixed.json")
    cell = planned_cell("mixed.json")
    assert cell is not None
    assert cell.equals_original(16, 12)
    assert not cell.equals_original(20, 20)
    x = torch.rand(1, 3, 20, 20)
    with as_cell(network, cell):
        changed = model(x)
    assert not torch.equal(changed, model(x))
