"""What the fast kernels add: dispatch, registration with PyTorch, threads, processes, converted gates.

That they compute the right thing is what test_functional.py shows, once per back end.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.data import DataLoader, Dataset

import tlsc
from tlsc._forwards import rewriter as _rewrite
from tlsc._forwards import tails as _tails
from tlsc._statistics import backends
from tlsc._statistics import operations as _dispatch
from tlsc._statistics import reference as _reference
from tlsc._statistics.correction import Correction
from tlsc._statistics.numba import planes as _numba
from tlsc._statistics.numba import threads as _threads
from tlsc.functional import local_group_norm, local_instance_norm, local_mean, local_var_mean

from .marks import slow, slow_unless
from .oracles import (
    assert_close,
    outline_inside,
    reference_local_group_norm,
    reference_strided_mean,
)

ROOT = Path(__file__).parents[1]
OPS = torch.ops.tlsc
# Of corrected statistics; Triton's interpreter has its own process, at the end.
BACKENDS = os.environ.get("TLSC_TEST_BACKENDS", "torch numba").split()


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _correction(channels: int) -> Correction:
    """One whose limits some statistics exceed."""
    a, b, c, d, e, top, low = (_random(7, channels)[i].abs() + 0.5 for i in range(7))
    return Correction.of(a, b, c, d, e, top, low + 0.8, low + 1.2)


class Gate(nn.Module):
    """Squeeze-excitation, the ways it is written."""

    def __init__(self, channels: int = 8, way: str = "multiplied") -> None:
        super().__init__()
        self.way = way
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(True), nn.Conv2d(4, channels, 1), nn.Sigmoid())
        self.linear = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "linear":
            n, c = x.shape[:2]
            return x * self.linear(self.pool(x).view(n, c)).view(n, c, 1, 1).expand_as(x)
        if self.way == "subtracted":
            return x - x.mean((2, 3), keepdim=True)
        if self.way == "from":
            return x.mean((2, 3), keepdim=True) - x
        y = self.body(self.pool(x))
        if self.way == "in place":
            x = x + 0
            x *= y
            return x
        ways: dict[str, Callable[[], Tensor]] = {
            "multiplied": lambda: x * y,
            "method": lambda: y.mul(x),
            "expanded": lambda: x * y.expand_as(x),
            "added": lambda: torch.add(y, x),
            "scaled": lambda: torch.add(x, y, alpha=2),
            "one channel": lambda: x * y.mean(1, keepdim=True),
            "residual": lambda: x * y + x,
            "twice": lambda: x * y * y,
        }
        return ways[self.way]()


# Written so that one kernel call can do it, and so that none can.
FUSED = ["multiplied", "method", "expanded", "linear", "added", "subtracted", "one channel", "residual", "twice"]
FUSED.append("in place")  # traced as a product
APART = ["from", "scaled"]


# --------------------------------------------------------------------------------------------- which back end


def test_the_named_back_end_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name, module in (("torch", _reference), ("numba", _numba)):
        original = module.local_mean  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "local_mean", lambda *a, n=name, f=original: (called.append(n), f(*a))[1])
    small, large = torch.randn(1, 1, 8, 8), torch.randn(1, 4, 40, 40)
    local_mean(small, 3)
    local_mean(large, 3)
    for name in ("torch", "numba"):
        with tlsc.backend(name):
            local_mean(small, 3)
            local_mean(large, 3)
            with tlsc.backend("auto"):
                local_mean(large, 3)
    local_mean(large, 3)
    assert called == ["torch", "numba", *["torch"] * 2, "numba", *["numba"] * 3, "numba"]


def test_the_choice_ends_with_the_block_also_after_an_error() -> None:
    with pytest.raises(KeyError), tlsc.backend("torch"):
        raise KeyError
    assert backends.named() == "auto"


@pytest.mark.parametrize(
    ("name", "kind"), [("cuda", ValueError), ("", ValueError), (None, TypeError), (3, TypeError)]
)
def test_unknown_back_ends(name: Any, kind: type[Exception]) -> None:
    with pytest.raises(tlsc.TLSCError) as caught, tlsc.backend(name):
        pass
    assert isinstance(caught.value, kind)
    assert "auto, torch, numba, triton" in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here Triton runs")
def test_a_named_back_end_that_cannot_run_says_why() -> None:
    with pytest.raises(tlsc.BackendError, match="triton back end cannot run here"), tlsc.backend("triton"):
        pass


def test_a_named_back_end_refuses_a_tensor_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 8, 8)
    monkeypatch.setattr(_numba, "why_not", lambda x: "runs on the CPU, and the tensor is on cuda:0")
    with tlsc.backend("numba"), pytest.raises(tlsc.BackendError, match=r"numba.*cuda:0.*auto"):
        local_mean(x, 3)


SCRIPT = """
import sys, torch, tlsc
{before}
from tlsc.adapters import nonlocal_means
x = torch.randn(1, 4, 40, 50)
with tlsc.backend("torch"):
    expected = tlsc.functional.local_instance_norm(x, 9)
torch.testing.assert_close(tlsc.functional.local_instance_norm(x, 9), expected)
image = x[:, :3, :5, :5].sigmoid()
assert not torch.equal(nonlocal_means(image, 0.1, 3, 3), image)
try:
    with tlsc.backend("numba"):
        print("there")
except tlsc.BackendError as error:
    print(error)
"""


def _python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("before", "environment", "said"),
    [
        pytest.param("sys.modules['numba'] = None", {}, "numba cannot be imported", id="absent"),
        pytest.param(
            "", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set", id="disabled", marks=pytest.mark.slow
        ),
    ],
)
def test_without_compilation_pytorch_answers(before: str, environment: dict[str, str], said: str) -> None:
    """For non-local means, too."""
    assert said in _python(SCRIPT.format(before=before), **environment)


CACHE = """
import numpy
from numba.core import caching
{before}
import tlsc._statistics.numba.steps as steps
assert steps.shift_of(numpy.full((1, 4, 4), 3.0)) == 3.0
print(steps.shift_of._cache.cache_path)
"""


def test_a_read_only_installation_is_cached_for_the_user(tmp_path: Path) -> None:
    """The root user of a container can write anywhere; so Numba is told that it cannot write beside the source."""
    before = """
def refuse(self): raise OSError("read-only")
caching.InTreeCacheLocator.ensure_cache_path = refuse
if hasattr(caching, "InTreeCacheLocatorFsAgnostic"): caching.InTreeCacheLocatorFsAgnostic.ensure_cache_path = refuse
"""
    path = _python(CACHE.format(before=before), XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR="").strip()
    assert path.startswith(str(tmp_path))
    assert any(name.suffix == ".nbi" for name in Path(path).iterdir())


def test_kernels_run_where_no_cache_can_be_written() -> None:
    before = "caching.CacheImpl._locator_classes = []"
    assert _python(CACHE.format(before=before)) == "None\n"


# ------------------------------------------------------------------------------------ registered with PyTorch


def _calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """An operator and its arguments behind the map (2, 4, 9, 11)."""
    weight, bias, grid = _random(4), _random(4, 1)[:, 0], _random(2, 4, 3, 4)
    correction = _correction(4).rows
    return {
        "corrected mean": (OPS.local_mean, (correction, 3, 4, 1)),
        "strided mean": (OPS.local_mean, (None, 3, 4, 2)),
        "flat window": (OPS.local_mean, (None, 20, 4, 1)),
        "var_mean": (OPS.local_var_mean, (3, 4)),
        "norm": (OPS.local_group_norm, (weight, bias, None, 3, 4, 2, 1e-2)),
        "corrected norm": (OPS.local_group_norm, (None, None, correction, 3, 4, 4, 1e-2)),
        "strided grid": (OPS.grid_means, (None, 3, 20, 4)),
        "moments": (OPS.grid_moments, (None, 3, 4, 3)),
        "corrected moments": (OPS.grid_moments, (correction, 3, 4, 2)),
        "meeting": (OPS.meet, (grid, 4, 4, 3, "mul")),
    }


ONE_OF_EACH = ("corrected mean", "var_mean", "norm", "strided grid", "corrected moments", "meeting")


# PyTorch's checker reads the gradient of its own clones.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("grad", "layout"), [(True, "contiguous"), slow(False, "channels_last")])
@pytest.mark.parametrize("name", slow_unless(lambda name: name in ONE_OF_EACH, _calls()))
def test_operators_are_registered_as_pytorch_wants_them(name: str, grad: bool, layout: str) -> None:
    _check(name, grad, layout, ("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", slow_unless(lambda name: name == "meeting", _calls()))
def test_operators_have_the_same_derivatives_in_graphs(name: str) -> None:
    _check(name, True, "contiguous", ("test_aot_dispatch_dynamic",))


def _check(name: str, grad: bool, layout: str, what: tuple[str, ...]) -> None:
    operator, rest = _calls()[name]
    x = _random(2, 4, 9, 11)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    arguments = [a.clone().requires_grad_(grad) if isinstance(a, Tensor) else a for a in (x, *rest)]
    with tlsc.backend("numba"):
        opcheck(operator, tuple(arguments), test_utils=what)


@pytest.mark.parametrize("way", FUSED + APART)
@pytest.mark.parametrize("stride", [1, 3])
def test_gates_of_converted_models_on_every_back_end(way: str, stride: int) -> None:
    """The same as PyTorch's operations; which test_owners.py compares with windows one by one."""
    torch.set_num_threads(1)
    model = tlsc.convert(Gate(way=way).double().eval(), (10, 8), stride=stride, example_input=_doubles)
    for shape in ((2, 8, 21, 23), (1, 8, 10, 30), (1, 8, 6, 7)):
        x = _random(*shape)
        results = []
        for name in ("torch", "numba"):
            with tlsc.backend(name), torch.no_grad():
                results.append(model(x))
        assert_close(results[1], results[0])
    x = x.clone().requires_grad_()
    with tlsc.backend("numba"):
        given = torch.autograd.grad(model(x).square().sum(), x)[0]
    with tlsc.backend("torch"):
        assert_close(given, torch.autograd.grad(model(x).square().sum(), x)[0])


@pytest.mark.parametrize("way", FUSED + APART)
def test_no_map_of_gates_is_made(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = _dispatch.meet
    monkeypatch.setattr(_dispatch, "meet", lambda *a: (calls.append(a[-1]), original(*a))[1])
    if way in FUSED:
        monkeypatch.setattr(_rewrite, "spread", lambda *a: pytest.fail("a statistic was brought to full size"))
    model = tlsc.convert(Gate(way=way).eval(), (10, 8), stride=2, example_input=_images)
    with torch.no_grad():
        model(torch.randn(1, 8, 21, 23))
    assert bool(calls) == (way in FUSED)


def test_tails_in_pieces_are_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tlsc.convert(Gate().double().eval(), (10, 8), example_input=_doubles)
    x = _random(2, 8, 41, 23)
    with torch.no_grad():
        whole = model(x)
        seen: list[tuple[int, ...]] = []
        monkeypatch.setattr(_tails, "PIECE", 8 * 16 * 5)
        original = _tails._through
        monkeypatch.setattr(_tails, "_through", lambda m, g: (seen.append(tuple(g.shape)), original(m, g))[1])
        torch.testing.assert_close(model(x), whole, rtol=1e-12, atol=1e-12)
        assert seen == [(1, 8, rows, 16) for _ in range(2) for rows in (5, 5, 5, 5, 5, 5, 2)]
        # A hook is called as often as it would have been.
        calls: list[int] = []
        handle = model.body[1].register_forward_hook(lambda *_: calls.append(1))
        model(x)
        handle.remove()
        assert calls == [1]


def test_tails_overwrite_nothing_that_others_read() -> None:
    """The statistic is used a second time; what modules return of their own may be somebody's."""
    kept: list[Tensor] = []

    class Keeps(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(x)
            return x

    grid = _random(1, 8, 9, 10)
    before = grid.clone()
    steps = (nn.Sigmoid(), nn.Conv2d(8, 8, 1).double(), nn.ReLU(), Keeps(), nn.Sigmoid())
    with torch.no_grad():
        out = _tails.in_pieces(steps, grid)
        first = torch.relu(steps[1](torch.sigmoid(before)))
    assert torch.equal(grid, before)
    torch.testing.assert_close(kept[0], first)
    torch.testing.assert_close(out, torch.sigmoid(first))


def test_a_converted_model_compiles_whole_and_with_dynamic_sizes() -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Gate(), nn.InstanceNorm2d(8, affine=True), Gate(way="linear")
    )
    model = tlsc.convert(model.eval(), 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for size in ((40, 36), (33, 51), (64, 64)):
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes that are compared: traces hold for one size
def test_exported_graphs_hold_pytorchs_own_operations() -> None:
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Gate(), nn.InstanceNorm2d(8)).eval(), 16)
    x = torch.randn(1, 3, 40, 36)
    for strict in (False, True):
        exported = torch.export.export(model, (x,), strict=strict)
        assert not any("tlsc" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,), check_trace=False)
        assert "tlsc::" not in str(traced.inlined_graph)  # file names are in it, too


def test_vmap_gives_what_a_loop_gives() -> None:
    x = _random(3, 2, 4, 9, 11)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: local_mean(x, (3, 4)),
        lambda x: local_mean(x, (3, 4), 2),
        lambda x: local_var_mean(x, (3, 4))[0],
        lambda x: local_instance_norm(x, (3, 4)),
        lambda x: local_group_norm(x, (3, 4), 2),
    ]
    with tlsc.backend("numba"):
        for function in functions:
            assert_close(torch.vmap(function)(x), torch.stack([function(part) for part in x]))


# ---------------------------------------------------------------------------------- corrections, pieces, threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_corrections(backend: str) -> None:
    """Every operation that takes one, against loops: see :class:`tlsc._statistics.correction.Correction`."""
    x, weight, bias = _random(2, 4, 9, 11) + 2, _random(4), _random(4)
    for channels_last in (False, True):
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for window in ((3, 4), (9, 2), (1, 20)):
            for groups in (2, 4):
                correction = _correction(groups)
                with tlsc.backend(backend):
                    out = _dispatch.local_group_norm(x, window, groups, weight, bias, 1e-3, correction)
                expected = reference_local_group_norm(x, window, groups, weight, bias, 1e-3, _naively(correction))
                assert_close(out, expected)
            for stride in (1, 3):
                with tlsc.backend(backend):
                    out = _dispatch.local_mean(x, window, stride, correction)
                assert_close(out, reference_strided_mean(x, window, stride, _naively(correction)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoiled", [False, True])
def test_corrected_statistics_of_evaluated_windows(backend: str, spoiled: bool) -> None:
    """Window by window, also of several channels together; a NaN stays in its windows."""
    correction = _correction(4)
    for shape in ((2, 4, 9, 11), (2, 4, 3, 9, 11)):
        x = _random(*shape) + 2
        if spoiled:
            x[1, 2, ..., 8, 10] = torch.nan
        for window, stride in (((3, 4), 1), ((3, 4), 3), ((9, 2), 2)):
            with tlsc.backend(backend):
                var, mean = _dispatch.grid_moments(x, window, stride, correction)
                assert_close(_dispatch.grid_means(x, window, stride, correction), mean)
            starts = [[*range(0, n - k, stride), n - k] for n, k in zip((9, 11), window, strict=True)]
            for i, top in enumerate(starts[0]):
                for j, left in enumerate(starts[1]):
                    part = x[..., top : top + window[0], left : left + window[1]].flatten(2)
                    moments = part.var(2, correction=0), part.mean(2)
                    expected = _naively(correction)(*moments, outline_inside(top, left, window, 9, 11))
                    assert_close(var[..., i, j], expected[0])
                    assert_close(mean[..., i, j], expected[1])


def _naively(k: Correction) -> Callable[..., tuple[Tensor, Tensor]]:
    def correct(var: Tensor, mean: Tensor, w: float) -> tuple[Tensor, Tensor]:
        m = torch.minimum(torch.maximum(mean, k.low), k.high)
        more = (k.a - 1) * torch.minimum(var, k.top) + k.b + k.c * m**2
        return (var + w * more).clamp(min=0), mean + w * ((k.d - 1) * m + k.e)

    return correct


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_copied_piece_by_piece(layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that begin and end in the middle of an image, each channel with its own parameters."""
    monkeypatch.setattr(_numba, "STAGED", 3 * 20 * 30)
    x = (_random(2, 40, 20, 30) + torch.arange(40).reshape(40, 1, 1)).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    x[1, 17, 3, 4] = torch.nan
    weight, bias, correction = _random(40), _random(40), _correction(40)
    grid = _random(2, 40, 5, 5).to(dtype)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, grid: _dispatch.local_group_norm(x, (5, 6), 40, weight, bias, 1e-3, correction),
        lambda x, grid: _dispatch.local_group_norm(x, (5, 6), 20, weight, bias, 1e-3),
        lambda x, grid: _dispatch.local_mean(x, (5, 6), 1, correction),
        lambda x, grid: _dispatch.local_mean(x, (5, 6), 4, correction),
        lambda x, grid: _dispatch.meet(x, grid, (5, 15), 4, "mul"),
    ]
    for function in functions:
        with tlsc.backend("torch"):
            expected = function(x.double(), grid.double())
        with tlsc.backend("numba"):
            out = function(x, grid)
        assert_close(out, expected, dtype)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    for shape in ((1, 3, 200, 210), (2, 16, 64, 64), (1, 1, 300, 80)):
        x = _random(*shape).float()
        grid = _reference.grid_means(x, (20, 30), 4)

        def run(x: Tensor = x, grid: Tensor = grid) -> list[Tensor]:
            return [
                local_mean(x, (20, 30)),
                local_mean(x, (20, 30), 4),
                *local_var_mean(x, (20, 30)),
                local_instance_norm(x, (20, 30)),
                local_group_norm(x, (20, 30), 1),
                _dispatch.meet(x, grid, (20, 30), 4, "mul"),
            ]

        results = []
        with tlsc.backend("numba"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(run())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_callers_in_many_threads_do_not_disturb_each_other() -> None:
    torch.set_num_threads(2)
    maps = [_random(1, 4, 100 + i, 110).float() for i in range(8)]
    with tlsc.backend("numba"):
        expected = [local_instance_norm(x, 20) for x in maps]
        with ThreadPoolExecutor(4) as pool:
            for out, right in zip(
                pool.map(lambda x: local_instance_norm(x, 20), maps * 5), expected * 5, strict=True
            ):
                assert torch.equal(out, right)


# -------------------------------------------------------------------------------------------------- processes


class Photographs(Dataset[Tensor]):
    """Each item is what a converted model makes of an image, in the worker."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Gate(), nn.InstanceNorm2d(8, affine=True))
        self.model = tlsc.convert(model.eval(), 16)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(self.threads)  # a worker has one, unless it takes more
        image = torch.randn(1, 3, 80, 90, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            out: Tensor = self.model(image)[0]
        return out


@pytest.mark.parametrize(("method", "threads"), [("fork", 1), ("spawn", 2), slow("spawn", 1)])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_call_converted_models(method: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked after the parent's threads have run, which is where libraries with threads of their own hang."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))  # where spawned workers find this module
    torch.set_num_threads(1)  # OpenMP does not survive a fork once it has run; our threads must
    data = Photographs(1)
    expected = [data[i] for i in range(len(data))]
    torch.set_num_threads(2)
    with tlsc.backend("numba"):
        local_mean(torch.randn(1, 8, 100, 100), 20)  # on OpenMP's threads
        with monkeypatch.context() as patch:
            patch.setattr(_threads, "_openmp", lambda: None)
            local_mean(torch.randn(1, 8, 100, 100), 20)
        assert any(thread.name.startswith("tlsc") for thread in threading.enumerate())
    torch.set_num_threads(1)
    data.threads = threads if method == "spawn" else 1
    # A forked worker may use our threads, too; only convolutions must not use OpenMP's.
    # One that is spawned imports everything anew: a second one would do the same.
    workers = 1 if method == "spawn" else 2
    loader = DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=method, timeout=400)
    for out, right in zip(loader, expected, strict=True):
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("openmp", [True, False])
def test_every_unit_is_worked_on_once_by_several_threads(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:
        monkeypatch.setattr(_threads, "_openmp", lambda: None)
    elif _threads._openmp() is None:
        pytest.skip("PyTorch has no GOMP_parallel here")
    torch.set_num_threads(2)
    barrier = threading.Barrier(2, timeout=60)
    done: list[tuple[int, int]] = []

    def kernel(offset: int, start: int, stop: int) -> None:
        done.append((start + offset, stop + offset))
        if len(done) <= 2:
            barrier.wait()  # one thread alone would wait for ever
        if offset and start > 40:
            raise ValueError("in a thread")

    _threads.share_out(kernel, (0,), 100, 2**20)
    assert sorted(i for start, stop in done for i in range(start, stop)) == list(range(100))
    done.clear()
    with pytest.raises(ValueError, match="in a thread"):
        _threads.share_out(kernel, (1,), 100, 2**20)
    done.clear()
    alone: list[tuple[int, int]] = []
    _threads.share_out(lambda start, stop: alone.append((start, stop)), (), 1, 2**20)
    _threads.share_out(lambda start, stop: alone.append((start, stop)), (), 100, 2**15)
    assert alone == [(0, 1), (0, 100)]  # not worth a second thread


def _in_child(results: Any) -> None:
    torch.set_num_threads(2)
    x = torch.randn(1, 8, 100, 100, generator=torch.Generator().manual_seed(0))
    with tlsc.backend("numba"):
        # Without reductions of PyTorch's: its OpenMP hangs in a fork once it has had threads.
        results.put(local_instance_norm(x, 20)[0].tolist())


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_threads_start_anew_in_a_forked_process() -> None:
    torch.set_num_threads(2)
    x = torch.randn(1, 8, 100, 100, generator=torch.Generator().manual_seed(0))
    with tlsc.backend("numba"):
        expected = local_instance_norm(x, 20)[0].tolist()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_in_child, args=(results,))
    process.start()
    try:
        assert results.get(timeout=400) == expected
    finally:
        process.kill()
        process.join()


# ----------------------------------------------------------------------------------------------------- Triton

# What Triton's interpreter runs of test_functional.py, with fewer examples; all of it would take minutes. Not
# test_narrow_types: the interpreter cuts where float16 and bfloat16 are to be rounded.
INTERPRETED = (
    "is_that_of or interpolates or every_position_has or overflow or moments_far or several_bad or constant_map "
    "or costs_no_precision or equal_ways or window_over_the_whole or test_corrections or corrected_statistics"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton has no other wheels")
def test_the_triton_kernels_interpreted() -> None:
    """tests/statistics/test_triton_interpreted.py has what the usual run can afford."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TLSC_TEST_BACKENDS": "triton"}
    files = ["tests/test_functional.py", "tests/test_kernels.py"]
    command = ["-m", "pytest", *files, "-q", "-x", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, *command, "-p", "no:cacheprovider", "-k", INTERPRETED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def _images(height: int, width: int) -> tuple[Tensor]:
    return (torch.zeros(1, 8, height, width),)


def _doubles(height: int, width: int) -> tuple[Tensor]:
    return (torch.zeros(1, 8, height, width, dtype=torch.float64),)
