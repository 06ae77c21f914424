"""Export to ONNX at any image size, verified before anything is said to have succeeded."""

from __future__ import annotations

import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._arguments import as_pair, as_positive_int, shown
from .._files import replacing
from .._sources.passes import refuse_passes
from .._statistics import onnx_functions as _onnx
from .._surgery import probe as _probe
from ..errors import ArgumentTypeError, ArgumentValueError, ExportError, needing

__all__ = ["Export", "export"]

# Of the output's range.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 1e-2
_SMALL = (37, 50)  # the size that is traced; any would do
_NEWER_OPSET = 18  # the first that PyTorch's newer exporter writes
_OLDEST_OPSET = 13  # the first with all that windows need


@dataclass(frozen=True)
class Export:
    """What :func:`export` wrote, and how it compared with PyTorch.

    Attributes:
        path: the file.
        opset: of ONNX's standard operators.
        inputs, outputs: their names, in order.
        operators: how often each operator occurs.
        errors: for each verified (batch, height, width), the greatest difference as a share of the output's range.
        metadata: what stands in the file.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    errors: Mapping[tuple[int, int, int], float]
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        from tabulate import tabulate

        rows = [(f"{n}×{h}×{w}", f"{error:.1e}") for (n, h, w), error in self.errors.items()]
        size = self.path.stat().st_size / 1e6
        head = f"{self.path}: {size:.1f} MB, opset {self.opset}, {sum(self.operators.values())} operators"
        table: str = tabulate(rows, headers=["batch×height×width", "difference / range"], tablefmt="simple")
        return f"{head}\n\n{table}"


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example_input: Any = None,
    opset: int | None = None,
    multiple: int | tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int, int]] | None = None,
    cumsum: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Export:
    """Write a model, converted or not, to ONNX with dynamic batch, height and width.

    In the graph of a converted model the window is the expression ``min(window, size)``. So the file is right
    for images smaller than the window, equal, larger, odd and not square. ONNX Runtime then runs the file at
    several sizes, and the results are compared with PyTorch's. The file is put in place only if they agree to
    1e-4 of the output's range (1e-2 in float16).

    Args:
        model: a module that takes images; it is exported in evaluation mode, on its own device, converted or
            not. If the network has a descriptor (``model.tlsc``, from :func:`tlsc.adapters.load`), only the
            entry that is the result becomes an output; otherwise every returned tensor does.
        path: file to write, replaced if it exists.
        example_input: the call arguments, as for :func:`tlsc.convert`: a tensor, a tuple, or a function
            (height, width) -> either. Tensors (N, C, H, W) are dynamic in N, H and W, tensors (N,) in N.
        opset: of ONNX's standard operators, 13 at least; by default what PyTorch's exporter prefers. Below 18 its
            older exporter writes the file.
        multiple: for a network whose sides must be multiples of a number; only such sizes are traced and
            verified.
        sizes: (batch, height, width) to verify; by default smaller than the window, equal, odd, larger, not square
            and a batch of two.
        cumsum: False refuses a graph that contains a CumSum, which some runtimes lack. Converting never adds
            one.
        metadata: further entries for the file.

    Returns:
        An :class:`Export`, which prints as a table.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument cannot be used.
        ExportError: the model cannot be exported, or ONNX Runtime disagrees; no file is left behind.
        OSError: ``path`` cannot be written to.
        MissingPackageError: ONNX is not installed: ``pip install 'tlsc[onnx]'``.

    Example:
        >>> import tempfile, tlsc
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export(tlsc.convert(model, 32), Path(folder, "model.onnx"), sizes=[(1, 20, 70)])
        >>> max(made.errors.values()) < 1e-4, "CumSum" in made.operators
        (True, False)
    """
    path = _checked_path(path)
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_passes(model)
    if opset is not None:
        opset = as_positive_int(opset, "opset")
        if opset < _OLDEST_OPSET:
            raise ArgumentValueError(f"opset must be at least {_OLDEST_OPSET}, got {opset}: or leave it out")
    describing = getattr(model, "tlsc", None)
    step = _step(multiple, describing)
    base_size, stride = _conversion(model)
    if sizes is None:
        sizes = _default_sizes(base_size or (64, 64), step)
    _check_sizes(sizes, step)
    facts = {
        "network": _name(model, describing),
        **({"base_size": f"{base_size[0]}x{base_size[1]}", "stride": str(stride)} if base_size else {}),
        "scale": str(_scale(describing)),
        "padding_multiple": f"{step[0]}x{step[1]}",
        **_versions(),
        **(metadata or {}),
    }
    with needing("onnx", "exporting"):  # before the work rather than after it
        import onnx  # noqa: F401
        import onnx_ir
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with replacing(path) as new, _still(model):
        made = _Exporter(model, example_input, step, describing)
        written_model = made.run(opset)
        written = int(written_model.opset_imports[""])
        if opset not in (None, written):
            raise ExportError(f"PyTorch's exporter wrote opset {written}, not {opset}: leave the choice to it")
        written_model.metadata_props.update({f"tlsc.{key}": str(value) for key, value in facts.items()})
        operators = _operators(written_model)
        if not cumsum and "CumSum" in operators:
            raise ExportError(
                f"{facts['network']}: its graph holds {operators['CumSum']} CumSum of the network's own, which "
                "cumsum=False (--no-cumsum) refuses"
            )
        onnx_ir.save(written_model, new)
        errors = made.verify(new, sizes)
    return Export(
        path,
        written,
        tuple(made.names),
        tuple(made.outputs),
        operators,
        errors,
        facts,
    )


class _Exporter:
    """One model, its call arguments at any size, and what they are called."""

    def __init__(self, model: nn.Module, example_input: Any, step: tuple[int, int], describing: Any) -> None:
        weights = [*model.parameters(), *model.buffers()]
        if isinstance(model, torch.jit.ScriptModule):
            raise ExportError(
                "a traced or scripted model holds no forward that could be exported: export the converted model "
                "that it was made from"
            )
        if any(tensor.is_meta for tensor in weights) or torch.get_default_device().type == "meta":
            raise ExportError(
                "on the meta device there are no values to export and to compare: load the weights, and call "
                "outside of torch.device('meta')"
            )
        if any(tensor.dtype == torch.bfloat16 for tensor in weights):
            raise ExportError("a model in bfloat16 cannot be verified, as NumPy has no such type: use float32")
        if sum(tensor.nbytes for tensor in weights) >= 2**31 - 2**20:
            raise ExportError("the weights are 2 GB or more, which one ONNX file does not hold")
        self.model = _Result(model, describing)
        traced = [max(1, round(n / s)) * s for n, s in zip(_SMALL, step, strict=True)]
        self.size = traced[0], traced[1]
        self.args = self._arguments(example_input)
        self.names: list[str] = []
        self.outputs: list[str] = []

    def _arguments(self, example_input: Any) -> Any:
        """A function (height, width) -> arguments that the model takes."""
        first: Exception | None = None
        for inputs in _probe.inputs_of(self.model.network, example_input, self.size):
            try:
                args = inputs(*self.size)
                if isinstance(args, dict):
                    raise ExportError(
                        "an ONNX file takes its inputs by position: put a module around the model that calls it by "
                        f"keywords ({', '.join(args)}), and export that"
                    )
                with torch.no_grad():
                    self.model(*args)
                return inputs
            except ExportError:
                raise
            except Exception as error:
                first = first or error
        assert first is not None
        raise _probe.failure(first, self.size, example_input is not None) from first

    def at(self, batch: int, height: int, width: int) -> tuple[Any, ...]:
        """Arguments of that size, images with values in [0, 1]."""
        generator = torch.Generator().manual_seed(batch * 10**8 + height * 10**4 + width)
        made = []
        for value in self.args(height, width):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (1, 4):
                shape = (batch, *value.shape[1:])
                value = torch.rand(shape, generator=generator).to(value) * (0.2 if value.dim() == 1 else 1.0)
            made.append(value)
        return tuple(made)

    def run(self, opset: int | None) -> Any:
        args = self.at(2, *self.size)
        dynamic = torch.export.Dim.DYNAMIC
        shapes: list[Any] = []
        called = dict(enumerate(inspect.signature(self.model.network.forward).parameters))
        for index, value in enumerate(args):
            axes = {4: (0, 2, 3), 1: (0,)}.get(value.dim(), ()) if isinstance(value, Tensor) else ()
            shapes.append(dict.fromkeys(axes, dynamic) or None)
            if isinstance(value, Tensor):
                self.names.append("image" if index == 0 else called.get(index, f"input_{index}"))
        with torch.no_grad():
            results = self.model(*args)
        count = 1 if isinstance(results, Tensor) else len(results)
        self.outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
        older = opset is not None and opset < _NEWER_OPSET
        try:
            with _quiet():
                return self._traced(args, shapes, opset) if older else self._exported(args, shapes, opset)
        except Exception as error:
            raise ExportError(
                f"{type(self.model.network).__name__} cannot be exported: {_reason(error)}"
                + (f"; leave opset {opset} out: {_NEWER_OPSET} and later go another way" if older else "")
            ) from error

    def _exported(self, args: tuple[Any, ...], shapes: list[Any], opset: int | None) -> Any:
        """The ONNX model, by PyTorch's exporter of graphs."""
        with _onnx.collecting() as functions:
            program = torch.onnx.export(
                self.model,
                args,
                dynamo=True,
                dynamic_shapes=(tuple(shapes),),
                input_names=self.names,
                output_names=self.outputs,
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            functions.put_into(program.model, int(program.model.opset_imports[""]))
            return program.model

    def _traced(self, args: tuple[Any, ...], shapes: list[Any], opset: int | None) -> Any:
        """The same by the older exporter, which traces and writes older operators."""
        import onnx
        import onnx_ir

        tensors = [axes for value, axes in zip(args, shapes, strict=True) if isinstance(value, Tensor)]
        names = ("batch", *(f"size_{axis}" for axis in range(1, 4)))
        free = {
            name: {axis: names[0] if axis == 0 else f"{name}_{names[axis]}" for axis in axes}
            for name, axes in zip(self.names, tensors, strict=True)
            if axes
        }
        with torch.no_grad():
            results = _flat(self.model(*args))
        for name, result in zip(self.outputs, results, strict=True):
            axes = {4: (0, 2, 3), 1: (0,)}.get(result.dim(), ())
            free[name] = {axis: names[0] if axis == 0 else f"{name}_{names[axis]}" for axis in axes}
        written = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was traced is compared at several sizes
            torch.onnx.export(
                self.model,
                args,
                cast(Any, written),
                dynamo=False,
                dynamic_axes=free,
                input_names=self.names,
                output_names=self.outputs,
                opset_version=opset,
                verbose=False,
            )
        return onnx_ir.from_proto(onnx.load_model_from_string(written.getvalue()))

    def verify(self, path: Path, sizes: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int, int], float]:
        import onnxruntime

        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load what was exported: {_reason(error)}") from error
        errors = {}
        for batch, height, width in sizes:
            args = self.at(batch, height, width)
            with torch.no_grad():
                expected = self.model(*args)
            feeds = [value.cpu().numpy() for value in args if isinstance(value, Tensor)]
            where = f"at {batch}×{height}×{width} (batch, height, width)"
            try:
                got = session.run(None, dict(zip(self.names, feeds, strict=True)))
            except Exception as error:
                raise ExportError(f"ONNX Runtime fails {where}: {_reason(error)}") from error
            worst = 0.0
            for ours, theirs in zip(_flat(expected), got, strict=True):
                worst = max(worst, _difference(ours, torch.from_numpy(theirs)))
            allowed = _TOLERANCE_HALF if any(out.dtype == torch.float16 for out in _flat(expected)) else _TOLERANCE
            if not worst <= allowed:
                raise ExportError(
                    f"what was exported differs from PyTorch {where} by {worst:.1e} of the output's range, "
                    f"more than {allowed:g}"
                )
            errors[batch, height, width] = worst
        return errors


class _Result(nn.Module):
    """A network, of whose stages only the result is returned where that is known."""

    def __init__(self, network: nn.Module, describing: Any) -> None:
        super().__init__()
        self.network = network
        self.training = False
        self.call = getattr(describing, "call", None)
        self.result = getattr(describing, "output", None)

    def forward(self, *args: Any) -> Any:
        out = self.network(*args) if self.call is None else self.call(self.network, *args)
        if isinstance(out, Tensor):
            return out
        return out[self.result] if self.result is not None else _flat(out)


def _flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Mapping):
        out = out.values()
    if isinstance(out, Iterator) or not hasattr(out, "__iter__"):
        raise ExportError(f"the model returns {type(out).__name__}, not tensors")
    return [tensor for part in out for tensor in _flat(part)]


def _difference(ours: Tensor, theirs: Tensor) -> float:
    ours = ours.detach().cpu().double()
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.numel():
        return 0.0
    span = float(ours.max() - ours.min())
    return float((ours - theirs.double()).abs().max()) / max(span, 1e-6)


def _checked_path(path: str | Path) -> Path:
    if not isinstance(path, (str, Path)):
        raise ArgumentTypeError(f"path must be a str or a Path, got {type(path).__name__}")
    path = Path(path)
    if path.suffix != ".onnx":
        raise ArgumentValueError(f"path must end in .onnx, got {str(path)!r}")
    if path.is_dir():
        raise ArgumentValueError(f"{path} is a folder")
    if not path.parent.is_dir():
        raise ArgumentValueError(f"there is no folder {path.parent}: make it first")
    return path


def _check_sizes(sizes: Sequence[tuple[int, int, int]], step: tuple[int, int]) -> None:
    for size in sizes:
        if len(size) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
            raise ArgumentValueError(f"sizes must be (batch, height, width), each at least 1, got {shown(size)}")
        if size[1] % step[0] or size[2] % step[1]:
            raise ArgumentValueError(f"sizes must be multiples of {step[0]}×{step[1]}, got {size[1]}×{size[2]}")


def _default_sizes(base_size: tuple[int, int], step: tuple[int, int]) -> list[tuple[int, int, int]]:
    height, width = base_size

    def near(*sides: float) -> tuple[int, int]:
        rows, columns = (max(1, round(n / s)) * s for n, s in zip(sides, step, strict=True))
        return rows, columns

    return [
        (1, *near(height / 2, width / 2)),
        (1, *near(height, width)),
        (1, *near(height + 13, width + 8)),
        (1, *near(height * 1.5 + 1, width * 1.5 + 1)),
        (1, *near(height * 0.75, width * 1.75)),
        (2, *near(height + 32, width * 0.5 + 3)),
    ]


def _step(multiple: int | tuple[int, int] | None, describing: Any) -> tuple[int, int]:
    """Of which numbers the sides must be multiples; a network that pads by itself takes any."""
    if multiple is not None:
        return as_pair(multiple, "multiple")
    padding = getattr(describing, "padding", None)
    if padding is None or padding.inside:
        return 1, 1
    return padding.multiple, padding.multiple


def _conversion(model: nn.Module) -> tuple[tuple[int, int] | None, int]:
    for part in model.modules():
        made_for = part.__dict__.get("_tlsc_made_for")
        if made_for is not None:
            return cast("tuple[tuple[int, int], int]", made_for)
    return None, 1


def _name(model: nn.Module, describing: Any) -> str:
    return str(getattr(describing, "architecture", None) or type(model).__name__)


def _scale(describing: Any) -> int:
    return int(getattr(describing, "scale", 1) or 1)


def _versions() -> dict[str, str]:
    out = {}
    for package in ("tlsc", "torch", "onnx", "onnxscript", "onnxruntime"):
        try:
            out[f"version_{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return out


def _operators(model: Any) -> dict[str, int]:
    """How often each operator occurs, those inside functions and branches included."""
    counts: dict[str, int] = {}
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph.all_nodes():
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def _reason(error: BaseException) -> str:
    """The first line that says something, of the error that was at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No message of the exporter's that its user can do nothing about; warnings of the model's own stay."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        # Where it fails it prints the graph.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logging.disable(before)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each part as it was."""
    training = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, flag in training:
            part.training = flag
