"""The command line's promises: one resolver of names, one rule for windows, JSON, quiet, suggestions, statuses."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tlsc
from tlsc.adapters import HINet, load_demo_network
from tlsc.eval import cli
from tlsc.eval.commands.inspect import _verdict
from tlsc.eval.commands.restore import _tolerance
from tlsc.eval.judge.verdict import Summary
from tlsc.eval.networks import chosen_device
from tlsc.eval.run.cells import Cell
from tlsc.eval.show.outputs import best_row
from tlsc.eval.show.plan import plan_table

from ..adapters.ncnn_files import real_cugan, write
from ..marks import slow_unless
from ..networks import with_random_weights

DOCUMENT = Path(__file__).parents[2] / "docs/command-line.md"

NET = """
import torch
from torch import nn

import beside

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        features = self.first(x)
        return x + 0.1 * self.last(features * torch.sigmoid(self.pool(features)))

def make():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and a network of every kind."""
    place = tmp_path_factory.mktemp("names")
    (place / "in").mkdir()
    values = np.random.default_rng(0).integers(60, 200, (20, 24, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(place / "in/a.png")
    (place / "nets_of_mine.py").write_text(NET)
    (place / "beside.py").write_text("")
    model = with_random_weights(HINet(wf=4, depth=2, hin_position_left=0, hin_position_right=1, padder_size=4))
    state = {key: value * 0.1 for key, value in model.state_dict().items()}
    torch.save({"params_ema": state}, place / "HINet-GoPro.pth")
    save_file(state, place / "net.safetensors")
    _write_onnx(place / "net.onnx")
    write(place / "up2x.param", real_cugan(2))
    (place / "larger").mkdir()
    values = np.random.default_rng(0).integers(60, 200, (72, 80, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(place / "larger/a.png")
    return place


def _write_onnx(path: Path) -> None:
    """Half of every pixel, by the operators of ONNX itself."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    of = onnx.helper
    image = of.make_tensor_value_info("image", 1, ["n", 3, "h", "w"])
    result = of.make_tensor_value_info("result", 1, ["n", 3, "h", "w"])
    half = of.make_tensor("half", 1, [1], [0.5])
    graph = of.make_graph([of.make_node("Mul", ["image", "half"], ["result"])], "g", [image], [result], [half])
    made = of.make_model(graph, opset_imports=[of.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, path)


@pytest.fixture
def place(files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(files)
    before = set(sys.modules)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if "nets_of_mine" in name or name == "beside":
            del sys.modules[name]


# ------------------------------------------------------------------------------------- verbs and kinds of networks

KINDS = {
    "demo network": "se",
    "with a noise level": "ffdnet",
    "`.pth`": "HINet-GoPro.pth",
    "`.safetensors`": "net.safetensors",
    "`.param`": "up2x.param",
    "`module:factory`": "nets_of_mine:make",
    "`path.py:factory`": "./nets_of_mine.py:make",
    "ONNX file": "net.onnx",
    "anything else": "hinn",
}
DATA = ["in", "--degrade", "noise:25"]
VERBS = {
    "inspect": lambda name, out: ["inspect", name, "--json"],
    "restore": lambda name, out: ["restore", name, "in", "-o", out, "--sigma", "25", "--json"],
    "eval": lambda name, out: ["eval", name, *DATA, "--crop", "8", "--no-report", "-o", out, "--json"],
    "sweep": lambda name, out: ["sweep", name, *DATA, "--patch-size", "8", "--no-report", "-o", out, "--json"],
    "shift": lambda name, out: ["shift", name, *DATA, "--crop", "8", "--crops", "1", "-o", out, "--json"],
    "advise": lambda name, out: ["advise", name, "in", "--crop", "8", "--crops", "2", "--sigma", "25", "--json"],
    "tune": lambda name, out: [
        "tune",
        name,
        "in",
        *["--crop", "8", "--crops", "2", "--sigma", "25", "--json", "-o"],
        f"{out}.json",
    ],
    "export": lambda name, out: ["export", name, "-o", f"{out}.onnx", "--json"],
}


def _table(title: str) -> dict[tuple[str, str], str]:
    """A table of the document as {(row, column): cell}."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {
        (row[0].strip("`"), column): cell for row in rows for column, cell in zip(columns, row[1:], strict=True)
    }


NAMES = _table("Which network a name stands for")


def test_the_table_of_names_is_whole() -> None:
    assert set(NAMES) == {(verb, kind) for verb in VERBS for kind in KINDS}


def _is_usual(case: tuple[str, str]) -> bool:
    """One resolver finds the network for all verbs: of those that run it for long, what users have most.

    The network in ncnn's format is a large one, and the same as others to all but what reads it.
    """
    verb, kind = case
    if kind == "`.param`":
        return verb == "restore"
    return verb not in ("eval", "sweep", "shift", "advise", "tune") or kind in USUAL_NAMES


USUAL_NAMES = {"demo network", "with a noise level", "`.pth`", "ONNX file", "anything else"}


@pytest.mark.parametrize(("verb", "kind"), slow_unless(_is_usual, sorted(NAMES)), ids=map(" ".join, sorted(NAMES)))
def test_every_verb_with_every_kind_of_name(
    verb: str, kind: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document's table: "yes", or what the one line on standard error says."""
    monkeypatch.setattr("tlsc.eval.show.shift._draw", lambda path, *rest: path.write_bytes(b""))
    monkeypatch.setattr(tlsc, "export", _written)
    argv = VERBS[verb](KINDS[kind], str(place / "out"))
    if kind == "`.param`":  # it enlarges, and takes no images below 32 pixels
        other = {"in": "larger", "8": "32", "noise:25": "bicubic:2"}
        argv = [other.get(word, word) for word in argv]
        if verb == "inspect":
            argv += ["--crop", "32"]
    if kind in ("`module:factory`", "`path.py:factory`") and verb in ("inspect", "restore", "export"):
        argv += ["--crop", "8"]
    if verb == "sweep":
        argv += ["--base-size", {"ONNX file": "none", "`.param`": "34"}.get(kind, "8")]
    status = cli.main(argv)
    said = capsys.readouterr()
    cell = NAMES[verb, kind]
    if cell.startswith("yes"):
        assert (status, said.err.count("tlsc: ")) == (0, said.err.count("tlsc: checking"))
        assert isinstance(json.loads(said.out), dict)
    else:
        assert status == 1
        assert said.out == ""
        assert cell.strip("“”") in said.err.splitlines()[-1]


def _written(model: nn.Module, path: Path, **options: Any) -> tlsc.Export:
    """What exporting takes seconds for is tested elsewhere."""
    path.write_bytes(b"")
    return tlsc.Export(path, 18, ("image",), ("result",), {}, {(1, 8, 8): 0.0}, {})


# ------------------------------------------------------------------------------------------------------ restore


def _restored(place: Path, *argv: str) -> np.ndarray[Any, Any]:
    assert cli.main(["restore", *argv, "-o", str(place / "b.png"), "--overwrite"]) == 0
    return np.asarray(PIL.Image.open(place / "b.png")).astype(int)


def test_restoring_converts_unless_told_otherwise(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_default = _restored(place, "se", "in/a.png", "--crop", "8")
    assert "UNet, 3 sites local over 12×12 pixels" in capsys.readouterr().out
    x = torch.from_numpy(np.asarray(PIL.Image.open("in/a.png")) / np.float32(255)).permute(2, 0, 1)[None]
    for base_size, got in ((12, by_default), (None, _restored(place, "se", "in/a.png", "--base-size", "none"))):
        model = load_demo_network("se")
        with torch.no_grad():
            expected = (model if base_size is None else tlsc.convert(model, base_size))(x)
        rounded = (expected.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
        assert np.abs(got - rounded).max() <= 1
    assert "UNet, as trained" in capsys.readouterr().out
    assert cli.main(["restore", "nets_of_mine:make", "in/a.png", "-o", str(place / "c.png")]) == 0
    assert "its training crop is not known (--crop N or --base-size N converts it)" in capsys.readouterr().out
    assert cli.main(["restore", "plain", "in/a.png", "-o", str(place / "d.png")]) == 0
    assert "there is nothing to convert" in capsys.readouterr().out
    assert cli.main(["restore", "plain", "in/a.png", "-o", str(place / "e.png"), "--base-size", "8"]) == 1


def test_both_spellings_of_restore_are_the_same(place: Path) -> None:
    new = _restored(place, "se", "in/a.png")
    argv = ["restore", "in/a.png", "--checkpoint", "se", str(place / "old.png")]
    assert cli.main(argv) == 0
    assert np.array_equal(np.asarray(PIL.Image.open(place / "old.png")), new)
    assert np.array_equal(_restored(place, "in/a.png", "--model", "se"), new)


def test_an_onnx_file_is_run_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = np.asarray(PIL.Image.open("in/a.png")).astype(int)
    assert np.abs(_restored(place, "net.onnx", "in/a.png") - given / 2).max() <= 1
    assert "as exported" in capsys.readouterr().out
    out = str(place / "x.png")
    assert cli.main(["restore", "net.onnx", "in/a.png", "-o", out, "--base-size", "8"]) == 1
    assert "runs as it was exported" in capsys.readouterr().err
    assert cli.main(["restore", "net.onnx", "in/a.png", "-o", out, "--memory", "1GiB"]) == 1
    assert "runs as exported: --tile N runs a file in blended tiles" in capsys.readouterr().err
    Path(place / "bad.onnx").write_text("no graph")
    assert cli.main(["restore", str(place / "bad.onnx"), "in/a.png", "-o", out]) == 1
    assert "ONNX Runtime cannot read" in capsys.readouterr().err


def test_pieces_say_how_far_they_are_from_the_whole(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlsc.adapters.pieces.memory import Model

    monkeypatch.setattr(Model, "pixels", lambda self, memory: 96 * 96)
    values = np.random.default_rng(1).integers(60, 200, (96, 160, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(place / "large.png")
    argv = ["restore", "se", str(place / "large.png"), "--crop", "8"]
    out = str(place / "pieces.png")
    assert cli.main([*argv, "-o", out, "--memory", "1GiB", "--tolerance", "1/255"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"large.png: (\d+) pieces .* differs from the whole image by at most ([\d.e-]+)/255", said)
    assert found is not None
    assert int(found[1]) > 1
    assert "estimated along all seams" in said
    got = np.asarray(PIL.Image.open(out)).astype(int)
    whole = _restored(place, *argv[1:])
    assert np.abs(got - whole).max() <= max(1, float(found[2]) + 1)
    assert cli.main([*argv, "-o", out, "--memory", "much", "--overwrite"]) == 1
    assert "memory must be a number of bytes" in capsys.readouterr().err
    assert cli.main([*argv, "-o", out, "--memory", "1GiB", "--base-size", "none", "--overwrite"]) == 1
    assert "--memory is for a converted network" in capsys.readouterr().err
    assert cli.main([*argv, "-o", out, "--tolerance", "0.01", "--tile", "16", "--overwrite"]) == 1
    assert "give one of them" in capsys.readouterr().err


def test_pieces_of_one_pixel_of_too_little_memory_and_of_a_site_that_stays_global(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("one", (1, 1)), ("odd", (50, 70))):
        PIL.Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(place / f"{name}.png")
    out = ["-o", str(place / "out"), "--overwrite"]
    one, odd = (str(place / f"{name}.png") for name in ("one", "odd"))
    assert cli.main(["restore", "se", one, odd, *out, "--base-size", "16", "--memory", "1GiB"]) == 0
    assert np.asarray(PIL.Image.open(place / "out" / "one.png")).shape == (1, 1, 3)
    assert cli.main(["restore", "se", odd, *out, "--base-size", "16", "--memory", "20MB"]) == 1
    assert re.search(
        r"19.1 MiB is too little .* the smallest piece, \d+×\d+ pixels, needs \d", capsys.readouterr().err
    )
    network = load_demo_network("se")
    kept = tlsc.plan(network, 16).converted[0].path
    tlsc.plan(network, 16, exclude=kept).save(place / "plan.json")
    argv = ["restore", "se", odd, *out, "--plan", str(place / "plan.json"), "--memory", "1GiB"]
    assert cli.main(argv) == 1
    assert re.search(rf"{kept} \(.*\) stays global: .* restore it in overlapping tiles", capsys.readouterr().err)


@pytest.mark.parametrize("options", [[], ["--memory", "1GiB"], ["--tolerance=0.5/255"]], ids=str)
def test_freed_memory_is_kept_unless_it_is_limited(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(cli, "keep_memory", lambda: kept.append(True))
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tlsc", "restore", "se", "in", *options])
    assert cli.script() == 0
    assert bool(kept) == (not options)


@pytest.mark.parametrize(("text", "value"), [("1/255", 1 / 255), ("0.5/255", 0.5 / 255), ("0.25", 0.25)])
def test_tolerances(text: str, value: float) -> None:
    assert _tolerance(text) == pytest.approx(value)


# ----------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["inspect", "hinn"], "did you mean hin?"),
        (["inspect", "none.pth"], "no network 'none.pth': there is no such file"),
        (["inspect", "nets_of_mine:maek"], "did you mean make?"),
        (["inspect", "nets_of_mine.py"], "nets_of_mine.py:NAME"),
        (["inspect", "no_such.py:make"], "there is no file no_such.py"),
        (["restore", "in/a.png", "in"], "is a picture, not a network"),
        (["restore", "se"], "nothing to restore with se"),
        (["restore", "se", "in", "restored"], "restored: no such file"),
        (["eval", "se", "in", "--degrade", "nois:25"], "did you mean noise?"),
        (["eval", "se", "in", "--protocol", "rgb-unit8"], "did you mean rgb-uint8?"),
        (["eval", "se", "in", "--dtype", "flaot32"], "did you mean float32?"),
        (["shift", "se", "in", "--base-size", "none"], "leave --base-size none out"),
    ],
    ids=" ".join,
)
def test_what_is_mistyped(argv: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["inspekt", "se"], "did you mean inspect?"),
        (["inspect", "se", "--base-sze", "64"], "did you mean --base-size?"),
        (["restore", "se", "in", "--tolerance", "2"], "above 0 and at most 1"),
        (["inspect", "se", "--base-size", "large"], "auto, none, N or HEIGHTxWIDTH"),
        (["eval", "se", "in", "--backend", "ncl"], "did you mean nccl?"),
    ],
    ids=" ".join,
)
def test_what_is_not_understood_is_status_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_a_gpu_where_there_is_one(there: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device("auto") == device
    assert chosen_device("cuda:1") == "cuda:1"


def test_every_verb_tells_its_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    for verb in (*VERBS, "demo", "list", "nlm"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([verb, "--help"])
        assert "Exit status: 0 done; 1 failed" in capsys.readouterr().out
        assert f"`{verb}" in document


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", shell])
    said = capsys.readouterr().out
    assert "--base-size" in said
    assert "inspect" in said


def test_quiet_and_verbose(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["restore", "se", "in", "-o", str(place / "out"), "--overwrite"]
    assert cli.main([*argv, "-q"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "restored 1 of 1 images" in said.out
    assert cli.main([*argv, "-v"]) == 0
    assert "on cpu in float32" in capsys.readouterr().err
    assert cli.main(["inspect", "none.pth", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_json_of_the_other_verbs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    assert "hin-all" in json.loads(capsys.readouterr().out)
    assert cli.main(["nlm", "fit", "--clean", "in/a.png", "--steps", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 3


def test_a_failed_image_is_in_the_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.png").write_text("no picture")
    assert cli.main(["restore", "se", str(place / "bad.png"), "-o", str(place / "o"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 1
    assert "not an image" in found["images"][0]["error"]


# ------------------------------------------------------------------------------------------------------ inspect


def test_inspect_begins_with_what_was_recognised(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "HINet-GoPro.pth", "-o", str(place / "found.json")]) == 0
    said = capsys.readouterr().out
    for fact in (
        r"architecture +HINet",
        "hin_position_right=1",
        r"HINet-GoPro\.pth, under params_ema",
        r"deblurring \(by the file's name\)",
        r"256 \(published for HINet\)",
        "384: 1.5 times the training crop",
    ):
        assert re.search(fact, said.partition("base_size")[0])
    found = json.loads((place / "found.json").read_text(encoding="utf-8"))
    assert found["network"]["window"] == 384
    assert cli.main(["inspect", "se", "--crop", "32"]) == 0
    assert "32 (as given by --crop)" in capsys.readouterr().out


def test_similar_sites_are_one_row_and_empty_columns_none() -> None:
    def site(path: str, size: int, reason: str = "") -> tlsc.Site:
        window = None if reason else (size, size)
        action: Any = "left alone" if reason else "exact"
        return tlsc.Site(path, "AdaptiveAvgPool2d", (size, size), window, action, reason)

    blocks = [f"stage{n % 2}.encoder.{n}.CA.avg_pool" for n in range(34)]
    sites = [site("head.norm", 64), *(site(path, 16 * (1 + n % 3)) for n, path in enumerate(blocks))]
    said = plan_table(tlsc.Plan((64, 64), 1, tuple(sites)))
    assert "35 of 35 sites become local" in said
    rows = [re.split(r"  +", line) for line in said.splitlines()[2:]]
    assert rows[0] == ["path", "operation", "feature size", "window", "action"]
    assert rows[2] == ["head.norm", "AdaptiveAvgPool2d", "64×64", "64×64", "exact"]
    assert rows[3] == ["34 × *.CA.avg_pool", "AdaptiveAvgPool2d", *["16×16 to 48×48"] * 2, "exact"]
    assert len(rows) == 4
    # Who asks for all of them gets them; what is left is not mixed with what is converted.
    assert len(plan_table(tlsc.Plan((64, 64), 1, tuple(sites)), every=True).splitlines()) == 4 + 35
    left = [*sites, *(site(f"tail.{n}.CA.avg_pool", 8, "it is not global") for n in range(5))]
    assert "5 × tail.*.CA.avg_pool" in plan_table(tlsc.Plan((64, 64), 1, tuple(left)))


def test_the_highest_psnr_is_marked_and_no_column_is_empty(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "se", *DATA, "--no-whole", "--tile", "8,16", "--overlap", "0", "--base-size", "none"]
    assert cli.main([*argv, "--no-report", "-o", str(place / "out")]) == 0
    said = capsys.readouterr().out
    names, _, *rows = said.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert "variant" in names
    marked = [row for row in rows if "*" in row]
    assert len(marked) == 1
    figures = [float(re.findall(r"\d+\.\d\d", row)[0]) for row in rows]
    assert float(re.findall(r"\d+\.\d\d", marked[0])[0]) == max(figures)
    assert "LPIPS" not in names


def test_a_bold_row_is_the_highest_whatever_is_advised() -> None:
    def summary(psnr: float, identical: int = 0) -> Summary:
        return Summary(Cell(), 2, psnr, identical, 1.0, None, None, None, 0)

    for figures, best in (((30.0, 29.0, 31.0), 2), ((math.nan, 20.0), 1), ((math.nan,), None)):
        outcome: Any = SimpleNamespace(summaries=[summary(value) for value in figures])
        assert best_row(outcome) == best
    assert best_row(SimpleNamespace(summaries=[summary(50.0), summary(math.nan, identical=2)])) == 1  # type: ignore[arg-type]


def test_the_influence_has_a_verdict() -> None:
    def measured(change: float, culprit: str | None = None) -> Any:
        return SimpleNamespace(change_distance=np.array([16, 96]), change=np.array([1.0, change]), culprit=culprit)

    for after, said in (
        (None, "changes the centre of the output by 0.5 as trained; nothing becomes local"),
        (
            measured(0.0),
            "farther than 96 changes the centre of the output by 0.5 as trained, and not at all converted",
        ),
        (measured(0.1, "head (Mean)"), "by 0.1 converted: head (Mean) still looks at the whole image"),
        (measured(1e-5), "by 1e-05 converted, where windows add up"),
        (measured(1e-9), "converted by less than a millionth of what near pixels do"),
        (measured(1e-9, "head (Mean)"), "by 1e-09 converted: head (Mean) still looks"),
    ):
        assert said in _verdict(measured(0.5), after)
