"""Lightning: a network is local in validation, and the original in training, whatever happens in between."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tlsc

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is in the group 'integrations'")

from tlsc.adapters.lightning import LocalValidation  # noqa: E402  it needs Lightning

BASE = 16
IMAGES = torch.rand(2, 3, 24, 40)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Restorer(pl.LightningModule):  # type: ignore[misc, name-defined]
    """Keeps what the network gave in each phase."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3, affine=True))
        self.fails = fails
        self.seen: dict[str, list[Tensor]] = {"train": [], "validation": []}
        self.kinds: dict[str, set[str]] = {"train": set(), "validation": set()}

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.kinds["train"].add(type(self.net[1]).__name__)
        return (self.net(batch[0]) - batch[0]).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: list[Tensor]) -> None:
        self.kinds["validation"].add(type(self.net[1]).__name__)
        expected = tlsc.revert(copy.deepcopy(self.net))
        tlsc.convert(expected, BASE, check=False)
        torch.testing.assert_close(self.net(batch[0]), expected(batch[0]))
        if self.fails:
            raise RuntimeError("out of memory, say")

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Image(Restorer):
    """With a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def _trainer(callback: LocalValidation, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet["enable_model_summary"] = False
    return pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback], **quiet, **options)


def _data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES), 1)


@pytest.mark.parametrize(("made", "module"), [(Restorer, "net"), (Image, None)])
def test_local_in_validation_and_as_before_in_training(made: type[Restorer], module: str | None) -> None:
    model = made()
    norm, keys = model.net[1], list(model.state_dict())
    trainer = _trainer(LocalValidation(BASE, module), num_sanity_val_steps=1)
    trainer.fit(model, _data(), _data())
    assert model.kinds == {"train": {"InstanceNorm2d"}, "validation": {"LocalInstanceNorm2d"}}
    assert model.net[1] is norm
    assert list(model.state_dict()) == keys
    for run in (trainer.validate, trainer.test, trainer.predict):
        model.kinds["validation"].clear()
        run(model, _data())
        assert model.kinds["validation"] == {"LocalInstanceNorm2d"}
        assert model.net[1] is norm


def test_as_before_after_an_exception() -> None:
    model = Restorer(fails=True)
    norm = model.net[1]
    with pytest.raises(RuntimeError, match="out of memory"):
        _trainer(LocalValidation(BASE, "net")).validate(model, _data(), verbose=False)
    assert model.net[1] is norm


def test_what_was_converted_by_hand_stays_so() -> None:
    model = Restorer()
    tlsc.convert(model.net, 8)
    local = model.net[1]
    _trainer(LocalValidation(BASE, "net")).validate(model, _data(), verbose=False)
    assert model.net[1] is local


def test_the_context_in_a_validation_step() -> None:
    class InAStep(Restorer):
        def validation_step(self, batch: list[Tensor]) -> None:
            with tlsc.converted(self.net, BASE):
                super().validation_step(batch)

    model = InAStep()
    norm = model.net[1]
    pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(model, _data(), verbose=False)
    assert model.kinds["validation"] == {"LocalInstanceNorm2d"}
    assert model.net[1] is norm


def test_what_cannot_be_found_is_named() -> None:
    with pytest.raises(tlsc.TLSCError, match=r"Restorer has no forward.*'net'"):
        _trainer(LocalValidation(BASE)).validate(Restorer(), _data(), verbose=False)
    with pytest.raises(tlsc.TLSCError, match=r"Restorer has no module 'nett'"):
        _trainer(LocalValidation(BASE, "nett")).validate(Restorer(), _data(), verbose=False)


TWO_PROCESSES = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import test_lightning as here
import lightning.pytorch as pl
from tlsc.adapters.lightning import LocalValidation
model = here.Restorer()
trainer = here._trainer(LocalValidation(here.BASE, "net"), devices=2, strategy="ddp", num_sanity_val_steps=1)
trainer.fit(model, here._data(), here._data())
assert model.kinds == {{"train": {{"InstanceNorm2d"}}, "validation": {{"LocalInstanceNorm2d"}}}}, model.kinds
print("rank", trainer.global_rank, "of", trainer.world_size, type(model.net[1]).__name__, flush=True)
"""


def test_in_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES.format(folder=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert lines == [f"rank {rank} of 2 InstanceNorm2d" for rank in (0, 1)]
