"""Converting changes nothing of the process: other threads run on, and an interrupt leaves everything as it was."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import random
import threading
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import BaseTorchFunctionMode

import tlsc
from tlsc._models.undisturbed import OwnNumbers, interruptible

BASE = 16


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), Gate(), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1)
    return nn.Sequential(*layers).eval()


def state_of(model: nn.Module) -> list[Any]:
    """Every module with its class and its attributes, by identity."""
    return [
        (id(module), type(module), {name: id(value) for name, value in module.__dict__.items()})
        for module in model.modules()
    ]


def kinds_of(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


def state_of_process() -> list[Any]:
    return [
        *(list(warnings.filters), warnings.showwarning, nn.Module.__call__, torch.is_grad_enabled()),
        *(torch.get_rng_state().tolist(), torch.utils._python_dispatch._len_torch_dispatch_stack()),
        *(torch._C._len_torch_function_stack(), random.getstate()),
    ]


@torch.no_grad()
def test_the_model_itself_runs_in_other_threads_while_it_is_planned() -> None:
    """Planning only reads the model: runs of it in other threads give what they gave."""
    model, x = network(), torch.rand(1, 3, 20, 24)
    tlsc.plan(model, BASE)  # what is imported or compiled once is
    expected, wrong, done = model(x), [], threading.Event()

    def work() -> None:
        with torch.no_grad():
            while not done.is_set():
                try:
                    if not torch.equal(model(x), expected):
                        wrong.append("another result")
                except Exception as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    before, process = state_of(model), state_of_process()
    for _ in range(4):
        tlsc.plan(nn.Sequential(model[0], model[1], model[3]), BASE)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert state_of(model) == before
    assert state_of_process() == process


@pytest.mark.parametrize(
    ("conversions", "runs"), [(2, 400), pytest.param(20, 20_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_other_models_run_in_four_threads_while_one_is_converted(conversions: int, runs: int) -> None:
    """Modules of several kinds, one converted before: nothing raised, every result the same to the last bit."""
    x = torch.rand(1, 3, 20, 24)
    others = [
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()).eval(),
        network(),
        tlsc.convert(network(), BASE),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Gate(), nn.Dropout()).eval(),
    ]
    tlsc.convert(network(), BASE)  # what is imported or compiled once is
    with torch.no_grad():
        expected = [other(x) for other in others]
        local = tlsc.convert(network(), BASE)(x)
    process, wrong, counts = state_of_process()[3:], [], [0] * 4

    def work(number: int) -> None:
        other, right = others[number], expected[number]
        with torch.no_grad():
            while counts[number] < runs // 4:
                try:
                    if not torch.equal(other(x), right):
                        wrong.append(f"{number}: another result")
                except Exception as error:
                    wrong.append(f"{number}: {error!r}")
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    made = []
    for _ in range(conversions):
        made.append(tlsc.convert(network(), BASE))
        if not any(thread.is_alive() for thread in threads):
            counts[:] = [0] * 4  # as long as there are conversions, there are runs beside them
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(counts) == runs
    with torch.no_grad():
        assert all(torch.equal(model(x), local) for model in made)
    assert state_of_process()[3:] == process


# An interrupt that hits a callback of a weak reference is swallowed by Python, which says so. pytest keeps it till
# the end of the test, with its frames and the tensors in them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:the model keeps tensors without values:tlsc.errors.TLSCWarning")
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 20))])
def test_an_interrupt_at_any_moment_leaves_everything_as_it_was(seed: int) -> None:
    model = network()
    tlsc.plan(model, BASE)  # what is imported or compiled once is
    before, process = state_of(model), state_of_process()
    main, delay = threading.get_ident(), random.Random(seed).uniform(0, 0.08)

    def interrupt() -> None:
        time.sleep(delay)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))

    thread = threading.Thread(target=interrupt, daemon=True)
    try:
        thread.start()
        tlsc.convert(model, BASE)
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    thread.join()
    if kinds_of(model) == kinds_of(tlsc.convert(network(), BASE)):  # it was done before the interrupt came
        tlsc.revert(model)
    assert state_of(model) == before
    assert state_of_process() == process


@pytest.mark.parametrize("left", ["mode", "infra mode, half left", "function mode", "numbers", "gradients off"])
def test_an_interrupt_within_a_block_that_puts_something_back(left: str) -> None:
    """What such a block had not put back yet is put back around it."""
    process = state_of_process()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(left)
    assert state_of_process() == process
    assert torch._C._only_lift_cpu_tensors() is False


def _interrupted(left: str) -> None:
    fakes = FakeTensorMode()
    with interruptible():
        if left == "mode":
            OwnNumbers().__enter__()
        elif left == "infra mode, half left":
            OwnNumbers().__enter__()
            fakes.__enter__()
            fakes.enter_stack.pop()
        elif left == "function mode":
            BaseTorchFunctionMode().__enter__()
        elif left == "numbers":
            torch.rand(3)
        else:
            torch.set_grad_enabled(False)
        raise KeyboardInterrupt


def test_models_are_converted_one_after_another_in_threads() -> None:
    """PyTorch's fake tensors share a flag among all threads."""
    inside, met = threading.Lock(), queue.SimpleQueue[bool]()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            met.put(inside.acquire(blocking=False))
            time.sleep(0.01)
            with contextlib.suppress(RuntimeError):
                inside.release()
            return x

    models = [nn.Sequential(Slow(), nn.InstanceNorm2d(2)) for _ in range(3)]
    threads = [threading.Thread(target=lambda model=model: tlsc.convert(model, 8, check=False)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(tlsc.plan(model)) == 1 for model in models)
    alone = [met.get() for _ in range(met.qsize())]
    assert len(alone) >= len(models)
    assert all(alone)
