"""A forward that asks the process: random numbers of Python and NumPy, seeds, environment variables."""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlsc

X = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))


class _Net(nn.Module):
    """``mean`` is the global one in the network, a local one in the oracle."""

    def __init__(self, local: bool = False) -> None:
        super().__init__()
        self.local, self.rng = local, random.Random(0)

    def gated(self, x: Tensor) -> Tensor:
        mean = tlsc.functional.local_mean(x, 16) if self.local else x.mean((2, 3), keepdim=True)
        return x * mean


class _Python(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x * random.uniform(0.5, 1.5)) * random.choice([1.0, 2.0, 3.0])


class _Numpy(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x) + float(np.random.rand()) * np.random.normal(0, 1)  # noqa: NPY002


class _Imported(_Net):
    def forward(self, x: Tensor) -> Tensor:
        from random import gauss

        return self.gated(x * gauss(0, 1))


class _Seeded(_Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(42)
        return self.gated(x + torch.randn_like(x))


@pytest.mark.parametrize("kind", [_Python, _Numpy, _Imported, _Seeded])
def test_numbers_are_drawn_at_each_call(kind: type[_Net]) -> None:
    oracle, model = kind(True), tlsc.convert(kind(), 16, check=False)
    assert [site.action for site in tlsc.plan(model)] == ["exact"]
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for seed in range(3):
            results = []
            for each in (one, oracle):
                random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # type: ignore[func-returns-value] # noqa: NPY002
                results.append((each(X), random.random(), np.random.rand(), torch.rand(1)))  # noqa: NPY002
            torch.testing.assert_close(*results)


def test_converting_puts_seeds_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    tlsc.convert(_Seeded(), 16, check=False)
    assert torch.equal(torch.rand(3), expected)


class _Drops(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else self.gated(x)


class _Chooses(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x.flip(1) if np.random.randint(2) else x)  # noqa: NPY002


class _OwnGenerator(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x * self.rng.random())


class _Forks(_Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            return self.gated(x + torch.randn_like(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_Chooses, "another course depending on numpy.random.randint, a random number"),
        (_OwnGenerator, "random generator of its own"),
        (_Forks, "puts PyTorch's random numbers back"),
    ],
)
def test_what_random_numbers_decide_is_left(kind: type[_Net], reason: str) -> None:
    assert reason in tlsc.plan(kind(), 16).left[0].reason


def test_a_course_that_becomes_random_is_refused() -> None:
    model = tlsc.convert(_Drops().eval(), 16, check=False)
    torch.testing.assert_close(model(X), _Drops(True).eval()(X))
    with pytest.raises(tlsc.TLSCError, match=r"training changed .* depending on random.random"):
        model.train()(X)


class _Environment(_Net):
    def forward(self, x: Tensor) -> Tensor:
        if "TLSC_TEST_TWICE" in os.environ:
            x = 2 * x
        return self.gated(x * float(os.getenv("TLSC_TEST_GAIN", "1")) * float(os.environ.get("TLSC_TEST_MORE", 1)))


@pytest.mark.parametrize("name", ["TLSC_TEST_TWICE", "TLSC_TEST_GAIN", "TLSC_TEST_MORE"])
def test_environment_variables_are_followed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, model = _Environment(True), tlsc.convert(_Environment(), 16, check=False)
    for value in ("3", "5"):
        torch.testing.assert_close(model(X), oracle(X))
        monkeypatch.setenv(name, value)
    torch.testing.assert_close(model(X), oracle(X))


# ------------------------------------------------------------------------------------- settings of every kind


class _Slots:
    __slots__ = ("gain",)

    def __init__(self, gain: float) -> None:
        self.gain = gain


class _Settings(dict[str, Any]):
    __getattr__ = dict.__getitem__


class _Node:
    def __init__(self, **inside: Any) -> None:
        self.__dict__.update(inside)


class _Reads(_Net):
    def __init__(self, local: bool = False) -> None:
        super().__init__(local)
        self.array, self.number, self.slots = np.ones(3), np.float32(1), _Slots(1.0)
        self.settings = _Settings(gain=1.0, inner=_Settings(gain=1.0))
        self.deep = _Node(model=_Node(net=_Node(block=_Node(gain=1.0))))
        self.loop = _Node(gain=1.0)
        self.loop.itself = self.loop
        self.web = [_Node(gain=1.0) for _ in range(30)]  # each of which knows all: 30⁸ ways from one to another
        for node in self.web:
            node.others = self.web

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.deep.model.net.block.gain  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = x * float(self.array[0]) * float(self.number) * self.slots.gain * self.loop.gain * self.web[0].gain
        return self.gated(self.scaled(x * self.settings.gain * self.settings.inner.gain))


def _given(model: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        model = getattr(model, part)
    setattr(model, last, value)


CHANGES: list[Callable[[Any], Any]] = [
    lambda model: model.array.__setitem__(0, 0.5),
    lambda model: _given(model, "number", np.float32(0.5)),
    lambda model: _given(model, "slots.gain", 0.5),
    lambda model: model.settings.update(gain=0.5),
    lambda model: model.settings.inner.update(gain=0.25),
    lambda model: _given(model, "deep.model.net.block.gain", 0.5),
    lambda model: _given(model, "loop.gain", 0.5),
    lambda model: setattr(model.web[0], "gain", 0.5),
    lambda model: _given(model, "scaled", lambda x: x / 3),
]


def test_settings_of_every_kind_are_followed() -> None:
    models = tlsc.convert(_Reads(), 16, check=False), _Reads(True)
    before = models[0](X)
    for change in CHANGES:
        for model in models:
            change(model)
        after = models[0](X)
        torch.testing.assert_close(after, models[1](X))
        assert not torch.equal(after, before)
        before = after


# ------------------------------------------------------------------------------------ what gradients go through


class _Data(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x) + self.gated(x.data)


def test_data_has_no_gradient() -> None:
    found = [
        torch.autograd.grad(model(x := X.clone().requires_grad_()).square().sum(), x)[0]
        for model in (tlsc.convert(_Data(), 16, check=False), _Data(True))
    ]
    torch.testing.assert_close(*found)


class _Roots(_Net):
    def forward(self, x: Tensor) -> Tensor:
        import math

        height, width = x.shape[2:]
        if not self.local:
            return self.gated(x) + x.sum((2, 3), keepdim=True) / (math.sqrt(height) * float(width))
        return self.gated(x) + tlsc.functional.local_mean(x, 16) * 256 / (4 * 16)


def test_roots_of_sizes_are_those_of_the_window() -> None:
    torch.testing.assert_close(tlsc.convert(_Roots(), 16, check=False)(X), _Roots(True)(X))


class _Norm(nn.InstanceNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_numbers_of_a_norm_of_somebody_s_own_are_read_anew() -> None:
    model, oracle = tlsc.convert(nn.Sequential(_Norm(3)), 16, check=False), tlsc.LocalInstanceNorm2d(3, window=16)
    for eps in (1e-5, 0.1, 0.3):
        model[0].eps = oracle.eps = eps
        torch.testing.assert_close(model(X), oracle(X) * 2)
