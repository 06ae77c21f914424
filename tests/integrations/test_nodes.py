"""The nodes of ``examples/``, called as their programs call them; these are not on PyPI: stand-ins call here.

What a node of ComfyUI has to have is written down in its documentation ("Server: properties"), and what chaiNNer's
``register`` takes in its own nodes.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tlsc

EXAMPLES = Path(__file__).parents[2] / "examples"


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sizes:
    def get_padding(self, width: int, height: int) -> tuple[int, int]:
        return -width % 8, -height % 8


class Loaded:
    """As much of a descriptor of spandrel as there is to one; the real one is in test_networks_of_others.py."""

    size_requirements = Sizes()

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def model(self) -> nn.Module:
        return self._model


@pytest.fixture
def loaded() -> Loaded:
    return Loaded(nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)))


def _is_a_converted_copy(made: Any, loaded: Loaded) -> bool:
    names = [type(net.model[1]).__name__ for net in (made, loaded)]  # type: ignore[index]
    assert made.model[0].weight is not loaded.model[0].weight  # type: ignore[index]
    assert torch.equal(made.model[0].weight, loaded.model[0].weight)  # type: ignore[index]
    return names == ["LocalInstanceNorm2d", "InstanceNorm2d"]


def test_the_node_for_comfyui(loaded: Loaded) -> None:
    """Run as the program does: the class by its name, arguments by the names of INPUT_TYPES, a tuple out."""
    example = _example("comfyui_tlsc")
    assert example.NODE_CLASS_MAPPINGS.keys() == example.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in example.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()["required"]
        given = {
            name: loaded if spec[0] == "UPSCALE_MODEL" else spec[1]["default"] for name, spec in inputs.items()
        }
        out = getattr(node(), node.FUNCTION)(**given)
        assert len(out) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert _is_a_converted_copy(out[0], loaded)
        assert "1 of 1 site becomes local" in out[1]
        plain = Loaded(nn.Sequential(nn.Conv2d(3, 3, 1)))
        same, text = getattr(node(), node.FUNCTION)(**{**given, "upscale_model": plain})
        assert same is plain
        assert "nothing to convert" in text


class Group:
    """What chaiNNer's ``NodeGroup.register`` is to a node."""

    def register(self, schema_id: str, name: str, inputs: list[Any], outputs: list[Any], **words: str) -> Any:
        self.words, self.inputs, self.outputs = {"schema_id": schema_id, "name": name, **words}, inputs, outputs
        return lambda run: run


def test_the_node_for_chainner(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"nodes.impl.pytorch.types": ("ModelInput", "ModelOutput"), "nodes.properties.inputs": ("NumberInput",)}
    for path, names in fakes.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        for name in names:
            monkeypatch.setattr(sys.modules[path], name, lambda label, **range_: (label, range_), raising=False)
    group = Group()
    run = _example("chainner_tlsc").register(group)
    assert set(group.words) == {"schema_id", "name", "description", "icon"}
    defaults = [range_["default"] for _, range_ in group.inputs if "default" in range_]
    assert len(defaults) == len(group.inputs) - 1  # all but the model
    made = run(loaded, *defaults)
    assert _is_a_converted_copy(made, loaded)
    assert tlsc.plan(made.model).base_size == (384, 384)
    with pytest.raises(tlsc.NoSiteError, match="nothing to convert"):
        run(Loaded(nn.Sequential(nn.Conv2d(3, 3, 1))), *defaults)
