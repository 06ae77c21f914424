"""The probe: it finds the feature sizes of any model, says clearly when it cannot, and leaves no trace."""

from __future__ import annotations

import copy
import functools
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import tlsc
from tlsc._surgery import probe as _probe
from tlsc.errors import ArgumentTypeError, ArgumentValueError

from .networks import BASE, Grouped, HalfNorm, Restorer, SequentialGate, image, with_random_weights

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
every_device = pytest.mark.parametrize("device", DEVICES)


class Body(nn.Module):
    """A norm and a gate, whose forward does ``self.act(x)`` first. Subclasses misbehave there."""

    reads_values = False

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.gate = SequentialGate(8)

    def act(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.reads_values:
            x.sum().item()
        self.act(x)
        return self.gate(self.norm(self.conv(x)))


def as_real_too(body: type[Body]) -> list[type[Body]]:
    """``body``, and the same reading values, so that it is probed on real tensors."""
    return [body, type(body.__name__ + "OnRealTensors", (body,), {"reads_values": True})]


# --------------------------------------------------------------------------------- the two ways of running


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each run of the probe that came through, whether it was on fake tensors."""
    seen: list[bool] = []
    original = _probe.run

    def run(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen.append(result.fake)
        return result

    monkeypatch.setattr(_probe, "run", run)
    return seen


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_no_arithmetic_where_it_can_be_avoided(runs: list[bool], dtype: torch.dtype, device: str) -> None:
    model = Restorer(HalfNorm(8), Grouped(8), SequentialGate(8), nn.Dropout(), nn.BatchNorm2d(8)).to(device, dtype)
    assert len(tlsc.plan(model, 512).converted) == 3
    assert runs
    assert all(runs)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: x.detach().cpu().numpy().mean(),
        lambda x: float(x.mean()),
        lambda x: 1 if (x > 0).any() else 2,
        lambda x: x[x > 0].tolist(),
    ],
    ids=["item", "numpy", "float", "if", "tolist"],
)
@every_device
def test_a_model_that_reads_values_is_run_for_real(
    runs: list[bool], look: Callable[[Tensor], Any], device: str
) -> None:
    class Looking(Body):
        def act(self, x: Tensor) -> None:
            look(x)

    model = Looking().to(device)
    windows = [site.window for site in tlsc.plan(model, BASE).converted]
    assert windows == [BASE, BASE]
    assert not any(runs)
    model = tlsc.convert(model, BASE)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    assert model(image(36, 44, dtype=torch.float32).to(device)).device.type == device


# --------------------------------------------------------------------------------------- leaves no trace


def snapshot(model: nn.Module) -> list[tuple[str, Any, Any]]:
    """Every attribute of every module, as object and as value."""
    return [
        (f"{path}.{name}", value, copy.deepcopy(value))
        for path, module in model.named_modules()
        for name, value in module.__dict__.items()
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, nn.Module) or callable(a):
        return True  # compared by its own attributes
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple, deque)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def leaked(value: Any) -> bool:
    if isinstance(value, dict):
        return any(leaked(inner) for inner in value.values())
    if isinstance(value, (list, tuple, deque, set)):
        return any(leaked(inner) for inner in value)
    return isinstance(value, FakeTensor)


class Caching(Body):
    """Keeps what it saw, in every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.seen: list[Tensor] = []
        self.by_size: dict[Any, Any] = {"deep": {"list": []}}
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.table: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.ordered: OrderedDict[int, Tensor] = OrderedDict()
        self.sizes: set[int] = set()
        self.pair: tuple[list[Tensor], int] = ([], 0)
        self.calls = 0

    def act(self, x: Tensor) -> None:
        self.last = x
        self.seen.append(x)
        self.by_size[tuple(x.shape)] = x
        self.by_size["deep"]["list"].append(x)
        self.recent.append(x)
        self.table["x"].append(x)
        self.ordered[x.shape[-1]] = x
        self.sizes.add(x.shape[-1])
        self.pair[0].append(x)
        self.calls += 1
        self.fresh = x


class Counting(Body):
    """Changes its tensors in place: buffers, a parameter, and one that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("nothing", None)
        self.scale = nn.Parameter(torch.ones(3))
        self.total = torch.zeros(3)

    def act(self, x: Tensor) -> None:
        with torch.no_grad():
            self.count += 1
            self.count.add_(1)
            self.average.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
            self.scale.mul_(0.5)
            self.scale.clamp_(max=0.1)
            self.total += 1
        self.total = self.total + 1
        self.nothing = x


class Registering(Body):
    """Builds buffers, parameters and modules when it is first called."""

    def act(self, x: Tensor) -> None:
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.ones_like(x))
            self.register_parameter("offset", nn.Parameter(torch.zeros(3)))
            self.extra = nn.InstanceNorm2d(3)
            self.norm.register_buffer("mine", x)


class Training(Body):
    """Switches flags in its forward."""

    def act(self, x: Tensor) -> None:
        self.train()
        self.conv.weight.requires_grad_(False)
        self.conv.weight.requires_grad_(True)


class Drawing(Body):
    """Draws random numbers from every generator."""

    def act(self, x: Tensor) -> None:
        torch.rand(3)
        random.random()
        np.random.rand(3)  # noqa: NPY002
        F.dropout(x, 0.5, training=True)


class Normalising(Body):
    """Has layers that update themselves in training mode, and one that is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.running = nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)
        self.sn = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))

    def act(self, x: Tensor) -> None:
        self.running(self.batch(self.sn(x)))


MISBEHAVING = [
    model
    for body in (Caching, Counting, Registering, Training, Drawing, Normalising)
    for model in as_real_too(body)
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("body", MISBEHAVING, ids=lambda body: body.__name__)
def test_the_probe_leaves_no_trace(body: type[Body], training: bool) -> None:
    torch.manual_seed(0)
    model = body().train(training)
    before, keys = snapshot(model), list(model.state_dict())
    tlsc.plan(model, BASE)
    after = snapshot(model)
    assert [name for name, _, _ in after] == [name for name, _, _ in before]
    for (name, was, value), (_, now, _) in zip(before, after, strict=True):
        assert now is was, name
        assert not leaked(now), name
        assert same(now, value), name
    assert list(model.state_dict()) == keys
    assert all(module.training == training for module in model.modules())
    tlsc.convert(model, BASE)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("body", MISBEHAVING, ids=lambda body: body.__name__)
def test_a_model_that_misbehaves_still_runs_after_converting(body: type[Body]) -> None:
    torch.manual_seed(0)
    model = tlsc.convert(body().eval(), BASE)
    x = image(36, 44, dtype=torch.float32)
    assert model(x).shape == model(x).shape == (1, 8, 36, 44)


@pytest.mark.parametrize("body", as_real_too(Drawing), ids=lambda body: body.__name__)
def test_random_number_generators_are_left_as_they_were(body: type[Body]) -> None:
    model = body()

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed()
    expected = draw()
    seed()
    # The idle workers of a pool are threads that live, and change nothing.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        tlsc.convert(model, BASE)
    assert draw() == expected


@every_device
def test_generators_of_the_device_are_left_too(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.InstanceNorm2d(8)).to(device)
    torch.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    tlsc.convert(model, BASE)
    assert torch.equal(torch.rand(3, device=device), expected)


@pytest.mark.parametrize("body", as_real_too(Body), ids=lambda body: body.__name__)
def test_gradients_are_left_as_they_were(body: type[Body]) -> None:
    model = body()
    model(image(24, 24, dtype=torch.float32)).sum().backward()
    before = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    tlsc.convert(model, BASE)
    for parameter, (grad, value) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is grad
        assert torch.equal(grad, value)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("body", as_real_too(Body), ids=lambda body: body.__name__)
def test_the_probe_runs_in_evaluation_mode_without_gradients(body: type[Body]) -> None:
    class Cropping(body):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(x[..., :8, :8] if self.training else x)

    assert [site.window for site in tlsc.plan(Cropping().train(), BASE).converted] == [BASE, BASE]


@pytest.mark.parametrize("how", ["wrapper", "in place"])
def test_the_probe_does_not_compile(how: str) -> None:
    torch._dynamo.reset()
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model: nn.Module = Restorer(HalfNorm(8), SequentialGate(8)).eval()
    if how == "wrapper":
        model = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    assert len(tlsc.plan(model, BASE).converted) == 2
    assert compiled == []
    model(image(*BASE, dtype=torch.float32))
    assert compiled


@pytest.mark.parametrize("body", as_real_too(Body), ids=lambda body: body.__name__)
def test_no_hook_of_any_module_fires(body: type[Body]) -> None:
    model = body()
    fired: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *args, p=path: fired.append(p))
        module.register_forward_hook(lambda *args, p=path: fired.append(p), with_kwargs=True, always_call=True)
        module.register_forward_pre_hook(lambda *args, p=path: fired.append(p))
        module.register_forward_pre_hook(lambda *args, p=path: fired.append(p), with_kwargs=True)
    tlsc.plan(model, BASE)
    tlsc.convert(model, BASE)
    tlsc.revert(model)
    assert fired == []


@pytest.mark.parametrize("body", as_real_too(Counting), ids=lambda body: body.__name__)
def test_a_probe_that_fails_leaves_no_trace_either(body: type[Body]) -> None:
    class Failing(body):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("late")

    model = Failing().train()
    before = snapshot(model)
    with pytest.raises(tlsc.ProbeError, match="RuntimeError: late"):
        tlsc.convert(model, BASE)
    for (name, was, value), (_, now, _) in zip(before, snapshot(model), strict=True):
        assert now is was, name
        assert same(now, value), name


def test_an_interrupt_leaves_no_trace_either() -> None:
    class Interrupted(Body):
        def act(self, x: Tensor) -> None:
            raise KeyboardInterrupt

    model = Interrupted().train()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        tlsc.convert(model, BASE)
    assert all(now is was for (_, was, _), (_, now, _) in zip(before, snapshot(model), strict=True))


@pytest.mark.parametrize("body", as_real_too(Body), ids=lambda body: body.__name__)
def test_the_caller_s_images_are_left_as_they_were(body: type[Body]) -> None:
    class InPlace(body):  # type: ignore[misc, valid-type]
        def act(self, x: Tensor) -> None:
            x.zero_()

    example = image(*BASE, dtype=torch.float32).requires_grad_()
    before = example.detach().clone()
    tlsc.convert(InPlace(), BASE, example_input=example)
    assert torch.equal(example.detach(), before)
    assert example.grad is None


# ----------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 12])
def test_the_number_of_input_channels_is_found(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.InstanceNorm2d(8))
    assert tlsc.plan(model, BASE)[0].window == BASE


def test_the_number_of_input_channels_is_found_behind_a_rearrangement() -> None:
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1), nn.InstanceNorm2d(8))
    assert tlsc.plan(model, BASE)[0].window == (10, 14)


def test_the_number_of_input_channels_is_found_whatever_the_order_of_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.norm, self.first = nn.Conv2d(64, 3, 1), nn.GroupNorm(8, 64), nn.Conv2d(7, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)))

    assert tlsc.plan(Backwards(), BASE)[0].window == BASE


class TwoImages(nn.Module):
    """An image, a guide of half its size, and a strength."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.guide_norm = nn.InstanceNorm2d(3), nn.InstanceNorm2d(1)

    def forward(self, x: Tensor, guide: Tensor, strength: float = 1.0) -> Tensor:
        return self.norm(x) + strength * F.interpolate(self.guide_norm(guide), scale_factor=2)


PAIR = torch.rand(2, 3, 32, 48), torch.rand(2, 1, 16, 24)


@pytest.mark.parametrize(
    "example_input",
    [
        PAIR,
        list(PAIR),
        (*PAIR, 0.5),
        (torch.rand(1, 3, *BASE), torch.rand(1, 1, 10, 14)),
        lambda height, width: (torch.rand(1, 3, height, width), torch.rand(1, 1, height // 2, width // 2)),
        lambda height, width: [torch.rand(1, 3, height, width), torch.rand(1, 1, height // 2, width // 2), 2.0],
    ],
    ids=["tuple", "list", "with a number", "at base_size", "function", "function to list"],
)
def test_a_model_of_two_images(example_input: Any) -> None:
    plan = tlsc.plan(TwoImages(), BASE, example_input=example_input)
    assert {site.path: site.window for site in plan} == {"norm": (20, 28), "guide_norm": (10, 14)}
    model = tlsc.convert(TwoImages(), BASE, example_input=example_input)
    assert model(*PAIR).shape == (2, 3, 32, 48)


def test_a_model_of_two_images_without_an_example_says_what_to_pass() -> None:
    model = TwoImages()
    with pytest.raises(tlsc.ProbeError, match="guide") as caught:
        tlsc.convert(model, BASE)
    assert "example_input" in str(caught.value)
    assert type(model.norm) is nn.InstanceNorm2d


@pytest.mark.parametrize("example_input", [torch.rand(1, 5, 40, 40), torch.rand(3, 5, 9, 11, dtype=torch.float64)])
def test_an_example_tensor_is_resized_and_keeps_its_dtype(example_input: Tensor) -> None:
    class Five(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == example_input.dtype
            assert x.shape == (example_input.shape[0], 5, *BASE) or x.shape[2] > BASE[0]
            return self.norm(x)

    assert tlsc.plan(Five(), BASE, example_input=example_input)[0].window == BASE


@pytest.mark.parametrize(
    ("example_input", "error", "message"),
    [
        ("image.png", ArgumentTypeError, "example_input must be a tensor, a tuple, a dictionary.*got str"),
        ({"y": torch.rand(1, 3, 8, 8)}, tlsc.ProbeError, "base_size 20×28"),
        (3, ArgumentTypeError, "got int"),
        ((1, 2), ArgumentValueError, "must hold an image"),
        (torch.rand(3, 8, 8), ArgumentValueError, "must hold an image"),
        (torch.ones(1, 3, 8, 8, dtype=torch.uint8), ArgumentValueError, "must hold an image"),
        (lambda height, width: {"x": 1}, tlsc.ProbeError, "base_size 20×28"),
        (lambda height: height, tlsc.ProbeError, "check what example_input gives"),
        (lambda height, width: torch.rand(1, 5, height, width), tlsc.ProbeError, "base_size 20×28"),
    ],
    ids=["str", "dict", "int", "numbers", "3-D", "bytes", "function to dict", "one argument", "wrong channels"],
)
def test_examples_that_cannot_be_used(example_input: Any, error: type[Exception], message: str) -> None:
    model = Restorer(HalfNorm(8))
    with pytest.raises(error, match=message):
        tlsc.convert(model, BASE, example_input=example_input)
    assert type(model.body[0].norm) is nn.InstanceNorm2d


# -------------------------------------------------------------------------------------------- failures


def test_a_model_that_fails_at_base_size_says_the_size_the_error_and_the_way_out() -> None:
    class Multiples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] % 32 or x.shape[3] % 32:
                raise ValueError("height and width must be multiples of 32\nsecond line")
            return self.norm(x)

    model = Multiples()
    norm, dicts = model.norm, dict(model.__dict__)
    with pytest.raises(tlsc.ProbeError) as caught:
        tlsc.convert(model, (64, 65))
    assert str(caught.value) == (
        "the model failed on an input of base_size 64×65 (ValueError: height and width must be multiples of 32); "
        "choose a base_size that it takes, or pass example_input: a tensor, a tuple, or a function "
        "(height, width) -> args"
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert model.norm is norm
    assert model.__dict__ == dicts
    assert tlsc.plan(model, (64, 96))[0].window == (64, 96)


def test_a_model_that_takes_keywords_only_says_so() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.norm(x)

    with pytest.raises(tlsc.ProbeError, match=r"positional argument.*example_input"):
        tlsc.convert(Keywords(), BASE)


def test_an_error_without_a_message() -> None:
    class Silent(Body):
        def act(self, x: Tensor) -> None:
            raise NotImplementedError

    with pytest.raises(tlsc.ProbeError, match="NotImplementedError: no message"):
        tlsc.convert(Silent(), BASE)


# --------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"image": y, "extra": [y]},
        lambda y: [y, (y, None)],
        lambda y: None,
        lambda y: iter([y]),
        lambda y: float("nan"),
    ],
    ids=["dict", "list", "None", "iterator", "number"],
)
def test_models_may_return_anything(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapping(Body):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return wrap(super().forward(x))

    assert len(tlsc.plan(Wrapping(), BASE).converted) == 2


def test_a_model_that_checkpoints_its_activations() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointing(Body):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return checkpoint(self.norm, x, use_reentrant=False) + checkpoint(self.gate, x, use_reentrant=False)

    assert len(tlsc.plan(Checkpointing(), BASE).converted) == 2


def test_a_model_decorated_with_inference_mode() -> None:
    class Deployed(Body):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = tlsc.convert(with_random_weights(Deployed()), BASE)
    assert model(image(36, 44, dtype=torch.float32)).shape == (1, 8, 36, 44)


CACHE: dict[tuple[int, ...], Tensor] = {}
LAST: Tensor | None = None


@functools.lru_cache
def ramp(width: int) -> Tensor:
    return torch.linspace(0, 1, width)


@pytest.mark.usefixtures("all_in_sight")
def test_caches_outside_modules_keep_no_fake_tensor() -> None:
    class Notes:
        kept: Any = None

    class Caching(nn.Module):
        table: ClassVar[dict[tuple[int, ...], Tensor]] = {}
        seen: ClassVar[list[Tensor]] = []

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.notes = nn.InstanceNorm2d(3), Notes()

        def forward(self, x: Tensor) -> Tensor:
            global LAST
            size = tuple(x.shape[2:])
            LAST = self.notes.kept = x
            self.seen.append(x)
            ones = CACHE.setdefault(size, torch.ones(size)) * self.table.setdefault(size, torch.ones(size))
            return self.norm(x) * ramp(size[1]) * ones

    model = Caching()
    x = torch.rand(1, 3, *BASE)
    tlsc.convert(model, BASE)
    assert type(model(x)) is Tensor
    assert type(ramp(BASE[1])) is Tensor
    assert all(type(value) is Tensor for value in (*CACHE.values(), *Caching.table.values(), *Caching.seen))
