"""A model to be measured: a copy of it that runs, with inputs that can be filled with noise near and far."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._forwards.variants import FORMS
from .._models.copies import cloned, structure_of
from .._models.undisturbed import OwnNumbers, python_numbers_kept
from .._surgery import probe as _probe
from ..errors import ArgumentValueError, ProbeError, TLSCError
from .layout import Layout, under
from .result import Array

__all__ = ["CHANGE_ZERO", "Counted", "Network", "in_copy", "in_double", "in_place", "is_image", "noise", "to_watch"]

CHANGE_ZERO = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative to the largest value: what is rounding. Sums that run over a map leave some without any influence."""


@contextmanager
def in_double(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in float64; plain tensor attributes too, where weight norm keeps its result."""
    made = _copied(model).double()
    for module in made.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                module.__dict__[name] = value.detach().double()
    with _probe.undisturbed(made):
        yield made


@contextmanager
def in_copy(model: nn.Module) -> Iterator[nn.Module]:
    made = _copied(model)
    with _probe.undisturbed(made):
        yield made


@contextmanager
def in_place(model: nn.Module) -> Iterator[nn.Module]:
    with python_numbers_kept():
        yield structure_of(model, cloned).model


def to_watch(model: nn.Module) -> list[nn.Module]:
    """The modules whose calls can be watched by hooks. A rewritten forward has taken in the code of modules inside
    it; with hooks these would have to be called, and the forward be rewritten anew."""
    inside: set[int] = set()
    for module in model.modules():
        forms = module.__dict__.get(FORMS)
        for form in () if forms is None else forms.forms:
            inside |= {id(module.get_submodule(path)) for path in form.recorded.reads.unhooked}
    return [
        module
        for module in model.modules()
        if id(module) not in inside and not isinstance(module, torch.jit.ScriptModule)  # these are not copied
    ]


def _copied(model: nn.Module) -> nn.Module:
    attributes = (value for module in model.modules() for value in module.__dict__.values())
    results = {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and not t.is_leaf}
    made = copy.deepcopy(model, results)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


class Counted:
    """Forward passes that were done, for someone who waits."""

    def __init__(self, told: Callable[[int], None] | None) -> None:
        self.told, self.passes = told, 0

    def one_more(self) -> None:
        self.passes += 1
        if self.told is not None:
            self.told(self.passes)


class Network:
    """A model with its inputs: the images among them can be filled with noise, near and far."""

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        example_input: Any,
        output: int | Callable[[Any], Tensor] | None,
        seed: int,
        counted: Counted,
    ) -> None:
        self.model = model
        self.counted = counted
        self.output = output
        self.seed = seed
        self.dtype = _probe._first_floating(model).dtype
        if not any(tensor.is_floating_point() for tensor in (*model.parameters(), *model.buffers())):
            self.dtype = torch.float64
        failures = []
        for inputs in _probe.inputs_of(model, example_input, size):
            args = tree_map(self._cast, inputs(*size))
            try:
                self._lay_out(args, size)
                return
            except TLSCError:
                raise
            except Exception as error:
                failures.append(error)
        raise failures[0]

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(self.dtype)
        return value

    def _lay_out(self, args: _probe.Arguments, size: tuple[int, int]) -> None:
        self.leaves, self.spec = tree_flatten(args)
        self.images = [index for index, leaf in enumerate(self.leaves) if is_image(leaf, size)]
        if not self.images:
            raise ArgumentValueError(f"example_input gives no image, a floating tensor (N, C, H, W), at {size}")
        first = self.leaves[self.images[0]]
        self.size = int(first.shape[-2]), int(first.shape[-1])
        self.batch = int(first.shape[0])
        with torch.no_grad():
            out = self._forward(self.near(0))
        rows, columns = out.shape[-2:]
        self.place = rows // 2, columns // 2
        self.centre = tuple(
            under(at, n, m) for at, n, m in zip(self.place, (rows, columns), self.size, strict=True)
        )
        self.border = (
            min(self.centre[0], self.size[0] - 1 - self.centre[0]),
            min(self.centre[1], self.size[1] - 1 - self.centre[1]),
        )
        self.layout = Layout(self.size, self.centre, self.batch)
        self.farthest = tuple(max(c, n - 1 - c) for c, n in zip(self.centre, self.size, strict=True))

    # ------------------------------------------------------------------------------------------- inputs

    def near(self, sample: int) -> list[Any]:
        """The leaves of the call's arguments, constant images filled with noise."""
        random = np.random.default_rng([self.seed % 2**32, sample, 0])
        leaves = list(self.leaves)
        for index in self.images:
            image = self.leaves[index]
            if image.min() == image.max():
                leaves[index] = noise(image, random, 0.3, 0.25)
        return leaves

    def replaced(self, leaves: list[Any], sample: int, vertical: int, horizontal: int) -> list[Any]:
        """All that is farther away than that, on either axis, becomes brighter noise of another contrast."""
        random = np.random.default_rng([self.seed % 2**32, sample, 1])
        out = list(leaves)
        for index in self.images:
            image = leaves[index]
            low, high = float(image.min()), float(image.max())
            other = low + (high - low) * noise(image, random, 0.7, 0.5)
            rows, columns = self._offsets(image)
            far = (abs(rows)[:, None] > vertical) | (abs(columns)[None, :] > horizontal)
            out[index] = torch.where(torch.from_numpy(far).to(image.device), other, image)
        return out

    def _offsets(self, image: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of an image, counted from the centre in pixels of the first image."""
        vertical, horizontal = (
            np.asarray([under(at, n, m) for at in range(n)]) - c
            for n, m, c in zip(image.shape[-2:], self.size, self.centre, strict=True)
        )
        return vertical, horizontal

    # ------------------------------------------------------------------------------------------ running

    def at_centre(self, leaves: list[Any]) -> Tensor:
        """The output's channels at its centre."""
        with torch.no_grad():
            out = self._forward(leaves)[..., self.place[0], self.place[1]].clone()
        if not out.isfinite().all():
            raise ProbeError("the output at the centre is not finite on noise in [0, 1]: give an example_input")
        return out

    def gradient(self, leaves: list[Any], sample: int) -> Array | None:
        """Magnitude per pixel of the gradient of one combination of the channels at the centre."""
        random = np.random.default_rng([self.seed % 2**32, sample, 2])
        leaves = list(leaves)
        for index in self.images:
            leaves[index] = leaves[index].detach().clone().requires_grad_()
        images = [leaves[index] for index in self.images]
        try:
            with torch.enable_grad():
                # A model may change its input in place, which a leaf refuses.
                call = [leaf * 1 if index in self.images else leaf for index, leaf in enumerate(leaves)]
                value = self._forward(call)[..., self.place[0], self.place[1]]
                weights = torch.from_numpy(random.standard_normal(tuple(value.shape))).to(value)
                grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                    (value * weights / weights.norm()).sum(), images, allow_unused=True
                )
        except (RuntimeError, NotImplementedError):
            return None
        total = np.zeros(self.size)
        for image, grad in zip(images, grads, strict=True):
            if grad is None:
                continue
            rows, columns = self._offsets(image)
            magnitude = grad.detach().abs().double().flatten(0, -3).sum(0).cpu().numpy()
            np.add.at(total, (rows[:, None] + self.centre[0], columns[None, :] + self.centre[1]), magnitude)
        return total

    def call(self, leaves: list[Any]) -> Any:
        with OwnNumbers(self.seed % 2**63):  # for a network that draws noise itself: the same in every run
            returned = _probe.called(self.model, tree_unflatten(leaves, self.spec))
        self.counted.one_more()
        return returned

    def _forward(self, leaves: list[Any]) -> Tensor:
        return self.select(self.call(leaves))

    def select(self, returned: Any) -> Tensor:
        if callable(self.output):
            chosen: Tensor | None = self.output(returned)
            if not _is_map(chosen):
                what = tuple(chosen.shape) if isinstance(chosen, Tensor) else type(chosen).__name__
                raise ArgumentValueError(f"output must choose a map (N, C, H, W), it returned {what}")
            return chosen
        tensors = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        if self.output is None:
            chosen = next((tensor for tensor in tensors if _is_map(tensor)), None)
        else:
            chosen = tensors[self.output] if -len(tensors) <= self.output < len(tensors) else None
        if not _is_map(chosen):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
            asked = "" if self.output is None else f" at output={self.output}"
            raise ArgumentValueError(
                f"the model returns no map (N, C, H, W){asked}; its tensors: {shapes}. "
                "Choose with output: an index, or a function from what it returns to a map"
            )
        return chosen


def _is_map(value: Any) -> TypeGuard[Tensor]:
    return (
        isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3 and min(value.shape[-2:]) > 1
    )


def is_image(value: Any, size: tuple[int, int]) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        return False
    return (value.dim() == 4 and min(value.shape[-2:]) > 1) or (
        value.dim() in (3, 5) and tuple(value.shape[-2:]) == size
    )


def noise(like: Tensor, random: np.random.Generator, mean: float, contrast: float) -> Tensor:
    """Noise in [0, 1] whose mean differs from channel to channel."""
    channels = random.uniform(mean - 0.1, mean + 0.1, (*like.shape[:-2], 1, 1))
    return torch.from_numpy(channels + contrast * (random.random(tuple(like.shape)) - 0.5)).clamp_(0, 1).to(like)
