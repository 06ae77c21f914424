"""Is an installed tlsc whole? ``python tests/smoke.py``, with nothing but the package and what it requires.

A stand-alone script for a wheel in a fresh environment; ``python -m benchmarks wheels`` runs it in many. What needs
a package of an extra has to work where that is installed, and to name the extra in one line where it is not.
"""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tlsc
from tlsc import adapters

EXTRAS = {
    "eval": ("PIL", "pyvips", "skimage", "tifffile", "tqdm"),
    "networks": ("spandrel", "timm"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "basicsr": ("basicsr",),
    "lightning": ("lightning",),
    "tracking": ("tensorboard", "wandb"),
}


def has(extra: str) -> bool:
    """Is every package of an extra there?"""
    return all(importlib.util.find_spec(name) is not None for name in EXTRAS[extra])


def tell(what: str, found: str) -> None:
    print(f"{what}: {found}", flush=True)


class Attention(nn.Module):
    """Squeeze-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


def converted_layers_take_windows() -> str:
    """Each position of a converted layer equals the original on the crop that is its window."""
    torch.manual_seed(0)
    for layer in (nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), Attention()):
        model, x = nn.Sequential(layer).double().eval(), torch.rand(1, 4, 21, 18, dtype=torch.float64)
        crops = [(i, j, model(x[..., i : i + 9, j : j + 9])) for i, j in ((0, 0), (5, 9), (12, 3))]
        local = tlsc.convert(model, 9, check=False)(x)
        for i, j, crop in crops:
            torch.testing.assert_close(local[..., i + 4, j + 4], crop[..., 4, 4], rtol=1e-9, atol=1e-9)
        assert tlsc.revert(model)[0] is layer
    return "right, and reverted"


def needs(extra: str, run: Callable[[], None], error: type[Exception] = tlsc.MissingPackageError) -> str:
    """What needs an extra works with it, and names it without it."""
    try:
        run()
    except error as missing:
        said = str(missing)
    else:
        assert has(extra), f"worked without the packages of {extra}: {EXTRAS[extra]}"
        return "works"
    assert not has(extra), said
    assert f"tlsc[{extra}]" in said, said
    assert len(said.splitlines()) == 1, said
    return f"not installed: {said}"


def exports(folder: Path) -> None:
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4)).eval(), 8)
    tlsc.export(model, folder / "net.onnx", example_input=torch.rand(1, 3, 16, 16))


def loads_what_spandrel_knows(folder: Path) -> None:
    """Weights of an architecture that tlsc has no code of its own for (SRVGGNetCompact, twice as large)."""
    from safetensors.torch import save_file

    shapes = {"body.0.weight": (16, 3, 3, 3), "body.0.bias": (16,), "body.1.weight": (16,)}
    shapes |= {"body.2.weight": (12, 16, 3, 3), "body.2.bias": (12,)}
    save_file({name: torch.rand(shape) for name, shape in shapes.items()}, folder / "net.safetensors")
    model = adapters.load(folder / "net.safetensors")
    assert adapters.run(model, torch.rand(1, 3, 9, 8)).shape[-2:] == (18, 16)


def takes_basicsr_s_options() -> None:
    from tlsc.adapters.basicsr import HINetLocal

    assert issubclass(HINetLocal, nn.Module)


def makes_a_callback() -> None:
    from tlsc.adapters.lightning import LocalValidation

    assert LocalValidation(384).base_size == 384


def logs() -> None:
    from tlsc.eval.show.trackers import refuse_missing

    refuse_missing(EXTRAS["tracking"])


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    given = [sys.executable, "-m", "tlsc.eval", *map(str, words)]
    return subprocess.run(given, capture_output=True, text=True, timeout=600, check=False)


def png(height: int, width: int) -> bytes:
    """A picture of noise, without any package for pictures."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.random.default_rng(0).integers(0, 256, (height, 1 + width * 3), dtype=np.uint8)
    rows[:, 0] = 0  # no filter
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def restores(folder: Path) -> str:
    """A picture restored by a demo network from the command line, or one line on what is missing."""
    source, target = folder / "picture.png", folder / "out"
    source.write_bytes(png(80, 90))
    done = command("restore", "se", source, "-o", target)
    if has("eval"):
        assert done.returncode == 0, done.stderr
        assert len(list(target.iterdir())) == 1
        return "works"
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert "tlsc[eval]" in done.stderr, done.stderr
    return "not installed: " + done.stderr.strip().splitlines()[-1]


def main() -> None:
    tell("versions", f"tlsc {version('tlsc')}, torch {version('torch')}, Python {sys.version.split()[0]}")
    assert tlsc.__version__ == version("tlsc")
    tell("conversion", converted_layers_take_windows())
    tell("kernels", ", ".join(f"{one.name} {'yes' if one.usable else 'no'}" for one in tlsc.backends()))
    model = tlsc.convert(adapters.load_demo_network("se"), 64)
    assert bool(adapters.run(model, torch.rand(1, 3, 90, 100)).isfinite().all())
    tell("demo network", "runs")
    for words in (["--version"], ["--help"], ["list"]):
        done = command(*words)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
    tell("command line", command("--version").stdout.strip())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell("export", needs("onnx", lambda: exports(folder)))
        tell("restore", restores(folder))
        found = needs("networks", lambda: loads_what_spandrel_knows(folder), adapters.CheckpointError)
        tell("checkpoint of spandrel's", found)
        tell("BasicSR", needs("basicsr", takes_basicsr_s_options))
        tell("Lightning", needs("lightning", makes_a_callback))
        tell("TensorBoard, Weights & Biases", needs("tracking", logs))
    print("smoke test passed")


if __name__ == "__main__":
    main()
