"""Non-local means against its definition (design §9), both implementations alike."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import tlsc
from tlsc._statistics import backends
from tlsc.adapters.nlm import NonLocalMeans, nonlocal_means
from tlsc.errors import ArgumentTypeError, ArgumentValueError, BackendError, TLSCError

from ..marks import slow, slow_unless

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "nlm.safetensors")
HAS_NUMBA = importlib.util.find_spec("numba") is not None
BORDERS = ("circular", "reflect")
IMPLEMENTATIONS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not HAS_NUMBA, reason="Numba is not installed")),
]
BAR = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
each_border = pytest.mark.parametrize("border", BORDERS)


def _fold(i: int, n: int, border: str) -> int:
    if border == "circular":
        return i % n
    while not 0 <= i < n:
        i = 0 if n == 1 else -i if i < 0 else 2 * (n - 1) - i
    return i


def _reference(
    x: NDArray[Any],
    h: NDArray[Any],
    search: int,
    patch: int,
    border: str,
    distance: str = "luma",
    weights: str = "exponential",
    sigma: float = 0.0,
) -> NDArray[Any]:
    """clamp(Σ_s w_s x(p + s) / Σ_s w_s), w_s = exp(−sqrt(Σ_o (y(p + o) − y(p + s + o))²) / h), pixel by pixel.

    ``x`` is (C, H, W), ``h`` (H, W), positive; y is the luma, s runs over the search window, o over the patch. In
    colour the sum runs over the channels, too; Gaussian weights are exp(−d²/h²); with ``sigma`` d² is less by
    what noise of that standard deviation in each channel of ``x`` adds to it on average.
    """
    channels, height, width = x.shape
    shares = [[1.0]] if channels == 1 else [[0.299, 0.587, 0.114]]
    guides = x if distance == "color" else np.tensordot(shares, x, 1)
    variance = 2 * sigma**2 * patch**2 * (channels if distance == "color" else np.square(shares).sum())

    def at(plane: NDArray[Any], i: int, j: int) -> Any:
        return plane[_fold(i, height, border), _fold(j, width, border)]

    window = range(-(search // 2), search // 2 + 1)
    offsets = list(itertools.product(range(-(patch // 2), patch // 2 + 1), repeat=2))
    out = np.empty_like(x)
    for i, j in itertools.product(range(height), range(width)):
        total, sum_of_weights = np.zeros(channels), 0.0
        for dy, dx in itertools.product(window, window):
            squares = [
                (at(y, i + a, j + b) - at(y, i + dy + a, j + dx + b)) ** 2 for a, b in offsets for y in guides
            ]
            d = np.sqrt(max(sum(squares) - variance, 0))
            weight = np.exp(-d / h[i, j]) if weights == "exponential" else np.exp(-((d / h[i, j]) ** 2))
            total += weight * np.array([at(plane, i + dy, j + dx) for plane in x])
            sum_of_weights += weight
        out[:, i, j] = total / sum_of_weights
    return out.clip(0, 1)


def _image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


DEFINITIONS = st.fixed_dictionaries(
    {
        "distance": st.sampled_from(["luma", "color"]),
        "weights": st.sampled_from(["exponential", "gaussian"]),
        "sigma": st.sampled_from([0.0, 0.1]),
    }
)

# The definition.


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_golden_vectors(case: str, dtype: torch.dtype, implementation: Any) -> None:
    """The published reference's own results. Its gradient is one number, of the same type as the output."""
    values = {key.partition(".")[2]: value for key, value in GOLDEN.items() if key.startswith(case)}
    layer = NonLocalMeans(
        values["h"].to(dtype),
        int(values["search_window"]),
        int(values["patch"]),
        implementation=implementation,
    )
    out = layer(values["input"].to(dtype))
    (out - values["target"].to(dtype)).square().mean().backward()
    bar = 1e-9 if dtype == torch.float64 else 1e-4
    assert layer.h is not None
    assert layer.h.grad is not None
    assert out.dtype == dtype
    assert (out - values["output"]).abs().max() <= bar
    assert abs(float(layer.h.grad / values["grad_h_of_mse"]) - 1) <= bar


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([1, 3]),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from(BORDERS),
    st.sampled_from(["number", "scalar", "image", "map"]),
    DEFINITIONS,
    st.integers(0, 2**16),
)
def test_equals_the_definition(
    channels: int,
    height: int,
    width: int,
    search: int,
    patch: int,
    border: Any,
    form: str,
    options: dict[str, Any],
    seed: int,
) -> None:
    """Also images smaller than the window or the patch, on one axis or both."""
    x = _image(2, channels, height, width, seed=seed)
    strengths = _image(2, 1, height, width, seed=seed + 1) * 0.5 + 0.05
    h: Any = {
        "number": 0.2,
        "scalar": torch.tensor(0.2),
        "image": strengths[..., :1, :1],
        "map": strengths,
    }[form]
    full = torch.full_like(strengths, 0.2) if form in ("number", "scalar") else (h + 0 * strengths)
    if form == "scalar":
        full = full.float().double()  # it was a float32 tensor
    expected = np.stack(
        [
            _reference(a, b, search, patch, border, **options)
            for a, b in zip(x.numpy(), full[:, 0].numpy(), strict=True)
        ]
    )
    for implementation in ("torch", "numba") if HAS_NUMBA else ("torch",):
        out = nonlocal_means(x, h, search, patch, border, **options, implementation=implementation)
        assert np.abs(out.numpy() - expected).max() <= 1e-11


@pytest.mark.skipif(not HAS_NUMBA, reason="Numba is not installed")
@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 150),
    st.integers(1, 70),
    st.sampled_from([1, 3, 7, 13]),
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from(BORDERS),
    st.booleans(),
    DEFINITIONS,
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 3),
)
def test_implementations_agree(
    batch: int,
    height: int,
    width: int,
    search: int,
    patch: int,
    border: Any,
    mapped: bool,
    options: dict[str, Any],
    dtype: torch.dtype,
    threads: int,
) -> None:
    """Output and gradients, over several strips and threads: to rounding."""
    x = _image(batch, 3, height, width, dtype=dtype)
    h = _image(batch, 1, *((height, width) if mapped else (1, 1)), seed=1, dtype=dtype) + 0.1
    g = _image(batch, 3, height, width, seed=2, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(threads)
        for implementation in ("torch", "numba"):
            inputs = x.clone().requires_grad_(), h.clone().requires_grad_()
            out = nonlocal_means(*inputs, search, patch, border, **options, implementation=implementation)
            results.append((out, *torch.autograd.grad(out, inputs, g)))
    finally:
        torch.set_num_threads(before)
    bar = 1e-10 if dtype == torch.float64 else 2e-3
    for ours, theirs in zip(*results, strict=True):
        scale = float(ours.detach().abs().max()) if ours.numel() else 0.0
        assert torch.allclose(ours, theirs, rtol=0, atol=bar * max(scale, 1e-30))


@pytest.mark.skipif(not HAS_NUMBA, reason="Numba is not installed")
def test_result_does_not_depend_on_the_number_of_threads() -> None:
    x = _image(2, 3, 150, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = x.clone().requires_grad_(), torch.tensor(0.1, requires_grad=True)
            out = nonlocal_means(*inputs, implementation="numba")
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


FORMS = {"scalar": (), "image": (2, 1, 1, 1), "map": (2, 1, 4, 5)}


@each_implementation
@pytest.mark.parametrize(
    ("form", "channels", "border"),
    slow_unless(
        lambda case: case in (("scalar", 1, "circular"), ("image", 1, "reflect"), ("map", 3, "circular")),
        itertools.product(FORMS, (1, 3), BORDERS),
    ),
)
def test_gradcheck(form: str, channels: int, border: Any, implementation: Any) -> None:
    x = (_image(2, channels, 4, 5) * 0.8 + 0.1).requires_grad_()
    h = (_image(*FORMS[form], seed=1) * 0.3 + 0.1).requires_grad_()

    def function(x: Tensor, h: Tensor) -> Tensor:
        return nonlocal_means(x, h, 5, 3, border, implementation=implementation)

    assert torch.autograd.gradcheck(function, (x, h))


@each_implementation
@pytest.mark.parametrize(
    ("mapped", "weights", "sigma", "distance", "channels"),
    slow_unless(
        # Every value, and every two of weights, distance and channels.
        lambda case: (
            case
            in (
                (True, "gaussian", 0.05, "luma", 1),
                (False, "gaussian", 0.0, "color", 3),
                (True, "exponential", 0.05, "color", 1),
                (False, "exponential", 0.05, "luma", 3),
            )
        ),
        (
            (mapped, weights, sigma, distance, channels)
            for mapped in (False, True)
            for weights, sigma in (("gaussian", 0.0), ("gaussian", 0.05), ("exponential", 0.05))
            for distance in ("luma", "color")
            for channels in (1, 3)
        ),
    ),
)
def test_gradcheck_of_other_definitions(
    mapped: bool, weights: Any, sigma: float, distance: Any, channels: int, implementation: Any
) -> None:
    x = (_image(1, channels, 4, 5) * 0.8 + 0.1).requires_grad_()
    h = (_image(*((1, 1, 4, 5) if mapped else ()), seed=1) * 0.3 + 0.4).requires_grad_()

    def function(x: Tensor, h: Tensor) -> Tensor:
        options = {"distance": distance, "weights": weights, "sigma": sigma}
        return nonlocal_means(x, h, 3, 3, "reflect", **options, implementation=implementation)

    assert torch.autograd.gradcheck(function, (x, h))


@each_implementation
def test_clamp_has_its_gradient(implementation: Any) -> None:
    """Where the mean leaves [0, 1] nothing flows back."""
    x = (_image(1, 1, 4, 4) + torch.tensor([2.0, 0.0, -2.0, 0.0])).requires_grad_()
    out = nonlocal_means(x, 0.01, 3, 1, implementation=implementation)
    assert (out[..., 0] == 1).all()
    assert (out[..., 2] == 0).all()
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient[..., [0, 2]].abs().max() <= 1e-30  # what their neighbours' means have of them
    assert gradient[..., [1, 3]].min() >= 0.9


# Limits.


@each_implementation
@each_border
def test_constant_image_stays_what_it_is(border: Any, implementation: Any) -> None:
    x = torch.full((1, 3, 9, 9), 0.1, requires_grad=True)
    h = torch.full((1, 1, 9, 9), 0.1, requires_grad=True)
    out = nonlocal_means(x, h, 5, 3, border, implementation=implementation)
    assert torch.equal(out, x)
    gradients = torch.autograd.grad((out * _image(1, 3, 9, 9, dtype=torch.float32)).sum(), (x, h))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1].any()


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", ["exponential", "gaussian"])
@pytest.mark.parametrize("strength", [0.0, -1.0, -torch.inf, 1e-300, 1e-30, 1e-13, 1e-11, 1e-6, 1e6, 1e30])
def test_any_strength_is_finite(strength: float, weights: Any, dtype: torch.dtype, implementation: Any) -> None:
    """h ≤ 0 is the limit: only neighbours at distance 0 count, here the two halves of the image for each other."""
    half = _image(1, 3, 6, 3, dtype=dtype)
    x = torch.cat([half, half], 3)
    x[:, :, 2] = 0  # and a flat part
    x.requires_grad_()
    for shape in ((), (1, 1, 1, 1), (1, 1, 6, 6)):
        h = torch.full(shape, strength, dtype=dtype, requires_grad=True)
        out = nonlocal_means(x, h, 7, 3, weights=weights, implementation=implementation)
        gradients = torch.autograd.grad(out.square().sum(), (x, h))
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
        if strength <= 1e-12:
            assert (out - x).abs().max() <= 1e-6
            assert not gradients[1].any()
    if strength <= 1e-12:
        other = x.detach().clone()
        other[..., 0, 0, 0] = 0.123  # tells the two halves apart there, and so around
        h = torch.tensor(strength, dtype=dtype)
        alone = nonlocal_means(other, h, 7, 3, weights=weights, implementation=implementation)
        assert (alone - other).abs().max() <= 1e-6


@each_implementation
@pytest.mark.parametrize(
    "options", [{}, {"distance": "color", "weights": "gaussian", "sigma": 0.1}], ids=["default", "other"]
)
def test_nan_stays_in_its_windows(options: dict[str, Any], implementation: Any) -> None:
    """It spoils what is at most half a search window and half a patch away, on each axis, and nothing else."""
    x = _image(1, 3, 24, 24, dtype=torch.float32)
    clean = nonlocal_means(x, 0.1, 5, 3, "reflect", **options, implementation=implementation)
    x[0, 1, 12, 11] = torch.nan
    out = nonlocal_means(x, 0.1, 5, 3, "reflect", **options, implementation=implementation)
    spoiled = torch.zeros(24, 24, dtype=torch.bool)
    spoiled[9:16, 8:15] = True
    assert torch.equal(out.isnan().any(1)[0], spoiled)
    assert torch.equal(out[..., ~spoiled], clean[..., ~spoiled])
    assert nonlocal_means(x, torch.tensor(torch.nan), **options, implementation=implementation).isnan().all()


# Tensors of all kinds.


@each_implementation
@pytest.mark.parametrize("dtype", BAR, ids=str)
def test_dtypes(dtype: torch.dtype, implementation: Any) -> None:
    x = _image(2, 3, 12, 13).to(dtype).requires_grad_()
    h = torch.tensor(0.2, dtype=dtype, requires_grad=True)
    out = nonlocal_means(x, h, 5, 3, implementation=implementation)
    expected = nonlocal_means(x.detach().double(), h.detach().double(), 5, 3, implementation="torch")
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() <= BAR[dtype]
    out.float().square().sum().backward()
    assert x.grad is not None
    assert h.grad is not None
    assert (x.grad.dtype, h.grad.dtype) == (dtype, dtype)
    assert x.grad.isfinite().all()


@each_implementation
@pytest.mark.parametrize("form", [(), (0, 1, 1, 1), (0, 1, 7, 8)])
def test_empty_batch(form: tuple[int, ...], implementation: Any) -> None:
    x = torch.rand(0, 3, 7, 8, requires_grad=True)
    h = torch.full(form, 0.1, requires_grad=True)
    out = nonlocal_means(x, h, implementation=implementation)
    assert out.shape == x.shape
    for gradient, value in zip(torch.autograd.grad(out.sum(), (x, h)), (x, h), strict=True):
        assert gradient.shape == value.shape
        assert not gradient.any()


@each_implementation
def test_memory_formats(implementation: Any) -> None:
    x = _image(2, 3, 9, 10, dtype=torch.float32)
    expected = nonlocal_means(x, 0.1, 5, 3, implementation=implementation)
    last = nonlocal_means(x.to(memory_format=torch.channels_last), 0.1, 5, 3, implementation=implementation)
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = torch.zeros(2, 3, 18, 10)
    strided[:, :, ::2] = x
    assert torch.equal(last, expected)
    assert torch.equal(nonlocal_means(strided[:, :, ::2], 0.1, 5, 3, implementation=implementation), expected)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(nonlocal_means(turned, 0.1, 5, 3, implementation=implementation), expected)


@each_implementation
def test_each_image_of_a_batch_is_on_its_own(implementation: Any) -> None:
    x, h = _image(3, 3, 8, 9), _image(3, 1, 1, 1, seed=1) + 0.05
    together = nonlocal_means(x, h, 5, 3, implementation=implementation)
    for i in range(3):
        alone = nonlocal_means(x[i : i + 1], float(h[i]), 5, 3, implementation=implementation)
        assert torch.allclose(together[i : i + 1], alone, rtol=0, atol=1e-14)


# Cost.


@each_implementation
def test_what_is_kept_for_the_backward_pass(implementation: Any) -> None:
    """Four images' worth, whatever the window and the patch (but for the wider border)."""

    def kept(search: int, patch: int) -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = _image(1, 3, 96, 96, dtype=torch.float32).requires_grad_()
        h = torch.tensor(0.1, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            nonlocal_means(x, h, search, patch, implementation=implementation)
        margin = search // 2 + patch // 2
        return sum(storages.values()) * 96 * 96 // (96 + 2 * margin) ** 2

    image = 3 * 96 * 96 * 4
    assert kept(5, 3) <= 4.5 * image
    assert kept(15, 9) <= kept(5, 3)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@each_implementation
def test_memory_at_512(implementation: Any) -> None:
    """Forward and backward, image and h, window 11 and patch 5: at most 100 MB above the start."""
    name = {"torch": "tlsc, PyTorch", "numba": "tlsc, Numba"}[implementation]
    command = [sys.executable, "-m", "benchmarks.nlm", "--child", name, "forward + backward", "11", "5"]
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1"
    }  # threads that wait for each other are slow on a busy machine
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, env=environment)
    assert 10 < float(done.stdout) <= 100


def _script(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork") or not HAS_NUMBA, reason="needs fork and Numba")
@pytest.mark.parametrize(("size", "threads"), [slow(50, 2), slow(90, 1)])
def test_a_forked_process_can_use_what_its_parent_used(size: int, threads: int) -> None:
    """With threads of its own; and, as in the workers of a DataLoader, with one.

    The threads are those of local statistics, whose forks the usual run has in ``test_kernels.py``
    (``test_workers_call_converted_models``, ``test_threads_start_anew_in_a_forked_process``).

    From 32768 elements on any operation of PyTorch (``x.exp()``) hangs in a forked child, if it and its parent use
    several threads: those of OpenMP do not survive. Below that only the kernels use threads.
    """
    _script(
        "import os, sys, warnings, torch; from tlsc.adapters import nonlocal_means as f; torch.set_num_threads(2)\n"
        f"x = torch.rand(1, 3, {size}, {size}); a = f(x, 0.1, 21, 3, implementation='numba')\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "child = os.fork()\n"
        "if not child:\n"
        f"    torch.set_num_threads({threads})\n"
        "    os._exit(0 if torch.equal(f(x, 0.1, 21, 3, implementation='numba'), a) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )


@pytest.mark.skipif(not HAS_NUMBA, reason="Numba is not installed")
def test_backend_governs_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tlsc.adapters.nlm import numba_kernels

    calls = []
    kernel = numba_kernels.forward
    monkeypatch.setattr(numba_kernels, "forward", lambda *args: (calls.append(1), kernel(*args)))
    x = torch.rand(1, 3, 6, 6)
    for name, expected in (("auto", 1), ("torch", 0), ("numba", 1)):
        calls.clear()
        with tlsc.backend(name):
            nonlocal_means(x, 0.1, 3, 3)
        assert len(calls) == expected
    calls.clear()
    with tlsc.backend("torch"):
        nonlocal_means(x, 0.1, 3, 3, implementation="numba")
    assert calls
    with tlsc.backend("numba"), pytest.raises(BackendError, match="on meta"):
        nonlocal_means(x.to("meta"), 0.1, 3, 3)
    monkeypatch.setattr(backends.BACK_ENDS["numba"], "_module", "it is not there")
    calls.clear()
    nonlocal_means(x, 0.1, 3, 3)
    assert not calls
    with pytest.raises(BackendError, match="it is not there"):
        nonlocal_means(x, 0.1, 3, 3, implementation="numba")


# The layer.


def test_layer_is_the_function() -> None:
    x = _image(2, 3, 8, 8, dtype=torch.float32)
    layer = NonLocalMeans(0.1, 7, 3, "reflect")
    expected = nonlocal_means(x, 0.1, 7, 3, "reflect")
    assert torch.equal(layer(x), expected)
    assert not torch.equal(NonLocalMeans(0.1, 7, 3)(x), expected)
    assert torch.equal(NonLocalMeans(None, 7, 3, "reflect")(x, torch.full((2, 1, 1, 1), 0.1)), expected)
    assert torch.equal(NonLocalMeans(9.0, 7, 3, "reflect")(x, torch.full((2, 1, 8, 8), 0.1)), expected)
    options: dict[str, Any] = {"distance": "color", "weights": "gaussian", "sigma": 0.1}
    for name, value in options.items():
        other = nonlocal_means(x, 0.3, 7, 3, **{name: value})
        assert not torch.equal(other, nonlocal_means(x, 0.3, 7, 3))
        assert torch.equal(NonLocalMeans(0.3, 7, 3, **{name: value})(x), other)


def test_layer_learns() -> None:
    layer = NonLocalMeans(0.05)
    assert [name for name, _ in layer.named_parameters()] == ["h"]
    clean = torch.full((1, 3, 16, 16), 0.5)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(noisy) - clean).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_layer_keeps_its_strength_exactly() -> None:
    """A float64 layer has the h it was given, not its float32 rounding; but a changed h is not undone."""
    layer = NonLocalMeans(0.1).double()
    assert layer.h is not None
    assert float(layer.h.detach()) == 0.1
    layer = NonLocalMeans(0.1)
    assert layer.h is not None
    with torch.no_grad():
        layer.h.add_(0.01)
    assert float(layer.double().h.detach()) == float(torch.tensor(0.1) + 0.01)  # type: ignore[union-attr]
    state = NonLocalMeans(0.3).state_dict()
    layer.load_state_dict(state)
    assert float(layer.h.detach()) == pytest.approx(0.3)


def test_layer_shows_its_settings() -> None:
    assert repr(NonLocalMeans(0.1, 7, 3)) == "NonLocalMeans(search_window=7, patch=3, border='circular')"
    layer = NonLocalMeans(0.1, 7, 3, distance="color", weights="gaussian", sigma=0.1)
    assert repr(layer)[:-1].endswith(", distance='color', weights='gaussian', sigma=0.1")


@pytest.mark.parametrize("implementation", [slow("torch"), IMPLEMENTATIONS[1]])
def test_compiles(implementation: Any) -> None:
    """One operator in the graph, with its gradient, for every size."""
    torch.library.opcheck(
        torch.ops.tlsc.nonlocal_means.default,
        (
            torch.rand(1, 3, 12, 12),
            torch.rand(1, 1, 12, 12),
            torch.rand(1, 1, 1) + 0.1,
            3,
            3,
            1,
            0.0,
            implementation,
        ),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    layer = NonLocalMeans(0.1, 3, 3, "reflect", implementation=implementation)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((8, 9), (12, 7), (5, 21)):
        x = torch.rand(1, 3, *size)
        with torch._dynamo.config.patch(error_on_recompile=size != (8, 9)):
            assert torch.equal(compiled(x), layer(x))


DYNAMIC = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


@each_border
def test_exports_for_every_size(border: Any) -> None:
    """Of PyTorch's own operations, so that others can run it; its gradients are right, too."""

    options: dict[str, Any] = {}
    if border == "reflect":
        options = {"distance": "color", "weights": "gaussian", "sigma": 0.1}

    class Net(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return nonlocal_means(x, h, 5, 3, border, **options)

    inputs = _image(1, 3, 9, 10), _image(1, 1, 9, 10, seed=1) + 0.05
    program = torch.export.export(Net(), inputs, dynamic_shapes=(DYNAMIC, DYNAMIC))
    assert not [node for node in program.graph.nodes if "tlsc" in str(node.target)]
    exported = program.module()
    for size in ((9, 10), (2, 3), (31, 8)):
        x, h = _image(1, 3, *size).requires_grad_(), (_image(1, 1, *size, seed=1) - 0.1).requires_grad_()
        out, expected = exported(x, h), nonlocal_means(x, h, 5, 3, border, **options)
        assert (out - expected).abs().max() <= 1e-12
        for ours, theirs in zip(
            torch.autograd.grad(out.square().sum(), (x, h)),
            torch.autograd.grad(expected.square().sum(), (x, h)),
            strict=True,
        ):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


# Errors.


@each_implementation
def test_second_derivative_is_refused(implementation: Any) -> None:
    x = _image(1, 1, 5, 5).requires_grad_()
    out = nonlocal_means(x, 0.1, 3, 3, implementation=implementation)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once") as raised:
        gradient.sum().backward()
    assert isinstance(raised.value, TLSCError)


X = torch.rand(2, 3, 6, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"search_window": 10}, ArgumentValueError, "search_window must be odd.* 10"),
        ({"search_window": 0}, ArgumentValueError, "search_window .* 0"),
        ({"search_window": -3}, ArgumentValueError, "search_window .* -3"),
        ({"search_window": 5.0}, ArgumentTypeError, r"search_window .* 5\.0"),
        ({"search_window": (5, 5)}, ArgumentTypeError, r"search_window .* \(5, 5\)"),
        ({"search_window": True}, ArgumentTypeError, "search_window .* True"),
        ({"patch": 4}, ArgumentValueError, "patch must be odd.* 4"),
        ({"patch": -1}, ArgumentValueError, "patch .* -1"),
        ({"patch": "5"}, ArgumentTypeError, "patch .* '5'"),
        ({"border": "zeros"}, ArgumentValueError, "border .*'circular', 'reflect'.* 'zeros'"),
        ({"implementation": "cuda"}, ArgumentValueError, "implementation .* 'cuda'"),
        ({"distance": "rgb"}, ArgumentValueError, "distance .*'luma', 'color'.* 'rgb'"),
        ({"weights": "box"}, ArgumentValueError, "weights .*'exponential', 'gaussian'.* 'box'"),
        ({"sigma": -0.1}, ArgumentValueError, r"sigma .*-0\.1"),
        ({"sigma": float("nan")}, ArgumentValueError, "sigma .*nan"),
        ({"sigma": None}, ArgumentTypeError, "sigma must be a number, got None"),
        ({"h": float("nan")}, ArgumentValueError, "h .*nan"),
        ({"h": "0.1"}, ArgumentTypeError, "h .* '0.1'"),
        ({"h": torch.tensor(1)}, ArgumentTypeError, "h .*int64"),
        ({"h": torch.ones(2)}, ArgumentValueError, r"h .*\(2, 1, 6, 7\).* \(2,\)"),
        ({"h": torch.ones(1, 1, 1, 1)}, ArgumentValueError, r"h .*\(1, 1, 1, 1\)"),
        ({"h": torch.ones(2, 3, 6, 7)}, ArgumentValueError, r"h .*\(2, 3, 6, 7\)"),
        ({"h": torch.ones(2, 1, 7, 6)}, ArgumentValueError, r"h .*\(2, 1, 7, 6\)"),
        ({"h": torch.ones((), device="meta")}, ArgumentValueError, "h is on meta"),
        ({"x": X[0]}, ArgumentValueError, r"x must have 4 dimensions.*\(3, 6, 7\)"),
        ({"x": X[:, :2]}, ArgumentValueError, "x must have 1 or 3 channels, got 2"),
        ({"x": X[:, :0]}, ArgumentValueError, "x must have 1 or 3 channels, got 0"),
        ({"x": X[..., :0]}, ArgumentValueError, "x must have at least one position"),
        ({"x": (X * 255).byte()}, ArgumentTypeError, "x must be .*uint8"),
        ({"x": X.numpy()}, ArgumentTypeError, "x must be a tensor.*ndarray"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(arguments: dict[str, Any], error: type[TLSCError], message: str) -> None:
    with pytest.raises(error, match=message):
        nonlocal_means(**{"x": X, "h": 0.1, **arguments})


def test_bad_arguments_of_the_layer() -> None:
    for arguments in (
        {"h": torch.ones(2)},
        {"h": 0.1, "patch": 2},
        {"h": 0.1, "search_window": 2},
        {"h": 0.1, "border": "zero"},
        {"h": 0.1, "implementation": "none"},
        {"h": 0.1, "distance": "rgb"},
        {"h": 0.1, "weights": "box"},
        {"h": 0.1, "sigma": -1},
    ):
        with pytest.raises(ArgumentValueError):
            NonLocalMeans(**arguments)  # type: ignore[arg-type]
    for strength in (torch.tensor(1), "0.1", True):
        with pytest.raises(ArgumentTypeError, match="h must be"):
            NonLocalMeans(strength)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="h must be given"):
        NonLocalMeans(None)(X)
