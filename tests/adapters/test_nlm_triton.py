"""Non-local means in Triton: values in the interpreter, machine code for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tlsc
from tlsc._statistics import backends
from tlsc.adapters.nlm import nonlocal_means, operator
from tlsc.errors import BackendError

from ..gpu_compile import compiling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has no other wheels")
pytest.importorskip("triton")

# (channels, guides, power, floor, a map of strengths, search window, patch, height, width)
SETTINGS = [
    (3, 1, 1, 0.0, False, 11, 5, 512, 512),
    (3, 3, 2, 0.1, True, 7, 3, 33, 1),
    (1, 1, 1, 0.0, True, 3, 1, 1, 16),
    (3, 3, 1, 0.1, False, 5, 7, 16, 37),
]

# In a process of its own: Triton becomes an interpreter when it is imported.
INTERPRETED = """
import torch
from tlsc.adapters.nlm import nonlocal_means
torch.set_num_threads(1)
CASES = [((2, 1, 5, 6), torch.float64), ((2, 1, 1, 1), torch.float32), ((), torch.float64)]
settings = [("luma", "exponential", 0.0, "circular"), ("color", "gaussian", 0.05, "reflect"),
    ("luma", "gaussian", 0.0, "reflect"), ("color", "exponential", 0.05, "circular")]
for number, (distance, weights, sigma, border) in enumerate(settings[:OPTIONS]):
    for shape, dtype in CASES[number % len(CASES):][:EACH]:
        x = torch.rand(2, 1 + 2 * (number < 3), 5, 6, dtype=dtype)
        h, upstream = torch.rand(shape, dtype=dtype) / 4 + 0.05, torch.randn(x.shape, dtype=dtype)
        found = []
        for implementation in ("torch", "triton"):
            image, strength = x.clone().requires_grad_(), h.clone().requires_grad_()
            out = nonlocal_means(image, strength, SEARCH, 3, border, distance=distance, weights=weights,
                sigma=sigma, implementation=implementation)
            found.append((out, *torch.autograd.grad(out, (image, strength), upstream)))
        bar = 1e-11 if dtype == torch.float64 else 1e-4
        assert all((a - b).abs().max() < bar * (1 + a.abs().max()) for a, b in zip(*found)), (distance, shape)
x = torch.rand(1, 3, 7, 8); x[0, 1, 3, 4] = torch.nan
expected, found = (nonlocal_means(x, 0.1, 3, 3, implementation=name).isnan() for name in ("torch", "triton"))
assert torch.equal(expected, found) and 0 < found.sum() < found.numel()
flat = torch.full((1, 3, 6, 6), 0.1)
assert torch.equal(nonlocal_means(flat, 0.1, 3, 3, implementation="triton"), flat)
half = torch.rand(1, 3, 6, 2); pair = torch.cat([half, half], 3)
assert (nonlocal_means(pair, 0.0, 5, 3, implementation="triton") - pair).abs().max() < 1e-6
"""


GOLDEN = """
import torch
from safetensors.torch import load_file
from tlsc.adapters.nlm import nonlocal_means
golden = load_file(PATH)
names = sorted({key.split(".")[0] for key in golden if key.endswith(".input")})
for case in names[:3]:
    h = golden[case + ".h"].reshape(()).requires_grad_()
    search, patch = int(golden[case + ".search_window"]), int(golden[case + ".patch"])
    out = nonlocal_means(golden[case + ".input"], h, search, patch, implementation="triton")
    assert (out - golden[case + ".output"]).abs().max() < 1e-11
    (gradient,) = torch.autograd.grad((out - golden[case + ".target"]).square().mean(), h)
    assert abs(gradient - golden[case + ".grad_h_of_mse"].reshape(())) < 1e-9
"""


def _interpret(code: str, **settings: object) -> None:
    for name, value in settings.items():
        code = code.replace(name, repr(value))
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_values_in_the_interpreter() -> None:
    """Every option against PyTorch's form, with gradients; NaN, limits, a constant image."""
    _interpret(INTERPRETED, EACH=1, SEARCH=3, OPTIONS=2)


@pytest.mark.slow
def test_all_pairs_of_options_in_the_interpreter() -> None:
    _interpret(INTERPRETED, EACH=3, SEARCH=5, OPTIONS=4)


@pytest.mark.slow
def test_golden_vectors_in_the_interpreter() -> None:
    _interpret(GOLDEN, PATH=str(Path(__file__).parents[1] / "data" / "nlm.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
def test_compiles_for_gpus_that_are_not_there(target: int) -> None:
    """No kernel spills, nothing is read back to the host, and the number of launches is that of the shifts."""
    from tlsc.adapters.nlm import triton_form

    for channels, guides, power, floor, is_map, search, patch, height, width in SETTINGS:
        margin = search // 2 + patch // 2
        image = torch.zeros(1, channels, height + 2 * margin, width + 2 * margin)
        guide = torch.zeros(1, guides, *image.shape[2:])
        rate = torch.zeros((1, height, width) if is_map else (1, 1, 1))
        settings = (search, patch, power, floor)
        with compiling(target) as seen:
            mean, total = triton_form.forward(image, guide, rate, *settings)
            triton_form.backward(image, guide, rate, *settings, mean, total, True)
        groups = -(-(search**2 // 2) // triton_form.SHIFTS)
        assert [launch.kernel for launch in seen.launches] == ["forward", "backward", *["flows", "spread"] * groups]
        assert all(kernel.spilled == 0 for kernel in seen.compiled)
        assert set(seen.operations) <= {"aten.full.default", "aten.zeros.default", "aten.zeros_like.default"}


def test_a_kernel_that_fails_is_replaced_in_auto_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = backends.BACK_ENDS["triton"]
    monkeypatch.setattr(own, "device", "cpu")
    monkeypatch.setattr(own, "failures", {})
    monkeypatch.setattr(own, "warned", False)
    monkeypatch.setattr(backends.BACK_ENDS["numba"], "device", "none")
    monkeypatch.setattr(own.module(), "why_unusable", lambda: None)
    monkeypatch.setattr(own.module(), "why_not", lambda x: None)
    compute = operator._forward_by

    def failing(name: str, *arguments: object) -> object:
        if name == "triton":
            raise RuntimeError("no ptxas\nand more")
        return compute(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(operator, "_forward_by", failing)
    x = torch.rand(1, 3, 6, 6)
    expected = nonlocal_means(x, 0.1, 3, 3, implementation="torch")
    with pytest.warns(tlsc.TLSCWarning, match=r"triton back end fails at nonlocal_means .*no ptxas"):
        assert torch.equal(nonlocal_means(x, 0.1, 3, 3), expected)
    assert torch.equal(nonlocal_means(x, 0.1, 3, 3), expected)
    with pytest.raises(BackendError, match="fails at nonlocal_means"):
        nonlocal_means(x, 0.1, 3, 3, implementation="triton")


def test_a_negative_number_is_refused_and_a_tensor_is_the_limit() -> None:
    x = torch.rand(1, 1, 6, 6)
    with pytest.raises(tlsc.TLSCError, match=r"h must be a number that is not negative, got -0\.1"):
        nonlocal_means(x, -0.1)
    assert torch.equal(nonlocal_means(x, torch.tensor(-0.1), 3, 3), x)
