"""NLMNet with the weights that come along, and the command line around non-local means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import tlsc
from tlsc.adapters import NLMNet, NonLocalMeans, nonlocal_means
from tlsc.errors import ArgumentTypeError, ArgumentValueError
from tlsc.eval.cli import main
from tlsc.eval.images.photographs import TEST_PHOTOGRAPHS, load_photograph
from tlsc.eval.judge.metrics import psnr
from tlsc.eval.run import nlm
from tlsc.eval.show.nlm import CONSTANT_NOISE

from .marks import slow_unless


def _photograph(name: str) -> Tensor:
    return torch.from_numpy(load_photograph(name)).permute(2, 0, 1)[None].contiguous()


def _crop(rows: slice = slice(100, 140), columns: slice = slice(100, 150)) -> Tensor:
    return _photograph("chelsea")[..., rows, columns]


# --------------------------------------------------------------------------------------------------- NLMNet


@torch.no_grad()
def test_conversion_makes_the_strength_a_map() -> None:
    net = NLMNet.pretrained()
    x = torch.rand(2, 3, 170, 180)
    one = net.strength(x)
    plan = tlsc.plan(net, NLMNet.base_size)
    assert [(site.path, site.window) for site in plan.sites] == [("pool", (160, 160))]
    tlsc.convert(net, NLMNet.base_size)
    assert one.shape == (2, 1, 1, 1)
    assert net.strength(x).shape == (2, 1, 170, 180)
    options: dict[str, Any] = {"distance": "color", "weights": "gaussian"}
    assert torch.equal(net(x), nonlocal_means(x, net.strength(x), 11, 3, "reflect", **options))
    assert torch.equal(tlsc.revert(net).strength(x), one)


@torch.no_grad()
def test_strength_at_a_pixel_is_that_of_its_window() -> None:
    """Away from the ring that each crop's own border makes, to the little that the ring changes."""
    x = nlm.noisy(_crop(slice(100, 240), slice(100, 260)), 0.1, seed=0)
    net = NLMNet.pretrained()
    crop = float(net.strength(x[..., 40:104, 50:114]))
    local = float(tlsc.convert(net, 64).strength(x)[0, 0, 40 + 31, 50 + 31])
    assert local == pytest.approx(crop, rel=0.05)


@torch.no_grad()
def test_strength_follows_the_noise() -> None:
    clean = _crop(slice(0, 160), slice(0, 160))
    strengths = [float(NLMNet.pretrained().strength(nlm.noisy(clean, s, 0))) for s in (0.02, 0.05, 0.1, 0.2)]
    assert strengths == sorted(strengths)
    assert strengths[-1] > 4 * strengths[0]


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "chelsea", TEST_PHOTOGRAPHS))
def test_converting_wins_where_noise_varies_and_costs_nothing_where_it_does_not(name: str) -> None:
    """Whole photographs that were not trained on: at least +0.3 dB; within 0.1 dB."""
    clean = _photograph(name)
    ramp = torch.linspace(0.01, 0.2, clean.shape[3])
    for sigma, least in ((ramp, 0.3), (0.02, -0.1), (0.05, -0.1), (0.1, -0.1)):
        found = nlm.compare(nlm.noisy(clean, sigma, seed=1))
        assert psnr(found.converted, clean) >= psnr(found.original, clean) + least
    assert found.strengths.shape[2:] == clean.shape[2:]


def test_trains_end_to_end() -> None:
    torch.manual_seed(0)  # some weights leave all of a narrow layer's units at 0
    net = NLMNet(width=16)
    net(torch.rand(2, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad is not None and p.grad.any() for p in net.gate.parameters())


def test_training_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlsc.adapters import nlm_net
    from tlsc.eval.train.nlm_net import main

    threads = torch.get_num_threads()
    try:
        assert main(["--crops", "4", "--steps", "2", "--batch", "2", "--tuning", "1", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(nlm_net, "_WEIGHTS", tmp_path / "nlm_net.safetensors")
    trained = NLMNet.pretrained()
    torch.manual_seed(0)
    assert not torch.equal(trained.gate[0].weight, NLMNet().gate[0].weight)
    with safe_open(tmp_path / "nlm_net.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "2"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ArgumentValueError, "width .* 0"),
        ({"width": "16"}, ArgumentTypeError, "width .* '16'"),
        ({"search_window": 4}, ArgumentValueError, "search_window must be odd.* 4"),
        ({"patch": 2}, ArgumentValueError, "patch must be odd.* 2"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NLMNet(**arguments)


def test_a_network_with_a_learnable_layer_inside_can_be_planned_and_converted() -> None:
    """Planning runs it on fake tensors, of which no number can be read."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoise = NonLocalMeans(0.1, 3, 3)
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.denoise(x))  # type: ignore[no-any-return]

    net = tlsc.convert(Net().double(), 8)
    assert net(torch.rand(1, 3, 12, 12, dtype=torch.float64)).shape == (1, 3, 12, 12)


# -------------------------------------------------------------------------------------------- command line


def test_fit_finds_the_best_strength() -> None:
    """From below and from above, as well as a search over a grid does."""
    clean = _crop()
    image = nlm.noisy(clean, 0.05, seed=0)
    best = max(psnr(nonlocal_means(image, h, 7, 3), clean) for h in torch.linspace(0.02, 0.3, 40).tolist())
    for h0 in (0.01, 1.0):
        steps = list(nlm.fit(image, clean, h0, 40, 7, 3))
        assert [step.number for step in steps] == list(range(41))
        assert steps[0].h == pytest.approx(h0)
        assert steps[0].psnr < best - 1
        assert steps[-1].psnr > best - 0.001


def test_fit_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import skimage.io

    pixels = (_crop()[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    for name, image in (("rgb.png", pixels), ("grey.png", pixels[..., 0])):
        skimage.io.imsave(tmp_path / name, image, check_contrast=False)
        arguments = ["--clean", str(tmp_path / name), "--steps", "12", "--search-window", "5"]
        assert main(["nlm", "fit", *arguments, "--plot", str(tmp_path / "plot.png"), "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "step  PSNR [dB]         h" in printed
    assert "     0" in printed
    assert "    12" in printed
    assert skimage.io.imread(tmp_path / "plot.png").std() > 10
    assert {path.name for path in tmp_path.iterdir()} == {"rgb.png", "grey.png", "plot.png"}


def test_map_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import skimage.io

    given = tmp_path / "given.png"
    skimage.io.imsave(given, (_crop()[0].permute(1, 2, 0).numpy() * 255).astype("uint8"), check_contrast=False)
    for sigma in ([], ["--sigma", "0.01", "0.2"]):
        out = tmp_path / f"{len(sigma)}.png"
        arguments = ["nlm", "map", str(given), *sigma, "--base-size", "32", "--out", str(out)]
        assert main(arguments) == 0
        assert skimage.io.imread(out).std() > 10
        assert ("PSNR" in capsys.readouterr().out) == bool(sigma)


def test_demo_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlsc.eval.images.photographs.TEST_PHOTOGRAPHS", ("chelsea",))
    monkeypatch.setattr("tlsc.eval.images.photographs.load_photograph", lambda n: load_photograph(n)[:60, :80])
    assert main(["nlm", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("chelsea")]) == 1 + len(CONSTANT_NOISE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--clean", "nowhere.png"], "no file 'nowhere.png'.* coffee"),
        (["fit", "--clean", "text.png"], r"text\.png: .*not an image"),
        (["fit", "--clean", "range.tif"], r"range\.tif: .* must have values in \[0, 1\].* 7\.5"),
        (["fit", "--clean", "coffee", "--plot", "nowhere/plot.png"], "no folder 'nowhere'"),
        (["fit", "--clean", "rgb.png", "--h0", "1e-9"], "h0 = 1e-09 .* start from a larger one"),
        (["map", "coffee", "--out", "nowhere/plot.png"], "no folder 'nowhere'"),
        (["map", "rgb.png", "--sigma", "1", "2", "3"], "--sigma .* 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    import skimage.io

    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("not an image")
    skimage.io.imsave("range.tif", torch.full((8, 8), 7.5).numpy(), check_contrast=False)
    skimage.io.imsave("rgb.png", (_crop()[0].permute(1, 2, 0).numpy() * 255).astype("uint8"), check_contrast=False)
    before = set(tmp_path.iterdir())
    assert main(["nlm", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tlsc: ")
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--h0", "0"),
        ("--h0", "nan"),
        ("--sigma", "-1"),
        ("--steps", "0"),
        ("--patch", "4"),
        ("--search-window", "x"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nlm", "fit", "--clean", "coffee", option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def test_help_comes_without_the_libraries_that_the_commands_need() -> None:
    code = (
        "import sys; sys.modules['skimage'] = sys.modules['matplotlib'] = None; "
        "from tlsc.eval.cli import main; main(['nlm', '-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fit" in done.stdout
