"""Functions made of graphs, whose source goes into pickles."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import torch
from torch import fx

__all__ = ["Function", "function_of"]


class Function:
    """A function with its source. ``names``: the modules, by name, and objects that it refers to."""

    def __init__(self, source: str, names: dict[str, tuple[str, Any]]) -> None:
        self.source, self.names = source, names
        scope = {
            name: importlib.import_module(reference) if kind == "module" else reference
            for name, (kind, reference) in names.items()
        }
        exec(source, scope)
        self.call: Any = scope["forward"]

    def __reduce__(self) -> Any:
        return Function, (self.source, self.names)

    def __deepcopy__(self, memo: Any) -> Function:
        return self


def function_of(graph: fx.Graph) -> Function:
    """A function of a module and the leaves of its arguments, that does what a graph says."""
    code = graph.python_code("owner")
    names = {
        name: ("module", value.__name__) if isinstance(value, ModuleType) else ("object", value)
        for name, value in code.globals.items()
    }
    names["torch"] = "module", "torch"
    regions = {node.name: node.meta["region"] for node in graph.nodes if node.meta.get("region") is not None}
    # The graph's first input is the module itself.
    source = code.src.replace("def forward(self, owner", "def forward(owner", 1)
    # Nor is it let go of after the last operation that takes it as an argument: attributes are read from it.
    source = re.sub(r"\bowner = (?=(\w+ = )*None\b)", "", source)
    return Function(_with_blocks(source, regions), names)


def _with_blocks(source: str, regions: dict[str, Any]) -> str:
    """The source of a function with the lines of each region in a ``with`` statement."""
    if not regions:
        return source
    out: list[str] = []
    inside: Any = None
    for line in source.splitlines():
        found = re.match(r"    (\w+)\s*(:[^=]*)?=", line)
        region = regions.get(found[1]) if found else None
        if region != inside and region is not None:
            out.append(f"    with {_block(region)}:")
        inside = region
        out.append(f"    {line}" if region is not None else line)
    return "\n".join(out) + "\n"


def _block(region: Any) -> str:
    grad, inference, cast = region
    parts = [] if inference is None else [f"torch.inference_mode({inference})"]
    parts += [] if grad is None else [f"torch.set_grad_enabled({grad})"]
    parts += [f"torch.autocast({device!r}, dtype={_dtype(dtype)}, enabled={on})" for device, on, dtype in cast]
    return ", ".join(parts)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype)
