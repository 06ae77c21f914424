"""Each network, converted, outside of eager PyTorch: ONNX Runtime, OpenVINO, ``torch.export``, ``torch.compile``.

``uv run python -m benchmarks.deployment [NETWORK ...]``. Small settings, random weights, window 48, to compile 224.
Differences from the converted model in eager PyTorch, as shares of the output's range, the greatest of: six sizes
in ONNX Runtime (smaller than the window, equal, larger, odd, not square, a batch of two) and three of them in
OpenVINO, from one file; ten sizes for ``torch.export`` and ten for ``torch.compile``, with how often it compiled.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

import tlsc
from tlsc import attention
from tlsc.adapters import HINet, MPRNet, NLMNet, UNet

WINDOW = 48
SIZES = ((1, 30, 27), (1, 48, 48), (1, 81, 120), (1, 97, 41), (1, 25, 111), (2, 72, 65))
MORE = (*(size[1:] for size in SIZES), (64, 64), (128, 128), (50, 96), (131, 90))
# Above 20480 elements PyTorch keeps to one kind of convolution; below, it compiles again.
LARGE = ((200, 200), (231, 208), (256, 256), (208, 301), (240, 224), (203, 205), (256, 320), (300, 220), (224, 224))
LARGE = (*LARGE, (264, 216))


def _of_spandrel(module: str, name: str, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network: nn.Module = getattr(importlib.import_module(module), name)(**settings)
    return network


def _nafnet() -> nn.Module:
    settings = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
    return _of_spandrel("spandrel.architectures.NAFNet.__arch.NAFNet_arch", "NAFNet", **settings)


def _restormer() -> nn.Module:
    settings = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}
    module = "spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch"
    return _of_spandrel(module, "Restormer", **settings)


# With the number that sides are multiples of: NAFNet's own padding compares sizes, Restormer has none.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "se": (lambda: UNet(8, 3, squeeze_excitation=(0, 1, 2)), 1),
    "hin": (lambda: UNet(8, 3, half_norm=(2,), padding_mode="replicate"), 1),
    "hin-all": (lambda: UNet(8, 3, half_norm=(0, 1, 2)), 1),
    "nlm": (lambda: NLMNet(8, 5, 3), 1),
    "hinet": (lambda: HINet(wf=8, depth=3), 1),
    "nafnet": (_nafnet, 4),
    "restormer": (_restormer, 8),
    "restormer, overlapping": (_restormer, 8),
    "mprnet": (lambda: MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1), 1),
}


def converted(name: str, window: int, stride: int) -> nn.Module:
    """One with random weights, converted."""
    network = random_network(name)
    if not name.endswith("overlapping"):
        return tlsc.convert(network, window, stride=stride)
    kinds = {type(part) for part in network.modules() if attention.recognise(part) is not None}
    handles = [tlsc.register(kind, attention.overlap) for kind in kinds]
    try:
        return tlsc.convert(network, window)
    finally:
        for handle in handles:
            handle.remove()


def random_network(name: str) -> nn.Module:
    """A network with random weights that keep its values near 1."""
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(1.5 / parameter[0].numel()) ** 0.5)
        else:
            nn.init.normal_(parameter, 0.5, 0.1)
    if isinstance(network, NLMNet):
        nn.init.constant_(network.gate[-1].bias, 3.0)  # a strength at which it does not leave the image as it is
    return network


def _result(model: nn.Module, outputs: Any) -> Tensor:
    describing = getattr(model, "tlsc", None)
    out: Tensor = outputs if isinstance(outputs, Tensor) else outputs[describing.output]  # type: ignore[union-attr]
    return out


class _Differences:
    """The greatest difference from a model in eager PyTorch."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.model, self.step, self.worst = model, NETWORKS[name][1], 0.0

    def add(self, run: Callable[[Tensor], Any], batch: int, height: int, width: int) -> None:
        image = torch.rand(batch, 3, *(-(-n // self.step) * self.step for n in (height, width)))
        with torch.no_grad():
            expected = _result(self.model, self.model(image))
            got = run(image)
        got = torch.from_numpy(got) if isinstance(got, np.ndarray) else _result(self.model, got)
        self.worst = max(self.worst, float((got - expected).abs().max() / (expected.max() - expected.min())))


def onnx(name: str, stride: int) -> tuple[float, float, int]:
    """Differences in ONNX Runtime and OpenVINO, and how many operators the file holds."""
    import onnxruntime
    import openvino

    model = converted(name, WINDOW, stride)
    step = NETWORKS[name][1]
    first, second = _Differences(name, model), _Differences(name, model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        made = tlsc.export(model, path, multiple=step, cumsum=False, sizes=[(1, 6 * step, 7 * step)])
        session = onnxruntime.InferenceSession(str(path))
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(path), "CPU", exact)
        for index, size in enumerate(SIZES):
            first.add(lambda image: session.run(None, {"image": image.numpy()})[0], *size)
            if index in (0, 2, 5):
                second.add(lambda image: compiled([image.numpy()])[0], *size)
    return first.worst, second.worst, sum(made.operators.values())


def exported(name: str, stride: int) -> float:
    """Difference of ``torch.export``'s program."""
    model = converted(name, WINDOW, stride)
    step = NETWORKS[name][1]
    dynamic: Any = torch.export.Dim.DYNAMIC
    sides = [dynamic] * 2 if step == 1 else [step * torch.export.Dim(side) for side in ("rows", "columns")]
    shapes = ({0: dynamic, 2: sides[0], 3: sides[1]},)
    program = torch.export.export(model, (torch.rand(2, 3, 40, 56),), dynamic_shapes=shapes)
    module = program.module()
    found = _Differences(name, model)
    for size in MORE:
        found.add(module, 2, *size)
    return found.worst


def compiled(name: str, stride: int) -> tuple[float, int]:
    """Difference of the compiled model, and how often it was compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = converted(name, 224, stride)
    counter: Any = CompileCounterWithBackend("aot_eager")
    function = torch.compile(model, backend=counter, fullgraph=True)
    found = _Differences(name, model)
    for size in LARGE:
        found.add(function, 1, *size)
    return found.worst, counter.frame_count


def main(names: list[str]) -> None:
    """Print the table, a row as soon as it is known."""
    headers = ["network", "stride", "ONNX Runtime", "OpenVINO", "operators", "export", "compile", "compilations"]
    print(" | ".join(headers), flush=True)
    rows = []
    for name in names or NETWORKS:
        for stride in (1, 4):
            if stride > 1 and name.endswith("overlapping"):
                continue  # that form has no grid
            row = (name, stride, *onnx(name, stride), exported(name, stride), *compiled(name, stride))
            print(*row, flush=True)
            rows.append(row)
    print(tabulate(rows, headers=headers, floatfmt=".1e"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployment", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}; all if none")
    given = parser.parse_args().networks
    if unknown := set(given) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    main(given)
