"""What a command would write over: nothing that exists, unless it is told to; a source never."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tlsc.eval import cli

DOCUMENT = Path(__file__).parents[2] / "docs/command-line.md"

# The verb and its arguments, and a file that it writes. A folder "in" holds a picture, "out" is empty.
VERBS = {
    "restore": (["restore", "in/a.png", "out/b.png", "--checkpoint", "plain"], "out/b.png"),
    "restore, a folder": (["restore", "in", "out", "--checkpoint", "plain"], "out/a.png"),
    "export": (["export", "plain", "out/net.onnx"], "out/net.onnx"),
    "inspect": (["inspect", "se", "--influence", "32", "--base-size", "16", "--picture", "out/p.png"], "out/p.png"),
    "shift": (["shift", "se", "in", "--degrade", "noise:25", "--out", "out"], "out/shift.json"),
    "eval": (["eval", "plain", "in", "--degrade", "noise:25", "--out", "out", "--no-report"], "out/psnr.png"),
    "sweep": (["sweep", "plain", "in", "--degrade", "noise:25", "--out", "out"], "out/results.csv"),
    "tune": (["tune", "se", "in", "--degrade", "noise:25", "-o", "out/plan.json"], "out/plan.json"),
    "demo": (["demo", "--out", "out"], "out/psnr.png"),
    "nlm fit": (["nlm", "fit", "--clean", "in/a.png", "--steps", "1", "--plot", "out/p.png"], "out/p.png"),
    "nlm map": (["nlm", "map", "in/a.png", "--out", "out/p.png"], "out/p.png"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("in", "out"):
        Path(name).mkdir()
    values = np.random.default_rng(0).integers(60, 200, (70, 72, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save("in/a.png")
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_what_exists_is_refused(verb: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, written = VERBS[verb]
    Path(written).write_text("mine")
    before = sorted(place.rglob("*"))
    assert cli.main(argv) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{written} exists: --overwrite replaces it" in said
    assert Path(written).read_text() == "mine"
    left = [path for path in sorted(place.rglob("*")) if path.name != ".lock"]
    assert left == before


@pytest.mark.parametrize("verb", ["restore", "restore, a folder", "eval", "nlm fit"])
def test_what_exists_is_replaced_when_asked(verb: str, place: Path) -> None:
    argv, written = VERBS[verb]
    Path(written).write_text("mine")
    assert cli.main([*argv, "--overwrite"]) == 0
    # Without pictures, eval removes those of an earlier run.
    assert not Path(written).exists() or Path(written).read_bytes().startswith(b"\x89PNG")


def test_a_forgotten_folder_costs_no_original(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last of several pictures is taken for the output."""
    original = Path("in/a.png").read_bytes()
    PIL.Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("first.png")
    assert cli.main(["restore", "first.png", "in/a.png", "--checkpoint", "plain"]) == 1
    assert re.search(r"in/a\.png exists: .*the last name is the output", capsys.readouterr().err)
    assert Path("in/a.png").read_bytes() == original


SOURCES = [
    ["restore", "in/a.png", "in/a.png", "--checkpoint", "plain"],
    ["restore", "in", "in", "--checkpoint", "plain"],
    ["nlm", "map", "in/a.png", "--out", "in/../in/a.png"],
    ["nlm", "fit", "--clean", "in/a.png", "--plot", "in/a.png"],
    ["export", "in/a.png", "in/a.png"],
    ["tune", "se", "in", "-o", "in/a.png"],
    ["inspect", "in/a.png", "--picture", "in/a.png"],
]


@pytest.mark.parametrize("argv", SOURCES, ids=" ".join)
def test_a_source_is_never_overwritten(argv: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("in/a.png").read_bytes()
    assert cli.main([*argv, "--overwrite"]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("in/a.png").read_bytes() == before


def test_the_document_says_what_is_refused() -> None:
    """Its table has every verb; verbs that refuse their sources are those that are tried above."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## What is already there\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line][2:]
    said = {row[0].strip("`"): row[2:] for row in rows}
    assert set(said) == {verb.partition(",")[0] for verb in VERBS}
    assert all(exists.startswith("refused") for exists, _ in said.values())
    tried = {verb for verb in said for argv in SOURCES if argv[: len(verb.split())] == verb.split()}
    assert {verb for verb, (_, source) in said.items() if source != "–"} == tried
