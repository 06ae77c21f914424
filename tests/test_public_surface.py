"""The public surface, frozen: names, signatures, docstrings. A change here is a change for every user."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import tlsc
import tlsc.attention
import tlsc.modules

NAMES = [
    "BackendError",
    "Export",
    "ExportError",
    "Influence",
    "LocalAvgPool2d",
    "LocalGroupNorm",
    "LocalInstanceNorm2d",
    "MissingPackageError",
    "NoSiteError",
    "Plan",
    "Prediction",
    "ProbeError",
    "Site",
    "TLSCError",
    "TLSCWarning",
    "backend",
    "backends",
    "calibrate",
    "convert",
    "converted",
    "errors",
    "export",
    "functional",
    "influence",
    "keep_memory",
    "plan",
    "predict",
    "register",
    "revert",
]
FUNCTIONAL = ["local_group_norm", "local_instance_norm", "local_mean", "local_var_mean"]
ATTENTION = [
    "LocalNonLocalBlock",
    "LocalTransposedAttention",
    "local_non_local",
    "local_transposed_attention",
    "overlap",
    "overlapping_transposed_attention",
    "recognise",
    "transposed_attention",
]
MODULES = ["LocalAvgPool2d", "LocalGroupNorm", "LocalInstanceNorm2d"]
ERRORS = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackendError",
    "ExportError",
    "MissingPackageError",
    "NoSiteError",
    "ProbeError",
    "TLSCError",
    "TLSCWarning",
]

_OPTIONS = (
    "stride: 'int' = 1, example_input: 'Any' = None, include: 'Selection | None' = None, "
    "exclude: 'Selection | None' = None"
)
_CALIBRATE = (
    "calibrate: 'Tensor | Sequence[Tensor] | Plan | None' = None, crop: 'int | tuple[int, int] | None' = None"
)
_CHECK = "check: 'bool | None' = None, source: 'str | Source' = 'window'"
_BASE = "base_size: 'int | tuple[int, int]'"
_BASE_OR_PLAN = "base_size: 'int | tuple[int, int] | None' = None, *, plan: 'Plan | None' = None"
_MAP = "x: 'Tensor', window: 'int | tuple[int, int]'"
_QKV = "q: 'Tensor', k: 'Tensor', v: 'Tensor'"
_HEADS = f"{_QKV}, temperature: 'Tensor | float'"
_STEP = "stride: 'int | tuple[int, int] | None' = None"
_AFFINE = "weight: 'Tensor | None' = None, bias: 'Tensor | None' = None, eps: 'float' = 1e-05"

SIGNATURES = {
    "backend": "(name: 'str') -> 'Iterator[None]'",
    "backends": "() -> 'Statuses'",
    "calibrate": "(model: 'nn.Module', images: 'Tensor | Sequence[Tensor] | Plan', "
    "crop: 'int | tuple[int, int] | None' = None, *, crops_per_image: 'int' = 32, seed: 'int' = 0, "
    "call: 'Callable[[Tensor], Any] | None' = None) -> 'Plan'",
    "convert": f"(model: 'Model', {_BASE_OR_PLAN}, {_OPTIONS}, strict: 'bool' = True, {_CALIBRATE}, {_CHECK}) "
    "-> 'Model'",
    "converted": f"(model: 'Model', {_BASE_OR_PLAN}, {_OPTIONS}, strict: 'bool' = True, {_CALIBRATE}, {_CHECK}) "
    "-> 'Iterator[Model]'",
    "plan": f"(model: 'nn.Module | Described', {_BASE[:-1]} | None' = None, *, {_OPTIONS}, "
    "source: 'str | Source' = 'window', crop: 'int | tuple[int, int] | None' = None) -> 'Plan'",
    "predict": "(model: 'nn.Module', images: 'Tensor | Sequence[Tensor]', "
    "base_size: 'Window | Iterable[Window] | None' = None, *, crop: 'Window', psnr: 'float | None' = None, "
    "calibrate: 'bool' = False, crops_per_image: 'int' = 16, seed: 'int' = 0, "
    "call: 'Callable[[Tensor], Any] | None' = None) -> 'Prediction'",
    "export": "(model: 'nn.Module', path: 'str | Path', *, example_input: 'Any' = None, "
    "opset: 'int | None' = None, multiple: 'int | tuple[int, int] | None' = None, "
    "sizes: 'Sequence[tuple[int, int, int]] | None' = None, "
    "cumsum: 'bool' = True, metadata: 'Mapping[str, str] | None' = None) -> 'Export'",
    "revert": "(model: 'Model') -> 'Model'",
    "influence": "(model: 'nn.Module', size: 'int | tuple[int, int]', *, example_input: 'Any' = None, "
    "radius: 'int | tuple[int, int] | None' = None, output: 'int | Callable[[Any], Tensor] | None' = None, "
    "samples: 'int' = 2, seed: 'int' = 0, exact: 'bool' = True, "
    "progress: 'Callable[[int], None] | None' = None) -> 'Influence'",
    "keep_memory": "() -> 'bool'",
    "register": "(module_type: 'type[nn.Module]', factory: 'Callable[..., nn.Module]') -> 'Registration'",
    "functional.local_mean": f"({_MAP}, stride: 'int' = 1) -> 'Tensor'",
    "functional.local_var_mean": f"({_MAP}) -> 'tuple[Tensor, Tensor]'",
    "functional.local_instance_norm": f"({_MAP}, {_AFFINE}) -> 'Tensor'",
    "functional.local_group_norm": f"({_MAP}, num_groups: 'int', {_AFFINE}) -> 'Tensor'",
    "attention.transposed_attention": f"({_HEADS}) -> 'Tensor'",
    "attention.local_transposed_attention": f"({_HEADS}, {_MAP[13:]}, {_STEP}) -> 'Tensor'",
    "attention.overlapping_transposed_attention": f"({_HEADS}, {_MAP[13:]}) -> 'Tensor'",
    "attention.local_non_local": (
        f"({_QKV}, {_MAP[13:]}, scale: 'float' = 1.0, weighting: 'Weighting' = 'softmax') -> 'Tensor'"
    ),
    "attention.overlap": "(module: 'nn.Module', window: 'tuple[int, int]') -> 'LocalTransposedAttention'",
    "attention.recognise": "(module: 'nn.Module') -> 'tuple[str, Build] | None'",
    "attention.LocalTransposedAttention.from_module": (
        f"(module: 'nn.Module', {_MAP[13:]}, *, form: 'Form' = 'sliding', {_STEP}) -> 'LocalTransposedAttention'"
    ),
    "attention.LocalNonLocalBlock.from_module": (f"(module: 'nn.Module', {_MAP[13:]}) -> 'LocalNonLocalBlock'"),
    "LocalAvgPool2d": "(window: 'int | tuple[int, int]', stride: 'int' = 1) -> 'None'",
    "LocalAvgPool2d.from_module": (
        "(pool: 'nn.AdaptiveAvgPool2d', window: 'int | tuple[int, int]', stride: 'int' = 1) -> 'LocalAvgPool2d'"
    ),
    "LocalInstanceNorm2d": (
        "(num_features: 'int', window: 'int | tuple[int, int]', *, eps: 'float' = 1e-05, affine: 'bool' = False)"
        " -> 'None'"
    ),
    "LocalInstanceNorm2d.from_module": (
        "(norm: 'nn.InstanceNorm2d', window: 'int | tuple[int, int]') -> 'LocalInstanceNorm2d'"
    ),
    "LocalGroupNorm": (
        "(num_groups: 'int', num_channels: 'int', window: 'int | tuple[int, int]', *, eps: 'float' = 1e-05, "
        "affine: 'bool' = True) -> 'None'"
    ),
    "LocalGroupNorm.from_module": "(norm: 'nn.GroupNorm', window: 'int | tuple[int, int]') -> 'LocalGroupNorm'",
}

FIELDS = {
    "Plan": {
        "base_size": "tuple[int, int]",
        "stride": "int",
        "sites": "tuple[Site, ...]",
        "calibration": "Calibration | None",
        "source": "str",
    },
    "Site": {
        "path": "str",
        "operation": "str",
        "feature_size": "tuple[int, int] | None",
        "window": "tuple[int, int] | None",
        "action": "Action",
        "reason": "str",
        "aliases": "tuple[str, ...]",
        "owner": "str | None",
        "fit": "Fit | None",
        "base_size": "tuple[int, int] | None",
    },
}

CALLABLES = sorted(SIGNATURES)
CLASSES = ["Plan", "Site", *(name for name in CALLABLES if name[0].isupper() and "." not in name)]


def _get(name: str) -> Any:
    found: Any = tlsc
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_names() -> None:
    assert tlsc.__all__ == NAMES
    assert tlsc.functional.__all__ == FUNCTIONAL
    assert tlsc.errors.__all__ == ERRORS
    assert tlsc.attention.__all__ == ATTENTION
    assert tlsc.modules.__all__ == MODULES
    assert all(getattr(tlsc.modules, name) is getattr(tlsc, name) for name in MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_object_is_there_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(_get(name))


@pytest.mark.parametrize("name", CALLABLES)
def test_signatures(name: str) -> None:
    assert str(inspect.signature(_get(name))) == SIGNATURES[name]


def test_no_public_callable_is_forgotten() -> None:
    functions = [name for name in NAMES if inspect.isfunction(_get(name))]
    functions += [f"functional.{name}" for name in FUNCTIONAL]
    functions += [f"attention.{name}" for name in ATTENTION if inspect.isfunction(getattr(tlsc.attention, name))]
    assert set(functions) <= set(SIGNATURES)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields(name: str) -> None:
    assert {field.name: field.type for field in dataclasses.fields(_get(name))} == FIELDS[name]


@pytest.mark.parametrize("name", [name for name in CALLABLES if not name.endswith("from_module")] + ["Plan"])
def test_every_function_and_class_has_an_example(name: str) -> None:
    doc = inspect.getdoc(_get(name)) or ""
    assert "Example:" in doc
    assert ">>> " in doc


@pytest.mark.parametrize("name", [name for name in CALLABLES if inspect.isfunction(_get(name))])
def test_docstrings_name_every_argument_and_say_what_is_raised(name: str) -> None:
    doc = inspect.getdoc(_get(name)) or ""
    if not inspect.signature(_get(name)).parameters:
        return
    arguments, _, rest = doc.partition("Args:")[2].partition("\n\n")
    for argument in inspect.signature(_get(name)).parameters:
        assert argument in arguments, argument
    assert "Raises:" in rest


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_and_properties_have_docstrings(name: str) -> None:
    for attribute, value in vars(_get(name)).items():
        if attribute.startswith("_") or attribute in ("forward", "extra_repr"):
            continue
        if callable(value) or isinstance(value, (property, classmethod)):
            assert inspect.getdoc(getattr(_get(name), attribute)), attribute


def test_errors_can_be_caught_as_python_s_own_and_as_one() -> None:
    errors = tlsc.errors
    assert issubclass(errors.ArgumentValueError, (ValueError,))
    assert issubclass(errors.ArgumentTypeError, (TypeError,))
    for name in ERRORS:
        expected = UserWarning if name == "TLSCWarning" else errors.TLSCError
        assert issubclass(getattr(errors, name), expected)
    assert tlsc.TLSCError is errors.TLSCError
    assert tlsc.ProbeError is errors.ProbeError
    assert tlsc.NoSiteError is errors.NoSiteError
    assert tlsc.BackendError is errors.BackendError


def test_version() -> None:
    """One version, wherever it stands."""
    from importlib.metadata import version

    root = Path(__file__).parents[1]
    released = re.search(
        r"^## (\d[\d.]*) – \d{4}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    cited = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert released is not None
    assert cited is not None
    assert tlsc.__version__ == version("tlsc") == released[1] == cited[1]


def test_modules_are_found_under_their_names_of_0_1() -> None:
    import tlsc.eval

    folder = Path(str(tlsc.eval.__file__)).parent / "former"
    found = {path.stem: importlib.import_module(f"tlsc.eval.{path.stem}") for path in folder.glob("[a-z]*.py")}
    assert len(found) >= 20
    for name in ("metrics", "records", "synthesis", "verdict"):
        assert found[name].__name__ != f"tlsc.eval.{name}"  # the module of today itself, not a second one
