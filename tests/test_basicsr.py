"""Option files written for the published code, through BasicSR's own test pipeline."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import chelsea
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import tlsc
from tlsc import adapters
from tlsc.adapters import load, run
from tlsc.eval.judge.metrics import Protocol, score

from .marks import slow_unless
from .networks import with_random_weights

ROOT = Path(__file__).parents[1]

if importlib.util.find_spec("basicsr") is None:
    pytest.skip("BasicSR is an extra, and does not build on Python 3.13", allow_module_level=True)

BORDER = 4
OPTIONS = """
name: HINetLocal-GoPro-test
model_type: {model_type}
scale: 1
num_gpu: 1
manual_seed: 10
datasets:
  val:
    name: photographs
    type: PairedImageDataset
    dataroot_gt: {folder}/target
    dataroot_lq: {folder}/input
    io_backend:
      type: disk
network_g:
  type: HINetLocal
  wf: 4
  depth: 4
  hin_position_left: 2
  hin_position_right: 3
  base_size: 32
path:
  pretrain_network_g: {folder}/HINet-GoPro.pth
  strict_load_g: true
  resume_state: ~
val:
  save_img: true
  grids: false
  suffix: ~
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false
    ssim:
      type: calculate_ssim
      crop_border: 4
      test_y_channel: false
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The maps are tiny: two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def basicsr() -> Any:
    """The adapter, which takes seconds to import: not while tests are collected."""
    return importlib.import_module("tlsc.adapters.basicsr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paired photographs and a checkpoint whose results are near its inputs, where SSIM tells something."""
    path = tmp_path_factory.mktemp("basicsr")
    whole = chelsea()
    rng = np.random.default_rng(0)
    for kind in ("target", "input"):
        (path / kind).mkdir()
    for i, (top, left, height, width) in enumerate([(0, 0, 70, 90), (100, 120, 64, 96), (180, 250, 81, 49)]):
        target = whole[top : top + height, left : left + width]
        noisy = np.clip(target + rng.normal(0, 12, target.shape), 0, 255).round().astype(np.uint8)
        PIL.Image.fromarray(target).save(path / "target" / f"{i}.png")
        PIL.Image.fromarray(noisy).save(path / "input" / f"{i}.png")
    model = with_random_weights(adapters.HINet(wf=4, depth=4, hin_position_left=2, hin_position_right=3))
    state = {k: v * 0.003 if k.startswith("last") else v for k, v in model.state_dict().items()}
    torch.save({"params": state}, path / "HINet-GoPro.pth")
    return path


def test_the_pipeline_s_figures_are_ours(folder: Path) -> None:
    """BasicSR's means of PSNR and SSIM, and the images that it writes, against our network and scikit-image."""
    (folder / "test.yml").write_text(OPTIONS.format(folder=folder, model_type="ImageRestorationModel"))
    done = subprocess.run(
        [sys.executable, "-m", "tlsc.adapters.basicsr", "-opt", "test.yml"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = {
        name: float(value) for name, value in re.findall(r"# (psnr|ssim): ([\d.]+)", done.stdout + done.stderr)
    }
    local, plain = load(folder / "HINet-GoPro.pth", base_size=32), load(folder / "HINet-GoPro.pth")
    ours, as_trained = [], []
    written = folder / "results" / "HINetLocal-GoPro-test" / "visualization" / "photographs"
    for path in sorted((folder / "input").iterdir()):
        target = np.asarray(PIL.Image.open(folder / "target" / path.name))
        restored = _restored(local, path)
        saved = np.asarray(PIL.Image.open(written / f"{path.stem}_HINetLocal-GoPro-test.png"))
        assert np.abs(saved.astype(int) - restored.astype(int)).max() <= 1
        ours.append(_figures(saved, target))
        assert _figures(restored, target) == pytest.approx(ours[-1], abs=2e-3)
        as_trained.append(_figures(_restored(plain, path), target))
    means = dict(zip(("psnr", "ssim"), np.mean(ours, 0), strict=True))
    assert theirs == pytest.approx(means, abs=6e-5)  # the log has four decimals
    assert abs(np.mean(as_trained, 0)[0] - means["psnr"]) > 2e-3, "converting must show"


def _restored(model: torch.nn.Module, path: Path) -> NDArray[np.uint8]:
    x = torch.from_numpy(np.asarray(PIL.Image.open(path)).astype(np.float32) / 255).permute(2, 0, 1)[None]
    out = run(model, x).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    return (out * 255).round().astype(np.uint8)  # type: ignore[no-any-return]


def _figures(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> tuple[float, float]:
    """Ours, which are scikit-image's."""
    figures = score(image, target, Protocol("rgb-uint8", BORDER))
    a, b = (x[BORDER:-BORDER, BORDER:-BORDER] for x in (image, target))
    ssim = structural_similarity(
        a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    theirs = peak_signal_noise_ratio(b, a, data_range=255), ssim
    assert (figures.psnr, figures.ssim) == pytest.approx(theirs, abs=1e-6)
    return figures.psnr, figures.ssim


SMALL: dict[str, dict[str, Any]] = {
    "HINet": {"wf": 4, "hin_position_left": 3},
    "MPRNet": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
    "NAFNet": {"width": 4, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]},
    "Restormer": {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
}


@pytest.mark.parametrize("name", slow_unless(lambda name: name not in ("MPRNet", "Restormer"), SMALL))
@torch.no_grad()
@pytest.mark.usefixtures("basicsr")
def test_local_networks_are_the_converted_ones(name: str) -> None:
    """With the arguments of option files; and what BasicSR calls gets an image back, in evaluation mode."""
    from basicsr.archs import build_network

    network = build_network(
        {
            "type": f"{name}Local",
            "base_size": [24, 32],
            "train_size": [1, 3, 16, 16],
            "fast_imp": True,
            **SMALL[name],
        }
    )
    with_random_weights(network)  # a fresh NAFNet is the identity
    plan = tlsc.plan(network, (24, 32))
    assert plan.converted
    x = torch.rand(1, 3, 40, 48)
    local = network.eval()(x)
    assert local.shape == x.shape
    again = tlsc.convert(network, (24, 32), stride=4)(x)
    assert torch.equal(again, local)
    tlsc.revert(network)
    assert not torch.allclose(network(x), local)
    assert network(torch.rand(1, 3, 13, 9)).shape == (1, 3, 13, 9)
    state = network.state_dict()
    if name in ("HINet", "MPRNet"):
        plain = getattr(adapters, name)(**SMALL[name])
        assert plain.state_dict().keys() == state.keys()
        assert isinstance(network.train()(x), list)


@pytest.mark.parametrize(
    ("given", "window"),
    [({}, 384), ({"train_size": [1, 3, 32, 48]}, (48, 72)), ({"train_size": 64}, 96), ({"base_size": 40}, 40)],
    ids=str,
)
def test_the_window_is_what_the_published_code_takes(
    basicsr: Any, given: dict[str, Any], window: int | tuple[int, int]
) -> None:
    network = basicsr.HINetLocal(wf=2, depth=2, hin_position_left=1, **given)
    wanted = tlsc.plan(network, window).converted
    assert [network.get_submodule(site.path).window for site in wanted] == [site.window for site in wanted]


def test_arguments_are_checked(basicsr: Any) -> None:
    with pytest.raises(ValueError, match="train_size must be an int"):
        basicsr.HINetLocal(wf=2, depth=2, train_size=[1, 2, 3])
    with pytest.raises(ValueError, match="grids: true"):
        basicsr.ImageRestorationModel({"val": {"grids": True}})


@pytest.mark.parametrize("name", slow_unless(lambda name: name in ("HINet", "NAFNet"), SMALL))
def test_registered_networks_can_be_pickled(basicsr: Any, name: str) -> None:
    network = getattr(basicsr, f"{name}Local")(base_size=16, **SMALL[name])
    assert pickle.loads(pickle.dumps(network)).state_dict().keys() == network.state_dict().keys()


@pytest.mark.usefixtures("basicsr")
def test_the_shim_lives_in_one_place_and_leaves_no_trace() -> None:
    assert "torchvision.transforms.functional_tensor" not in sys.modules
    files = [path for folder in ("tlsc", "adapters", "eval") for path in (ROOT / folder).glob("*.py")]
    assert {path.name for path in files if "functional_tensor" in path.read_text()} == {"basicsr.py"}


def test_without_basicsr_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "basicsr":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "basicsr", None)
    monkeypatch.delitem(sys.modules, "tlsc.adapters.basicsr", raising=False)
    with pytest.raises(tlsc.TLSCError, match=r"tlsc\.adapters\.basicsr needs basicsr.*tlsc\[basicsr\]") as caught:
        importlib.import_module("tlsc.adapters.basicsr")
    assert type(caught.value).__name__ == "MissingPackageError"
