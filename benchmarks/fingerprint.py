"""What the plugin makes of every network the project knows, as lines for comparing two states of the code.

``uv run python -m benchmarks fingerprint FILE`` writes one line for each network and way of converting; with a
second file it prints the lines that differ, and exits with 1 if there are any. A line holds hashes: of the
plan (paths, operations, windows, reasons, corrections), of the forwards that were generated, and of the output's
bytes at the window's size and beyond it. Nothing private is imported, so that the file runs on any state of the
code: copy it into ``benchmarks/`` of an older checkout and run ``python -m benchmarks.fingerprint FILE`` there.
Outputs are computed on one thread; compare runs of one machine only.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tlsc
from tests.zoo import ENTRIES
from tlsc import adapters

__all__ = ["main"]

Make = Callable[[], nn.Module]
Images = Callable[[int, int], tuple[Tensor, ...]]


def networks() -> Iterator[tuple[str, Make, tuple[int, int], Images | None]]:
    """Name, maker, window and example of every network: ours and those of the coverage table."""
    for name in adapters.DEMO_NETWORKS:
        yield name, lambda name=name: adapters.load_demo_network(name).double(), (64, 64), None  # type: ignore[misc]
    yield "HINet", lambda: seeded(adapters.HINet, wf=4, hin_position_left=3), (64, 64), None
    yield "HINet, all levels", lambda: seeded(adapters.HINet, wf=4), (64, 64), None
    settings = {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 2}
    yield "MPRNet of ours", lambda: seeded(adapters.MPRNet, **settings), (64, 64), None
    yield "NLMNet", lambda: adapters.NLMNet.pretrained().double(), (32, 32), None
    for entry in ENTRIES:
        if max(entry.base) <= 128:
            yield entry.name, entry.randomised, entry.base, entry.images


def seeded(cls: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    """A network with the random weights of a fixed seed, in float64."""
    torch.manual_seed(0)
    return cls(**settings).double().eval()


WAYS: dict[str, dict[str, Any]] = {"exact": {}, "strided": {"stride": 4}}


@torch.no_grad()
def lines() -> Iterator[tuple[str, str]]:
    """The fingerprint, line by line: what, and its hashes."""
    for name, make, base, example in networks():
        for way, settings in WAYS.items():
            yield f"{name}, {way}", one(make, base, example, settings)
        if name in ("se", "hin", "hin-all", "HINet"):
            yield f"{name}, calibrated", one(make, base, example, {"calibrate": photographs()})
        if name in ("se", "hin", "MPRNet of ours", "NLMNet", "HINet"):
            yield f"{name}, exported", exported(make, base, example)


def one(make: Make, base: tuple[int, int], example: Images | None, settings: dict[str, Any]) -> str:
    """Plan, code and outputs of one network converted in one way."""
    model = make()
    try:
        tlsc.convert(model, base, example_input=example, strict=False, **settings)
    except tlsc.TLSCError as error:
        return f"{type(error).__name__} {digest(str(error))}"
    plan = tlsc.plan(model).as_dict() if settings.get("calibrate") or converted(model) else None
    parts = [f"plan {digest(json.dumps(plan, sort_keys=True, default=str))}", f"code {digest(code_of(model))}"]
    for rows, columns in ((1, 1), (2, 3)):
        size = base[0] * rows, base[1] * columns
        if max(size) > 200:
            continue
        torch.manual_seed(1)
        x = example(*size) if example is not None else (torch.rand(1, 3, *size, dtype=torch.float64),)
        parts.append(f"{size[0]}×{size[1]} {outputs(model, x)}")
    return ", ".join(parts)


def converted(model: nn.Module) -> bool:
    """Whether anything was converted: a model without any site has no plan to ask for."""
    try:
        tlsc.plan(model)
    except tlsc.TLSCError:
        return False
    return True


def outputs(model: nn.Module, x: tuple[Tensor, ...]) -> str:
    """Hash of what the model gives, or what it raises."""
    try:
        torch.manual_seed(0)
        made = [y for y in tree_leaves(model(*x)) if isinstance(y, Tensor)]
    except Exception as error:
        return type(error).__name__
    return digest(*(y.contiguous().cpu().numpy().tobytes() for y in made))


def code_of(model: nn.Module) -> str:
    """The text of every forward that was generated for the model, in order."""
    found = {}
    for path, module in model.named_modules():
        if type(module).__name__.startswith("Local"):
            # A generated class cannot be pickled by name: it carries its text.
            texts = [part for part in tree_leaves(module.__reduce_ex__(2)[1]) if isinstance(part, str)]
            found[path] = [type(module).__name__, *(text for text in texts if "def forward" in text)]
    return json.dumps(found)


def exported(make: Make, base: tuple[int, int], example: Images | None) -> str:
    """Hash of the operators of the ONNX file, in order; names and metadata may change with versions."""
    import onnx

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "net.onnx")
        model = tlsc.convert(make().float(), base, strict=False)
        try:
            tlsc.export(model, path)
        except tlsc.TLSCError as error:
            return f"{type(error).__name__} {digest(str(error))}"
        graph = onnx.load(str(path)).graph
    return f"{len(graph.node)} nodes {digest(' '.join(node.op_type for node in graph.node))}"


def photographs() -> list[Tensor]:
    """Two smooth random images (1, 3, 160, 200)."""
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(2, 3, 20, 25, generator=generator, dtype=torch.float64)
    large = nn.functional.interpolate(small, (160, 200), mode="bicubic").clamp(0, 1)
    return [image[None] for image in large]


def digest(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits of SHA-256."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()[:16]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fingerprint", description=inspect.cleandoc(__doc__))
    parser.add_argument("file", type=Path)
    parser.add_argument("compare", type=Path, nargs="?", help="a fingerprint written before")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = io.StringIO()
    for what, found in lines():
        print(f"{what}: {found}", file=text)
        print(f"{what}: {found}", file=sys.stderr, flush=True)
    given.file.write_text(text.getvalue(), encoding="utf-8")
    if given.compare is not None:
        before, after = (set(Path(p).read_text(encoding="utf-8").splitlines()) for p in (given.compare, given.file))
        for line in sorted(before ^ after):
            print("-" if line in before else "+", line)
        sys.exit(before != after)


if __name__ == "__main__":
    main(sys.argv[1:])
