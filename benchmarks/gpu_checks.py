"""Whether the kernels are right on a device: each check raises, or returns the largest error it saw.

Inputs are random anew at each run (the seed is printed); what is expected is computed in float64, by PyTorch's
operations. Run as the first part of ``python -m benchmarks gpu``, and by the tests that need a GPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tlsc
from tlsc.adapters.nlm import nonlocal_means
from tlsc.functional import local_group_norm, local_instance_norm, local_mean, local_var_mean

__all__ = ["CHECKS", "Wrong", "check", "gate"]

BARS = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Wrong(AssertionError):
    """A result is not what it should be."""


def _expected(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with tlsc.backend("torch"):
        return function(x.double())


def _error(found: Tensor, expected: Tensor, bar: float, what: str) -> float:
    """Largest error, as a share of the largest value from 1 on; what is not finite has to be so in both."""
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        raise Wrong(f"{what}: another shape, or other places that are not finite")
    finite = expected.isfinite()
    scale = max(1.0, expected[finite].abs().max().item())
    error = (found.double() - expected)[finite].abs().max().item() / scale
    if not error <= bar:
        raise Wrong(f"{what}: error {error:.2g}, more than {bar:.2g}")
    return error


def values(device: str, size: int) -> float:
    """Means, variances, norms, strided means; four types, both layouts, a batch, odd sizes."""
    worst = 0.0
    weight = torch.rand(6, device=device) + 0.5
    for dtype, last in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, True),
        (torch.bfloat16, False),
    ):
        x = (torch.randn(2, 6, size + 1, size * 2 - 3, device=device) + 1).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "mean": lambda x: local_mean(x, size // 2),
            "variance": lambda x: local_var_mean(x, (size // 3, size))[0],
            "instance norm": lambda x: local_instance_norm(x, size // 2, weight.to(x.dtype), weight.to(x.dtype)),
            "group norm": lambda x: local_group_norm(x, (size // 4, size // 3), 3),
            "stride 8": lambda x: local_mean(x, size // 2, 8),
            "stride 3": lambda x: local_mean(x, size // 2, 3),
        }
        for name, way in ways.items():
            found = way(x)
            what = f"{name}, {dtype}, channels {'last' if last else 'first'}"
            if found.dtype != dtype:
                raise Wrong(f"{what}: came back as {found.dtype}")
            worst = max(worst, _error(found, _expected(way, x), BARS[dtype] * 4, what) / BARS[dtype])
    return worst * BARS[torch.float32]


def far_mean(device: str, size: int) -> float:
    """A mean of 1000 deviations: the normalised values to 1e-3."""
    x = torch.randn(1, 2, size * 2, size, device=device) + 1000
    return _error(
        local_instance_norm(x, size // 2),
        _expected(lambda x: local_instance_norm(x, size // 2), x),
        1e-3 / 4,  # of the largest value, which is about 4
        "a mean of 1000 deviations",
    )


def not_finite(device: str, size: int) -> float:
    """A NaN and an infinity spoil the windows that contain them, and no others."""
    x = torch.randn(1, 4, size, size, device=device)
    x[0, 1, size // 3, size // 2], x[0, 2, 1, 1] = torch.nan, torch.inf
    worst = 0.0
    for name, way in (
        ("mean", lambda x: local_mean(x, size // 4)),
        ("norm", lambda x: local_instance_norm(x, size // 4)),
        ("stride 8", lambda x: local_mean(x, size // 4, 8)),
    ):
        expected = _expected(way, x)
        if not 0 < expected.isfinite().sum() < expected.numel():
            raise Wrong("nothing, or everything, is spoiled")
        worst = max(worst, _error(way(x), expected, BARS[torch.float32] * 4, f"{name} beside a NaN"))
    return worst


def gradients(device: str, size: int) -> float:
    """Of the input, through the norm and through the strided mean."""
    x = torch.randn(1, 4, size, size, device=device)
    upstream = torch.randn_like(x)
    worst = 0.0
    for way in (lambda x: local_instance_norm(x, size // 2), lambda x: local_mean(x, size // 2, 8)):

        def gradient(x: Tensor, way: Callable[[Tensor], Tensor] = way) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(way(x), x, upstream.to(x.dtype))[0]

        worst = max(worst, _error(gradient(x), _expected(gradient, x), 1e-4, "gradient"))
    return worst


def gate(channels: int, reduction: int = 4) -> nn.Module:
    """A squeeze-excitation block."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.body = nn.Sequential(
                nn.Conv2d(channels, channels // reduction, 1),
                nn.ReLU(),
                nn.Conv2d(channels // reduction, channels, 1),
                nn.Sigmoid(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x * self.body(self.pool(x))

    return Gate()


def _model(device: str, size: int) -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.GELU(), gate(8))
    tlsc.convert(model.eval(), size // 2)
    return model.to(device), torch.rand(1, 3, size, size, device=device)


@torch.no_grad()
def models(device: str, size: int) -> float:
    """A converted model, without a warning, as on PyTorch's path in float32."""
    model, x = _model(device, size)
    with tlsc.backend("torch"):
        expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", tlsc.TLSCWarning)
        return _error(model(x), expected.double(), 1e-3, "a converted model")


@torch.no_grad()
def graphs(device: str, size: int) -> float | None:
    """A CUDA graph holds a converted model, and answers for another input."""
    if device != "cuda":
        return None
    model, x = _model(device, size)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(x)
    x.copy_(torch.rand_like(x))
    graph.replay()
    torch.cuda.synchronize()
    return _error(out, model(x).double(), 1e-3, "a CUDA graph")


@torch.no_grad()
def compiles(device: str, size: int) -> float:
    """``torch.compile(fullgraph=True)``."""
    model, x = _model(device, size)
    backend = "inductor" if device == "cuda" else "eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    return _error(compiled(x), model(x).double(), 1e-2, "a compiled model")


def denoising(device: str, size: int) -> float:
    """Non-local means, with its gradients of the image and of h."""
    x = torch.rand(1, 3, size // 2, size // 2 + 1, device=device)

    def both(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        h = torch.tensor(0.2, device=device, dtype=x.dtype, requires_grad=True)
        out = nonlocal_means(x, h, 5, 3)
        gradient, of_h = torch.autograd.grad(out.square().sum(), (x, h))
        return torch.cat([out.detach().flatten(), gradient.flatten(), of_h.reshape(1) / x.numel()])

    return _error(both(x), _expected(both, x), 1e-3, "non-local means")


CHECKS: dict[str, Callable[[str, int], float | None]] = {
    "values, against float64": values,
    "mean of 1000 deviations": far_mean,
    "NaN and infinity stay in their windows": not_finite,
    "gradients": gradients,
    "a converted model": models,
    "CUDA graph": graphs,
    "torch.compile(fullgraph=True)": compiles,
    "non-local means, with gradients": denoising,
}


def check(device: str, size: int) -> list[str]:
    """Run all checks and print one line each; the names of those that fail."""
    seed = torch.seed() % 2**32
    torch.manual_seed(seed)
    print(f"\nseed {seed}")
    wrong = []
    for name, run in CHECKS.items():
        try:
            error = run(device, size)
            print(f"  right  {name}" + ("" if error is None else f": {error:.1e}"), flush=True)
        except Exception as error:  # the others are still to be known
            wrong.append(name)
            what = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            print(f"  WRONG  {name}: {what.splitlines()[0] if what else ''}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(1 if check("cuda", 160) else 0)
