"""A converted network beside its original in every mode that a user may put it into, with no window involved.

On an input no larger than the window the two have to agree (I1), whatever is done to both after converting.
``python -m benchmarks modes`` writes ``docs/modes.md`` from this; ``test_modes.py`` runs it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import tlsc
from tests.zoo import ENTRIES, Entry
from tlsc.errors import first_line

__all__ = ["MODES", "OURS", "SAME", "compare", "entries"]

Run = Callable[[nn.Module, tuple[Tensor, ...]], list[Tensor]]

SAME = "="
NOT_POSSIBLE = "–"
"""The original itself raises in that mode."""

_ADAPTERS = "tlsc.adapters"
OURS = [
    Entry("demo se", f"{_ADAPTERS}.load_demo_network", {"name": "se"}, base=(64, 64)),
    Entry("demo hin", f"{_ADAPTERS}.load_demo_network", {"name": "hin"}, base=(64, 64)),
    Entry("HINet", f"{_ADAPTERS}.HINet", {"wf": 4}, base=(64, 64)),
    Entry("MPRNet of ours", f"{_ADAPTERS}.MPRNet", {
        "n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}, base=(64, 64)),
    Entry("NLMNet", f"{_ADAPTERS}.NLMNet", base=(32, 32)),
]  # fmt: skip


def entries(largest: int = 64) -> Iterator[Entry]:
    """Networks with windows up to that size, ours first; which of them have sites is found by planning."""
    yield from OURS
    yield from (entry for entry in ENTRIES if max(entry.base) <= largest)


def _outputs(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)  # some draw noise or drop
    given = tree_map_only(Tensor, lambda x: x.detach().clone(), args)
    return [y.detach() for y in tree_leaves(model(*given)) if isinstance(y, Tensor) and y.is_floating_point()]


def _buffers(model: nn.Module) -> list[Tensor]:
    return [b.detach().clone() for _, b in sorted(model.named_buffers()) if b.is_floating_point()]


def _evaluated(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _outputs(model.eval(), args)


def _trained(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Deep supervision, dropout, running statistics; and afterwards in evaluation mode again."""
    with torch.no_grad():
        found = _outputs(model.train(), args)
        return [*found, *_buffers(model), *_outputs(model.eval(), args)]


def _as_type(dtype: torch.dtype) -> Run:
    def run(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
        return _evaluated(model.to(dtype), tuple(x.to(dtype) for x in args))

    return run


def _autocast(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Under CPU autocast, and after it again in float32."""
    model, args = model.float(), tuple(x.float() for x in args)
    with torch.autocast("cpu", torch.bfloat16):
        found = _evaluated(model, args)
    return [*found, *_evaluated(model, args)]


def _gradients(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    given = tuple(x.clone().requires_grad_() for x in args)
    results = [y for y in tree_leaves(model(*given)) if isinstance(y, Tensor) and y.requires_grad]
    total = sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in results)
    assert isinstance(total, Tensor)
    wanted = [*given, *(p for _, p in sorted(model.named_parameters()) if p.requires_grad)]
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [g if g is not None else torch.zeros(()) for g in found]


def _attributes(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Every number that a module holds is set to another; dropout and slopes stay what they may be."""
    before = _evaluated(model, args)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if type(value) is float and not name.startswith("_") and 0 < abs(value) < 1:
                setattr(module, name, value * 0.75)
    return [*before, *_evaluated(model, args)]


def _in_place(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    before = _evaluated(model, args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(0.01)
    return [*before, *_evaluated(model, args)]


def _inference(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.inference_mode():
        return [y.clone() for y in _outputs(model.eval(), args)]


def _copied(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """A deep copy with weights from a state_dict that went through changes."""
    state = {
        name: value * 0.9 if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return [*_evaluated(other, args), *_evaluated(model, args)]


def _smaller(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Half as high, then as before."""
    cut = tuple(x[..., : x.shape[-2] // 2, :] if x.dim() == 4 else x for x in args)
    return [*_evaluated(model, cut), *_evaluated(model, args)]


def _two(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Two images at once."""
    return _evaluated(model, tuple(torch.cat((x, x.flip(-1))) for x in args))


def _channels_last(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    model = model.to(memory_format=torch.channels_last)
    return _evaluated(model, tuple(x.to(memory_format=torch.channels_last) for x in args))


MODES: dict[str, Run] = {
    "eval": _evaluated,
    "train, then eval": _trained,
    "float16": _as_type(torch.float16),
    "bfloat16": _as_type(torch.bfloat16),
    "autocast, then without": _autocast,
    "gradients": _gradients,
    "numbers changed": _attributes,
    "weights changed": _in_place,
    "inference_mode": _inference,
    "copied, loaded": _copied,
    "half the height": _smaller,
    "two images": _two,
    "channels_last": _channels_last,
}


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest change relative to the largest value of each tensor; NaN beside NaN is none."""
    if [x.shape for x in one] != [y.shape for y in other] or [x.dtype for x in one] != [y.dtype for y in other]:
        return float("inf")
    worst = 0.0
    for x, y in zip(one, other, strict=True):
        if x.numel() and not torch.equal(x.isnan(), y.isnan()):
            return float("inf")
        a, b = x.double().nan_to_num(), y.double().nan_to_num()
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


def compare(entry: Entry, names: list[str] | None = None) -> dict[str, str] | None:
    """For each mode "=" where converted and original agree to the last bit, else by how much they differ.

    None: the network has no site. "–": the original raises in that mode; "raises …": only the converted one does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = entry.randomised()
        torch.manual_seed(1)
        args = entry.images(*entry.base)
        if not tlsc.plan(original, entry.base, example_input=entry.images).converted:
            return None
        found = {}
        for name in names or MODES:
            local = copy.deepcopy(original)
            tlsc.convert(local, entry.base, example_input=entry.images, check=False)
            found[name] = _compared(MODES[name], copy.deepcopy(original), local, args)
    return found


def _compared(run: Run, original: nn.Module, local: nn.Module, args: tuple[Tensor, ...]) -> str:
    try:
        expected = run(original, args)
    except Exception:
        return NOT_POSSIBLE
    try:
        distance = _distance(expected, run(local, args))
    except Exception as error:
        return f"raises {first_line(error)}"
    return SAME if distance == 0 else f"{distance:.0e}"
