"""A run's figures in TensorBoard and Weights & Biases, read back with their own readers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tlsc.eval import cli


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    values = np.random.default_rng(0).integers(60, 200, (2, 70, 72, 3), dtype=np.uint8)
    for number, picture in enumerate(values):
        PIL.Image.fromarray(picture).save(f"in/{number}.png")
    return tmp_path


SWEEP = [
    "sweep",
    "se",
    "in",
    "--degrade",
    "noise:25",
    "--patch-size",
    "48,64",
    "--base-size",
    "48",
    "-o",
    "out",
    "-q",
]


def means(folder: Path) -> dict[str, float]:
    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {one["cell"]: one["psnr"] for one in report["means"]}


def test_tensorboard(place: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main([*SWEEP, "--log", "tensorboard"]) == 0
    found = means(place / "out")
    for variant, folder in (("original", "original"), ("base size 48", "base-size-48")):
        events = EventAccumulator(str(place / "out/tensorboard" / folder)).Reload()
        curve = {event.step: event.value for event in events.Scalars("patches, overlap 0/psnr")}
        assert curve == pytest.approx({size: found[f"{variant}, patches of {size}"] for size in (48, 64)}, rel=1e-6)
        (whole,) = events.Scalars("whole/psnr")
        assert whole.value == pytest.approx(found[f"{variant}, whole"], rel=1e-6)
    events = EventAccumulator(str(place / "out/tensorboard")).Reload()
    assert set(events.Tags()["images"]) == {"psnr", "gain", "comparison"}


def test_weights_and_biases(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert cli.main([*SWEEP, "--no-report", "--log", "wandb"]) == 0
    (run,) = place.glob("out/wandb/offline-run-*/*.wandb")
    report = json.loads((place / "out/results.json").read_text(encoding="utf-8"))
    assert report["verdict"]["recommendation"].encode() in run.read_bytes()
    (table,) = place.glob("out/wandb/offline-run-*/files/media/table/means*.json")
    shown = json.loads(table.read_text(encoding="utf-8"))
    assert shown["columns"][3] == "psnr"
    assert [row[3] for row in shown["data"]] == pytest.approx(list(means(place / "out").values()))


def test_what_a_tracker_refuses_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: object) -> None:
        raise wandb.errors.UsageError("not logged in\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    assert cli.main([*SWEEP, "--no-report", "--log", "wandb"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "tlsc: the figures are in out, but wandb refuses them: UsageError: not logged in" in said
    assert (place / "out/results.csv").exists()


def test_a_tracker_that_is_not_there_is_named_before_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main([*SWEEP, "--log", "wandb"]) == 1
    assert "--log wandb needs wandb: pip install 'tlsc[tracking]'" in capsys.readouterr().err
    assert not (place / "out").exists()
