"""Attention over all positions, local: naive loops, the published vectors, recognition, and what must survive."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import tlsc
from tlsc._statistics.transposed_attention import _Blocks, default_stride
from tlsc.attention import (
    LocalNonLocalBlock,
    LocalTransposedAttention,
    local_non_local,
    local_transposed_attention,
    overlap,
    overlapping_transposed_attention,
    recognise,
    transposed_attention,
)
from tlsc.errors import ArgumentTypeError, ArgumentValueError

from .oracles import assert_close, reference_at_every_position, reference_window

SIDES = st.integers(1, 9)
# What other packages warn of while they are imported is not ours.
IMPORTS = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------------------------------------ layers


class Attention(nn.Module):
    """Transposed attention as Restormer's equations (1) and (2) have it, under other repositories' names."""

    def __init__(self, dim: int = 6, heads: int = 2, conv: str = "qkv_dwconv") -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.linspace(0.5, 3, heads).reshape(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.conv = conv
        self.add_module(conv, nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim))
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        heads = len(self.temperature)
        q, k, v = (
            y.reshape(batch, heads, -1, height * width) for y in getattr(self, self.conv)(self.qkv(x)).chunk(3, 1)
        )
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        weights = self.weights((q @ k.transpose(-2, -1)) * self.temperature)
        return self.project_out((weights @ v).reshape(batch, -1, height, width))

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class Sigmoid(Attention):
    """Has the parts, does something else."""

    def weights(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()


class Linear(nn.Module):
    """As in DITN: one head, a linear layer over tokens."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:]).chunk(3, 1)
        q, k, v = (part.unsqueeze(1) for part in parts)
        return self.project_out(transposed_attention(q, k, v, self.temperature).squeeze(1))


class Cross(nn.Module):
    """As in HVI-CIDNet; swapped, as in CRAFT."""

    def __init__(self, dim: int = 6, heads: int = 2, swapped: bool = False) -> None:
        super().__init__()
        self.swapped = swapped
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), 2.0))
        self.q = nn.Conv2d(dim, dim, 1)
        self.q_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.kv_dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.project_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.swapped:
            x, y = y, x
        maps = [self.q_dwconv(self.q(x)), *self.kv_dwconv(self.kv(y)).chunk(2, 1)]
        q, k, v = (part.unflatten(1, (len(self.temperature), -1)) for part in maps)
        return self.project_out(transposed_attention(q, k, v, self.temperature).flatten(1, 2))


class NonLocal(nn.Module):
    """Equations (2), (4) to (6) of the non-local networks' paper; ``division``: by positions instead of softmax."""

    def __init__(self, division: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(4, 2, 1) for _ in range(3))
        out = nn.Conv2d(2, 4, 1)
        self.W = nn.Sequential(out, nn.BatchNorm2d(4)) if norm else out
        self.division = division

    def forward(self, x: Tensor) -> Tensor:
        g = self.g(x).flatten(2).transpose(1, 2)
        scores = self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2)
        weights = scores / scores.shape[-1] if self.division else scores.softmax(-1)
        mixed = (weights @ g).transpose(1, 2).reshape(x.shape[0], 2, *x.shape[2:])
        return self.W(mixed) + x


# ----------------------------------------------------------------------------- transposed attention: functions


@settings(max_examples=25, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(1, 2))
def test_sliding_equals_a_loop(size: Any, window: Any, stride: Any, batch: int) -> None:
    q, k, v = _maps(batch, 2, 2, *size)
    temperature = torch.tensor([0.5, 3.0], dtype=torch.float64)
    out = local_transposed_attention(q, k, v, temperature, window, stride)
    assert (out - _reference_sliding(q, k, v, temperature, window, stride)).abs().max() <= 1e-9


def test_stride_one_gives_each_position_its_own_window() -> None:
    q, k, v = _maps(2, 2, 3, 5, 7)
    window, temperature = (4, 3), torch.tensor([[[0.5]], [[3.0]]], dtype=torch.float64)

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        return transposed_attention(*crop.unflatten(1, (3, 2, 3)).unbind(1), temperature)[..., i, j].flatten(1)

    expected = reference_at_every_position(of_window, torch.stack((q, k, v), 1).flatten(1, 3), window)
    out = local_transposed_attention(q, k, v, temperature, window, 1)
    assert (out.flatten(1, 2) - expected).abs().max() <= 1e-9


@settings(max_examples=20, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
@example((9, 7), (4, 3))  # steps that are not whole
def test_overlap_equals_a_loop(size: Any, window: Any) -> None:
    q, k, v = _maps(2, 2, 2, *size)
    out = overlapping_transposed_attention(q, k, v, 2.0, window)
    assert (out - _reference_overlap(q, k, v, 2.0, window)).abs().max() <= 1e-9


@pytest.mark.parametrize("function", [local_transposed_attention, overlapping_transposed_attention])
def test_a_covering_window_is_the_global_layer(function: Any) -> None:
    q, k, v = _maps(2, 2, 3, 5, 7)
    whole = transposed_attention(q, k, v, 2.0)
    assert torch.equal(function(q, k, v, 2.0, (5, 9)), whole)
    axis = _Blocks.of(5, 5, 1)  # nothing to slide: the same by the other way
    assert axis.windows == [(0, 1)]
    assert axis.regions == [(0, 5)]


def testdefault_stride() -> None:
    assert default_stride((384, 192)) == (32, 16)
    assert default_stride((48, 100)) == (4, 10)
    assert default_stride((97, 1)) == (8, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("function", [local_transposed_attention, overlapping_transposed_attention])
def test_dtypes(function: Any, dtype: torch.dtype) -> None:
    """Also at values whose products are beyond float16."""
    q, k, v = (x.to(dtype) for x in _maps(1, 2, 3, 6, 7))
    q = q * 100
    out = function(q, k, v, 2.0, 4)
    expected = function(q.double(), k.double(), v.double(), 2.0, 4)
    if function is local_transposed_attention:
        assert_close(out, expected, dtype)
    else:  # as the original layer, in its dtype throughout
        assert out.dtype == dtype
        assert (out.double() - expected).abs().max() <= 16 * torch.finfo(dtype).eps


def test_zeros_and_their_gradient() -> None:
    q = torch.zeros(1, 1, 2, 5, 5, requires_grad=True)
    v = torch.ones(1, 1, 2, 5, 5)
    for function in (local_transposed_attention, overlapping_transposed_attention):
        out = function(q, q, v, 1.0, 3)
        assert torch.allclose(out, v)
        (grad,) = torch.autograd.grad(out.sum(), q)
        assert torch.isfinite(grad).all()


def test_nan_spoils_only_the_windows_that_contain_it() -> None:
    q, k, v = _maps(1, 1, 2, 3, 9)
    q[0, 0, 0, 1, 4] = float("nan")
    out = local_transposed_attention(q, k, v, 1.0, (3, 3), 1)
    assert torch.isfinite(out[..., :3]).all()
    assert torch.isfinite(out[..., 6:]).all()
    assert out[0, 0, 0, :, 3:6].isnan().all()
    assert torch.isfinite(out[0, 0, 1]).all()  # a row of weights for each channel of q


def test_gradients() -> None:
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    maps = [x.requires_grad_() for x in _maps(1, 1, 2, 3, 4)]
    for function in (local_transposed_attention, overlapping_transposed_attention):
        assert torch.autograd.gradcheck(lambda *a, f=function: f(*a, (2, 3)), (*maps, temperature))


def test_bad_arguments() -> None:
    q, k, v = _maps(1, 2, 3, 4, 4)
    for wrong in ((q[0], k, v), (q[..., :2], k, v), (q[..., :0], k[..., :0], v[..., :0])):
        with pytest.raises(ArgumentValueError):
            local_transposed_attention(*wrong, 1.0, 3)
    with pytest.raises(ArgumentValueError, match="temperature"):
        local_transposed_attention(q, k, v, torch.ones(3), 3)
    with pytest.raises(ArgumentTypeError, match="dtype"):
        local_transposed_attention(q, k.float(), v, 1.0, 3)
    with pytest.raises(ArgumentTypeError, match="temperature"):
        local_transposed_attention(q, k, v, "1", 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="stride"):
        local_transposed_attention(q, k, v, 1.0, 3, 0)
    with pytest.raises(ArgumentValueError, match="weighting"):
        local_non_local(q[0], k[0], v[0], 3, weighting="max")  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="batch"):
        local_non_local(q[0], k[0], v[0, :1], 3)


# ------------------------------------------------------------------------------------ non-local: functions


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES),
    st.sampled_from(["softmax", "mean"]),
    st.sampled_from([8, 2**23]),
)
@example((13, 14), (9, 8), "softmax", 2**23)  # tiles of several windows
@example((13, 14), (9, 8), "mean", 2**23)
def test_non_local_equals_a_loop(size: Any, window: Any, weighting: Any, limit: int) -> None:
    """However small the tiles are."""
    q, k, v = (x.flatten(1, 2) for x in _maps(2, 1, 3, *size))
    v = v[:, :2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlsc._statistics.non_local.LIMIT", limit)
        out = local_non_local(q, k, v, window, 0.7, weighting)

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        q, k, v = crop[:, :3, i, j], crop[:, 3:6].flatten(2), crop[:, 6:].flatten(2)
        scores = 0.7 * torch.einsum("nc,ncp->np", q, k)
        weights = scores.softmax(-1) if weighting == "softmax" else scores / k.shape[2]
        return torch.einsum("np,ncp->nc", weights, v)

    expected = reference_at_every_position(of_window, torch.cat((q, k, v), 1), window)
    assert (out - expected).abs().max() <= 1e-9


def test_non_local_nan_spoils_only_the_windows_that_contain_it() -> None:
    for spoilt in range(1, 3):
        maps = [x.flatten(1, 2) for x in _maps(1, 1, 2, 12, 12)]
        maps[spoilt][0, 0, 1, 9] = float("nan")
        out = local_non_local(*maps, 8)
        hit = torch.zeros(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
        for i in range(12):
            hit[0][i] = 1 in range(*reference_window(i, 12, 8).indices(12))
            hit[1][i] = 9 in range(*reference_window(i, 12, 8).indices(12))
        assert torch.equal(out.isnan().any(1)[0], hit[0][:, None] & hit[1])


def test_non_local_gradients() -> None:
    maps = [x.flatten(1, 2).requires_grad_() for x in _maps(1, 1, 2, 3, 4)]
    for weighting in ("softmax", "mean"):
        assert torch.autograd.gradcheck(lambda *a, w=weighting: local_non_local(*a, (2, 3), 1.0, w), maps)


# ------------------------------------------------------------------------------------------------- recognition

KNOWN = [
    (Attention(), 1),
    (Attention(6, 3, "qkv_conv"), 1),
    (Linear(), 1),
    (Cross(), 2),
    (Cross(swapped=True), 2),
]


@pytest.mark.parametrize(("module", "inputs"), KNOWN, ids=lambda value: type(value).__name__)
def test_transposed_attention_is_recognised_and_replaced(module: nn.Module, inputs: int) -> None:
    """Covering windows: bit by bit the original. Smaller ones: attention on its q, k, v, window by window."""
    module = copy.deepcopy(module).double()
    dim = module.project_out.in_channels
    found = recognise(module)
    assert found is not None
    assert found[0] == "TransposedAttention"
    maps = [_random(2, dim, 7, 8) for _ in range(inputs)]
    expected = module(*maps)
    local = found[1](module, (7, 8), 1)
    assert torch.equal(local(*maps), expected)
    narrow = found[1](module, (4, 5), 2)
    assert not torch.allclose(narrow(*maps), expected)
    assert list(narrow.state_dict()) == list(module.state_dict())
    assert all(a is b for a, b in zip(narrow.parameters(), module.parameters(), strict=True))
    for copied in (copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow))):
        assert torch.equal(copied(*maps), narrow(*maps))


def test_modules_equal_functions() -> None:
    module = Attention().double()
    x = _random(2, 6, 7, 8)
    q, k, v = (y.unflatten(1, (2, 3)) for y in module.qkv_dwconv(module.qkv(x)).chunk(3, 1))
    for local, out in (
        (LocalTransposedAttention.from_module(module, (4, 5), stride=2),
         local_transposed_attention(q, k, v, module.temperature, (4, 5), 2)),
        (overlap(module, (4, 5)), overlapping_transposed_attention(q, k, v, module.temperature, (4, 5))),
    ):  # fmt: skip
        assert torch.equal(local(x), module.project_out(out.flatten(1, 2)))
    with pytest.raises(ArgumentValueError, match="form"):
        LocalTransposedAttention.from_module(module, 4, form="slide")  # type: ignore[arg-type]


def test_the_published_form_through_the_public_registry() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Attention()).double()
    x, attention = _random(1, 3, 8, 9), model[1]
    before = model(x)
    handle = tlsc.register(Attention, overlap)
    try:
        tlsc.convert(model, (5, 6))
    finally:
        handle.remove()
    assert isinstance(model[1], LocalTransposedAttention)
    assert (model[1].form, model[1].window) == ("overlap", (5, 6))
    assert torch.equal(model(x), overlap(attention, (5, 6))(model[0](x)))
    tlsc.revert(model)
    assert model[1] is attention
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("division", [False, True])
def test_non_local_block_is_recognised_and_replaced(division: bool, norm: bool) -> None:
    module = NonLocal(division, norm).double().eval()
    found = recognise(module)
    assert found is not None
    assert found[0] == "NonLocalBlock"
    x = _random(2, 4, 5, 6)
    covered = found[1](module, (5, 6), 1)
    assert (covered(x) - module(x)).abs().max() <= 1e-12

    def of_window(crop: Tensor, i: int, j: int) -> Tensor:
        with torch.no_grad():
            return module(crop)[..., i, j]

    narrow = found[1](module, (3, 4), 1)
    assert (narrow(x) - reference_at_every_position(of_window, x, (3, 4))).abs().max() <= 1e-9
    assert list(narrow.state_dict()) == list(module.state_dict())
    assert torch.equal(pickle.loads(pickle.dumps(narrow))(x), narrow(x))


def test_what_only_looks_like_it_is_not_recognised() -> None:
    patched = Attention()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    modules = [Sigmoid(), patched, nn.Conv2d(3, 3, 1), nn.Sequential(Attention()), nn.MultiheadAttention(4, 2)]
    for module in modules:
        assert recognise(module) is None
    for make in (LocalTransposedAttention, LocalNonLocalBlock):
        with pytest.raises(ArgumentTypeError, match="not recognised"):
            make.from_module(Sigmoid(), 4)


def test_recognition_leaves_no_trace() -> None:
    """Zeroed weights, half precision, hooks, the meta device: none is in the way, and nothing runs or changes."""
    module = Attention().half()
    nn.init.zeros_(module.project_out.weight)
    module.qkv.register_forward_hook(lambda *_: pytest.fail("ran"))
    module.register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    assert recognise(module) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert recognise(Attention().to("meta")) is not None
    normed = Attention()
    torch.nn.utils.parametrizations.weight_norm(normed.qkv)
    assert recognise(normed) is not None
    sigmoid = Sigmoid()
    nn.init.zeros_(sigmoid.project_out.weight)  # the result is the same; the layer is not
    assert recognise(sigmoid) is None


# ---------------------------------------------------------------------------------------- published vectors


@pytest.fixture(scope="module")
def restormer() -> Any:
    architecture = pytest.importorskip("spandrel_extra_arches.architectures.Restormer")
    with safe_open(Path(__file__).parent / "data" / "restormer.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        metadata = file.metadata()
    model = architecture.Restormer(**ast.literal_eval(metadata["config"])).double().eval()
    model.load_state_dict({name[6:]: x for name, x in tensors.items() if name.startswith("state.")})
    return model, tensors, int(metadata["base_size"])


@IMPORTS
def test_published_vectors(restormer: Any) -> None:
    model, tensors, base_size = restormer
    local = _converted(copy.deepcopy(model), base_size)
    assert list(local.state_dict()) == list(model.state_dict())
    cases = sorted({name.partition(".")[0] for name in tensors if name.startswith("case")})
    assert cases == [f"case{i}" for i in range(4)]
    with torch.no_grad():
        for case in cases:
            x = tensors[f"{case}.input"]
            assert (model(x) - tensors[f"{case}.original.0"]).abs().max() <= 1e-9
            assert (local(x) - tensors[f"{case}.local.0"]).abs().max() <= 1e-9
        both = torch.cat((x, x.flip(-1)))
        assert (local(both)[:1] - tensors[f"{case}.local.0"]).abs().max() <= 1e-9


def _converted(model: nn.Module, base_size: int) -> nn.Module:
    """Each attention layer in overlapping windows of its map's size for an input of ``base_size``."""
    sizes: dict[str, Any] = {}
    sites = {path: module for path, module in model.named_modules() if type(module).__name__ == "Attention"}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: sizes.update({path: tuple(args[0].shape[2:])}))
        for path, module in sites.items()
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, base_size, base_size, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    for path, module in sites.items():
        assert recognise(module) is not None
        model.set_submodule(path, overlap(module, sizes[path]))
    return model


@IMPORTS
@pytest.mark.parametrize(
    ("module", "name", "args"),
    [
        ("spandrel.architectures.KBNet.__arch.kbnet_l", "TransAttention", (4, 2, False)),
        ("spandrel.architectures.HVICIDNet.__arch.LCA", "CAB", (4, 2, False)),
        ("spandrel.architectures.CRAFT.__arch.CRAFT", "Attention", (4, 2, False)),
        ("spandrel.architectures.DITN.__arch.DITN_Real", "ISA", (4, False)),
        ("spandrel_extra_arches.architectures.M3SNet.__arch.M3SNet", "Attention", (4, 2, True)),
        ("timm.layers.non_local_attn", "NonLocalAttn", (16,)),
    ],
)
def test_layers_of_other_packages_are_recognised(module: str, name: str, args: Any) -> None:
    made = getattr(pytest.importorskip(module), name)(*args)
    assert recognise(made) is not None


# ----------------------------------------------------------------------------------------------------- naive


def _reference_sliding(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, window: Any, stride: Any) -> Tensor:
    """Each position: attention on the evaluated window (starts 0, r, 2r, …, n − k) that is nearest to its own."""
    out = torch.zeros_like(v)
    for i in range(q.shape[3]):
        for j in range(q.shape[4]):
            crop = []
            for at, n, size, r in zip((i, j), q.shape[3:], window, stride, strict=True):
                own, k_ = reference_window(at, n, size).start, min(size, n)
                starts = [*range(0, n - k_, r), n - k_]
                start = min(starts, key=lambda s, own=own: (abs(s - own), s))
                crop.append(slice(start, start + k_))
            # A window may be so far from a position that it does not contain it: its weights apply all the same.
            a, b = (nn.functional.normalize(x[..., crop[0], crop[1]].flatten(3), dim=-1) for x in (q, k))
            weights = ((a @ b.transpose(-2, -1)) * temperature.reshape(-1, 1, 1)).softmax(-1)
            out[..., i, j] = (weights @ v[..., i, j].unsqueeze(-1)).squeeze(-1)
    return out


def _reference_overlap(q: Tensor, k: Tensor, v: Tensor, temperature: float, window: Any) -> Tensor:
    """The published loop: steps until a window reaches the border, which it is then moved back to."""
    out, count = torch.zeros_like(v), torch.zeros(v.shape[3:], dtype=v.dtype)
    starts = []
    for n, size in zip(v.shape[3:], window, strict=True):
        size = min(size, n)
        number = (n - 1) // size + 1
        step = size if number == 1 else -int(-(n - size) // (number - 1))
        axis, i = [], 0
        while i + size < n:
            axis.append(slice(i, i + size))
            i += step
        starts.append([*axis, slice(n - size, n)])
    for rows in starts[0]:
        for columns in starts[1]:
            crops = (x[..., rows, columns] for x in (q, k, v))
            out[..., rows, columns] += transposed_attention(*crops, temperature)
            count[rows, columns] += 1
    return out / count


def _maps(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
