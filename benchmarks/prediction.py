"""Predicted against measured gain: the table and the picture of ``docs/when-it-helps.md``.

``python -m benchmarks prediction train`` trains the networks that do not come along, into
``calibration-networks`` (each takes one to three minutes of a core; those that are there are left);
``python -m benchmarks prediction networks`` prints the tables, of the networks that are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from tlsc.adapters import DEMO_NETWORKS, DemoNetwork
from tlsc.eval.train.demo import train

FOLDER = Path("calibration-networks")
STEPS = 500


def _network(name: str, settings: Mapping[str, Any], crop: int, degradation: str) -> DemoNetwork:
    return dataclasses.replace(
        DEMO_NETWORKS["se"], name=name, settings=settings, crop=crop, degradation=degradation
    )


_SE: Mapping[str, Any] = {"squeeze_excitation": (0, 1, 2)}
_MIXED: Mapping[str, Any] = {"half_norm": (0,), "squeeze_excitation": (1, 2)}
_DEEP: Mapping[str, Any] = {"half_norm": (2,), "padding_mode": "replicate"}

# What to train, and with which seed.
TRAINED: dict[str, tuple[DemoNetwork, int]] = {
    "se, haze, crops of 96": (_network("se", _SE, 96, "haze"), 1),
    "hin, haze, crops of 64, seed 2": (_network("hin", _DEEP, 64, "haze"), 2),
    "mixed, haze, crops of 96": (_network("mixed", _MIXED, 96, "haze"), 0),
    "se, blur, crops of 64": (_network("se", _SE, 64, "motion-blur"), 1),
    "hin, blur, crops of 64": (_network("hin", _DEEP, 64, "motion-blur"), 1),
    "se, haze, crops of 128": (_network("se", _SE, 128, "haze"), 3),
    "hin-all, haze, crops of 64": (_network("hin-all", {"half_norm": (0, 1, 2)}, 64, "haze"), 1),
    "hin, haze, crops of 128": (_network("hin", _DEEP, 128, "haze"), 1),
    "mixed, blur, crops of 64": (_network("mixed", _MIXED, 64, "motion-blur"), 0),
}


def _file(name: str) -> Path:
    network, seed = TRAINED[name]
    return FOLDER / f"prediction-{network.name}-{network.degradation}-{network.crop}-{STEPS}-{seed}.safetensors"


def _train() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (network, seed) in TRAINED.items():
        path = _file(name)
        if not path.exists():
            model: nn.Module = train(network, STEPS, seed)
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
            print(path, flush=True)


def _load(name: str) -> nn.Module:
    network, _ = TRAINED[name]
    model = network.build()
    model.load_state_dict(load_file(_file(name)))
    return model.eval()


if __name__ == "__main__":
    _train()
