"""How a network of ours is found in a checkpoint: by its parameters' names, its settings by their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tlsc.adapters.checkpoints import Checkpoint, CheckpointError, Weights, joined

__all__ = ["Architecture", "Found", "count", "dimensions"]

MOST_LEVELS = 100  # or blocks one behind the other: far more than any published network of ours has
MOST_PREFIXES = 100


@dataclass(frozen=True)
class Found:
    """Weights that belong to an architecture: those whose names start with ``prefix``."""

    weights: Weights
    prefix: str

    @property
    def own(self) -> Weights:
        """The weights without the prefix."""
        return self.weights.under(self.prefix)


@dataclass(frozen=True)
class Architecture:
    """A network that can be recognised and built.

    Attributes:
        name: as users know it.
        build: makes it from its settings.
        marks: names of parameters that together no other network has; half of them are enough, so that what
            is missing can be named.
        settings: reads the arguments of ``build`` off a state dict and a safetensors file's metadata.
    """

    name: str
    build: Callable[..., nn.Module]
    marks: tuple[str, ...]
    settings: Callable[[Mapping[str, Tensor], Mapping[str, str]], dict[str, Any]]

    def find(self, weights: Weights) -> Iterator[Found]:
        """The prefixes under which this network lies among the weights."""
        prefixes: dict[str, int] = {}
        for key in weights.state:
            for mark in self.marks:
                if key == mark or key.endswith(f".{mark}"):
                    prefix = key[: -len(mark)]
                    prefixes[prefix] = prefixes.get(prefix, 0) + 1
        found = [prefix for prefix, number in prefixes.items() if 2 * number >= len(self.marks)]
        for prefix in found[:MOST_PREFIXES]:
            yield Found(weights, prefix)

    def load(self, checkpoint: Checkpoint, weights: Weights) -> nn.Module:
        """Build the network and give it the weights.

        Raises:
            CheckpointError: they do not fit together; says which do not, in one line.
        """
        looks = f"{checkpoint.path}: the weights{_under(weights)} look like those of {self.name}, but"
        without_values = [key for key, value in weights.state.items() if value.is_meta]
        if without_values:
            raise CheckpointError(
                f"{looks} {joined(without_values)} lie on the meta device: only shapes were saved, and no values"
            )
        try:
            settings = self.settings(weights.state, checkpoint.metadata)
            with torch.device("meta"):
                model = self.build(**settings)
        except (ValueError, TypeError, SyntaxError, RecursionError) as error:
            # Settings that contradict each other, and metadata that is no Python literal.
            raise CheckpointError(f"{looks} {(str(error).splitlines() or [type(error).__name__])[0]}") from error
        except (RuntimeError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{looks} their shapes stand for a network larger than any") from error
        state = _completed(model, weights.state)
        _check_shared(model, state, looks)
        wrong = _differences(model, state)
        if wrong:
            read = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise CheckpointError(f"{looks} {wrong} ({self.name}({read}) was read off the shapes)")
        model.load_state_dict(state, assign=True)
        return model


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many consecutive numbers, from 0, stand for ``{}`` in names that start like ``pattern``.

    Example:
        >>> count({"a.0.weight": torch.ones(1), "a.1.bias": torch.ones(1)}, "a.{}.")
        2
    """
    before, after = pattern.split("{}")
    seen = set()
    for key in state:
        if key.startswith(before):
            digits, found, _ = key[len(before) :].partition(after) if after else (key[len(before) :], "", "")
            if digits.isdecimal() and len(digits) < 10 and (found or not after):
                seen.add(int(digits))
    number = 0
    while number in seen:
        number += 1
    if number > MOST_LEVELS:
        raise CheckpointError(f"there are {number} of {pattern.format('*')}, more than any network has")
    return number


def dimensions(state: Mapping[str, Tensor], names: Sequence[str], rank: int) -> tuple[int, ...]:
    """The shape of the first of these tensors that is there.

    Raises:
        CheckpointError: none is there, or it has another number of dimensions.
    """
    for name in names:
        if name in state:
            if state[name].dim() != rank or 0 in state[name].shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(state[name].shape)}, where {rank} dimensions belong"
                )
            return tuple(state[name].shape)
    raise CheckpointError(f"keys are missing: {joined(list(names))}")


def _under(weights: Weights) -> str:
    return f" under {'.'.join(weights.where)}" if weights.where else ""


def _aliases(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _completed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With every name of a shared parameter: ``safetensors.torch.save_model`` writes one of them only."""
    state = dict(state)
    for group in _aliases(model):
        present = [name for name in group if name in state]
        state.update((name, state[present[0]]) for name in group if present and name not in state)
    return state


def _check_shared(model: nn.Module, state: Mapping[str, Tensor], looks: str) -> None:
    for group in _aliases(model):
        copies = [(name, state[name]) for name in group if name in state]
        for name, value in copies[1:]:
            if value.shape == copies[0][1].shape and not torch.equal(value, copies[0][1]):
                raise CheckpointError(
                    f"{looks} {name} differs from {copies[0][0]}, and both are one parameter, shared by all blocks"
                )


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """How a state dict differs from what a network needs, in words; empty where it fits."""
    needed = model.state_dict()
    missing = [key for key in needed if key not in state]
    surplus = [key for key in state if key not in needed]
    shapes = [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in needed.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = [
        f"{key} is {state[key].dtype}"
        for key in needed
        if key in state and not (state[key].is_floating_point() and state[key].layout == torch.strided)
    ]
    parts = [
        f"{what}: {joined(names)}"
        for what, names in (
            ("keys are missing", missing),
            ("keys are surplus", surplus),
            ("shapes contradict each other", shapes),
            ("values are not floating", kinds),
        )
        if names
    ]
    return "; ".join(parts)
