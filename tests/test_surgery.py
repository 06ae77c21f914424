"""What a conversion does to one kind of model or another, what it refuses, and ``register``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlsc
from tlsc.errors import ArgumentTypeError, ArgumentValueError

from .networks import (
    BASE,
    AttributeGate,
    Block,
    Classifier,
    Grouped,
    HalfNorm,
    LinearGate,
    OneSlotTwoSizes,
    Restorer,
    SequentialGate,
    TwoNames,
    TwoScales,
    UNet,
    image,
    nested_twice,
    reference_site,
    shared_block,
    siblings_share,
    with_random_weights,
)


def classes(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


def identities(model: nn.Module) -> list[tuple[str, int]]:
    return [(path, id(module)) for path, module in model.named_modules(remove_duplicate=False)]


def reason(model: nn.Module, path: str, **kwargs: Any) -> str:
    (site,) = [site for site in tlsc.plan(model, BASE, **kwargs) if path in (site.path, *site.aliases)]
    assert not site.converted
    return site.reason


def changes(model: nn.Module, size: tuple[int, int] = (36, 44)) -> bool:
    """Whether converting changes what ``model`` gives for an image larger than the window."""
    x = image(*size, dtype=next(iter(model.parameters()), torch.zeros(())).dtype)
    with torch.no_grad():
        before = model(x)
        with tlsc.converted(model, BASE):
            return not torch.allclose(model(x), before, atol=1e-6)


class Pooled(nn.Module):
    """The smallest use of a pool that a local one fits."""

    def __init__(self, size: Any = 1) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pool(x)


def is_local(model: nn.Module, path: str) -> bool:
    """Whether the module at ``path`` was replaced, or one around it rewritten."""
    names = path.split(".")
    around = [model.get_submodule(".".join(names[:count])) for count in range(len(names) + 1)]
    return any(type(module).__name__.startswith("Local") for module in around)


# ------------------------------------------------------------------------------------------- the trap list


def test_trap_affine_weights_survive() -> None:
    norm = with_random_weights(nn.InstanceNorm2d(4, affine=True))
    local = tlsc.convert(nn.Sequential(norm), BASE)[0]
    assert local.weight is norm.weight
    assert local.bias is norm.bias
    assert not torch.equal(local.weight, torch.ones(4))


def test_trap_the_window_is_not_set_by_the_image_that_comes_first() -> None:
    model = with_random_weights(UNet(HalfNorm(8), Grouped(8), SequentialGate(8), HalfNorm(8))).double().eval()
    fresh = tlsc.convert(copy.deepcopy(model), BASE)
    used = tlsc.convert(model, BASE)
    with torch.no_grad():
        for size in ((8, 8), (64, 12), (36, 44)):
            used(image(*size))
        assert torch.equal(used(image(48, 40)), fresh(image(48, 40)))


@pytest.mark.parametrize("size", [1, (1, 1)])
def test_trap_output_size_one_in_every_form(size: Any) -> None:
    model = tlsc.convert(Pooled(size), BASE)
    x = image(30, 40)
    torch.testing.assert_close(model(x), x * reference_site(nn.AdaptiveAvgPool2d(1), x, BASE))


def test_a_pool_written_with_a_list_is_converted_too() -> None:
    model = Pooled()
    model.pool.output_size = [1, 1]  # type: ignore[assignment]
    x = image(30, 40)
    torch.testing.assert_close(tlsc.convert(model, BASE)(x), x * reference_site(nn.AdaptiveAvgPool2d(1), x, BASE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_trap_the_probe_runs_in_the_model_s_own_dtype(dtype: torch.dtype) -> None:
    class Strict(Restorer):
        """Its forward reads values, so that the probe cannot run on fake tensors."""

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == dtype
            assert x.abs().sum().item() >= 0
            return super().forward(x)

    model = with_random_weights(Strict(HalfNorm(8), Grouped(8), SequentialGate(8))).to(dtype)
    assert len(tlsc.plan(tlsc.convert(model, BASE), BASE).converted) == 3
    assert model(image(36, 44, dtype=dtype)).dtype == dtype


def test_trap_any_batch_size() -> None:
    model = with_random_weights(UNet(SequentialGate(8), Grouped(8), HalfNorm(8), AttributeGate(8))).double()
    tlsc.convert(model, BASE)
    images = [image(36, 44, seed=seed) for seed in range(3)]
    with torch.no_grad():
        together = model(torch.cat(images))
        torch.testing.assert_close(together, torch.cat([model(x) for x in images]), rtol=1e-10, atol=1e-10)
        assert model(image(36, 44)[:0]).shape == (0, 3, 36, 44)


def test_trap_siblings_that_share_a_module_are_all_converted_and_stay_shared() -> None:
    model = tlsc.convert(siblings_share(), BASE)
    norms = [model.body[i].norm for i in range(3)]
    assert isinstance(norms[0], tlsc.LocalInstanceNorm2d)
    assert norms[0] is norms[1] is norms[2]


def test_trap_linear_squeeze_excitation_still_runs() -> None:
    model = with_random_weights(Restorer(LinearGate(8), SequentialGate(8))).eval()
    tlsc.convert(model, BASE)
    assert is_local(model, "body.0.pool")
    assert is_local(model, "body.1.gate.0")
    assert model(image(36, 44, dtype=torch.float32)).shape == (1, 3, 36, 44)


def test_trap_height_and_width_are_not_mixed_up() -> None:
    model = tlsc.convert(UNet(HalfNorm(8), HalfNorm(8), HalfNorm(8), HalfNorm(8)), (16, 64))
    assert [model.blocks[i].norm.window for i in range(3)] == [(16, 64), (8, 32), (4, 16)]
    norm = with_random_weights(nn.InstanceNorm2d(3, affine=True)).double()
    x = image(20, 30)
    expected = reference_site(norm, x, (5, 12))
    torch.testing.assert_close(tlsc.convert(norm, (5, 12))(x), expected)
    turned = tlsc.convert(norm, (12, 5))(x.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, expected)


def test_trap_a_model_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.InstanceNorm2d(8))
    norm = model[1]
    model[2].eval()
    before = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()
    tlsc.convert(model.train(), BASE)
    assert all(module.training for module in model.modules())
    after = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


# --------------------------------------------------------------------------------------- shared modules


def test_one_module_under_two_names_stays_one() -> None:
    model = tlsc.convert(TwoNames(), BASE)
    assert isinstance(model.first, tlsc.LocalInstanceNorm2d)
    assert model.second is model.first


def test_a_shared_block_stays_one() -> None:
    model = tlsc.convert(shared_block(), BASE)
    assert model.body[0] is model.body[2]
    assert isinstance(model.body[0].norm, tlsc.LocalGroupNorm)


def test_nested_containers_used_again_are_converted_once() -> None:
    model = tlsc.convert(nested_twice(), BASE)
    inner = model.body[0]
    assert model.body[1][0] is inner
    assert model.body[1][1][0] is inner
    assert is_local(inner, "1.gate.0")


def test_one_module_at_two_scales_gets_two_windows_and_keeps_one_set_of_parameters() -> None:
    model = with_random_weights(TwoScales())
    norm = model.high.norm
    count = len(list(model.parameters()))
    tlsc.convert(model, BASE)
    assert model.high.norm.window == BASE
    assert model.deep.norm.window == (10, 14)
    assert model.high.norm.weight is model.deep.norm.weight is norm.weight
    assert len(list(model.parameters())) == count
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}, assign=True)
    model.double()
    assert model.high.norm.weight is model.deep.norm.weight
    tlsc.revert(model)
    assert model.high.norm is norm
    assert model.deep.norm is norm
    assert norm.weight.dtype == torch.float64


def test_a_slot_called_at_two_sizes_stays_global_with_the_reason() -> None:
    model = OneSlotTwoSizes()
    assert "several sizes" in reason(model, "norm")
    tlsc.convert(model, BASE)
    assert type(model.norm) is nn.InstanceNorm2d
    assert type(model.other) is tlsc.LocalInstanceNorm2d


def test_a_module_that_contains_itself() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)
            self.box = nn.Sequential()
            self.box.add_module("up", self)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    model = Loop()
    assert isinstance(tlsc.convert(model, BASE).norm, tlsc.LocalInstanceNorm2d)
    assert type(tlsc.revert(model).norm) is nn.InstanceNorm2d


def test_depth_and_sharing_do_not_explode() -> None:
    deep: nn.Module = nn.InstanceNorm2d(3)
    for _ in range(100):
        deep = nn.Sequential(deep)
    assert len(tlsc.plan(deep, BASE).converted) == 1
    diamond: nn.Module = nn.InstanceNorm2d(3)
    for _ in range(8):
        diamond = nn.Sequential(diamond, diamond)
    assert all(site.converted for site in tlsc.plan(diamond, 8))


# ---------------------------------------------------------------------------------------- root as a site


def test_root_becomes_local_and_stays_the_object_that_the_caller_holds() -> None:
    norm = with_random_weights(nn.InstanceNorm2d(3, affine=True))
    held, weight = norm, norm.weight
    assert tlsc.convert(norm, BASE) is held
    assert isinstance(held, tlsc.LocalInstanceNorm2d)
    assert held.weight is weight
    assert tlsc.convert(norm, 8).window == (8, 8)
    assert tlsc.revert(norm) is held
    assert type(held) is nn.InstanceNorm2d
    assert held.weight is weight


def test_root_reverts_inside_a_model_that_holds_it() -> None:
    norm = nn.InstanceNorm2d(3)
    model = nn.Sequential(norm, norm)
    tlsc.convert(norm, BASE)
    tlsc.plan(model, 8)
    with tlsc.converted(model, 8):
        assert model[0].window == (8, 8)
    assert model[0] is norm
    assert norm.window == BASE
    tlsc.revert(model)
    assert model[0] is norm
    assert model[1] is norm
    assert type(norm) is nn.InstanceNorm2d
    tlsc.convert(norm, BASE)
    tlsc.revert(tlsc.convert(model, 8))
    assert model[0] is norm
    assert type(norm) is nn.InstanceNorm2d


def test_converted_for_another_window_meanwhile_has_its_own_plan_again() -> None:
    model = tlsc.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)).eval(), 8, check=False)
    before = tlsc.plan(model)
    with tlsc.converted(model, 12, check=False):
        assert tlsc.plan(model).base_size == (12, 12)
    assert tlsc.plan(model) == before


def test_a_model_around_a_converted_root_is_converted_as_its_original() -> None:
    norm = tlsc.convert(nn.InstanceNorm2d(3), BASE)
    model = tlsc.convert(nn.Sequential(norm), 8)
    assert model[0].window == (8, 8)
    assert type(norm) is nn.InstanceNorm2d


# ------------------------------------------------------------------------- layers that are left, and why


def test_no_site_at_all_raises() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(tlsc.NoSiteError, match="Sequential has no layer that aggregates"):
        tlsc.convert(model, BASE)
    assert tlsc.convert(model, BASE, strict=False) is model
    with pytest.raises(tlsc.NoSiteError), tlsc.converted(model, BASE):
        pass
    with tlsc.converted(model, BASE, strict=False) as same:
        assert same is model


@pytest.mark.parametrize("make", [nn.Identity, nn.Sequential, nn.ReLU], ids=lambda make: make.__name__)
def test_models_without_parameters_and_without_sites(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(tlsc.NoSiteError):
        tlsc.convert(make(), BASE)


def test_nothing_converted_warns_with_the_reasons() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))
    with pytest.warns(tlsc.TLSCWarning, match=r"0: has running statistics"):
        tlsc.convert(model, BASE)


@pytest.mark.parametrize("training", [False, True])
def test_running_statistics_are_left_alone(training: bool) -> None:
    model = Restorer(Block(nn.InstanceNorm2d(8, track_running_stats=True)), HalfNorm(8)).train(training)
    site = tlsc.plan(model, BASE)[0]
    assert site.action == "left alone"
    assert "running statistics" in site.reason
    assert ("training mode" in site.reason) == training
    norm = model.body[0].norm
    tlsc.convert(model, BASE)
    assert model.body[0].norm is norm
    assert int(norm.num_batches_tracked) == 0
    assert isinstance(model.body[1].norm, tlsc.LocalInstanceNorm2d)


class Shifted(nn.InstanceNorm2d):
    """A subclass with its own forward is another layer."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.mean((2, 3), keepdim=True)


class Halved(nn.AdaptiveAvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


class Renamed(nn.GroupNorm):
    pass


class Looking(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if input[0, 0, 0, 0] > -1e9 else input


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = Halved(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pool(x)


@pytest.mark.parametrize("layer", [lambda: Shifted(3), lambda: Renamed(1, 3), Half])
@torch.no_grad()
def test_a_subclass_becomes_local_by_its_own_forward(layer: Callable[[], nn.Module]) -> None:
    model, x = nn.Sequential(with_random_weights(layer())).double(), image(30, 40)
    expected = reference_site(copy.deepcopy(model[0]), x, BASE)
    torch.testing.assert_close(tlsc.convert(model, BASE)(x), expected)


def test_a_subclass_whose_forward_cannot_be_traced_is_left_with_the_reason() -> None:
    model = Restorer(Block(Looking(2, 8)), HalfNorm(8))
    assert "branches on values" in reason(model, "body.0.norm")
    norm = model.body[0].norm
    tlsc.convert(model, BASE)
    assert model.body[0].norm is norm


class Silent(nn.InstanceNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(input)


def test_a_subclass_that_takes_no_statistic_is_in_the_plan_too() -> None:
    assert "a subclass of InstanceNorm2d" in reason(Restorer(Block(Silent(8)), HalfNorm(8)), "body.0.norm")


def test_a_forward_replaced_on_the_instance_is_respected() -> None:
    model = Restorer(Block(nn.InstanceNorm2d(8)), HalfNorm(8))
    model.body[0].norm.forward = lambda x: x * 2  # type: ignore[method-assign]
    assert "forward was replaced" in reason(model, "body.0.norm")
    tlsc.convert(model, BASE)
    assert type(model.body[0].norm) is nn.InstanceNorm2d


@pytest.mark.parametrize("size", [2, (2, 2), (1, 2), (None, 1), (1, None)], ids=str)
def test_pools_of_other_output_sizes_are_left(size: Any) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.InstanceNorm2d(3))
    assert f"output size {size}" in reason(model, "0")


def test_a_maximum_becomes_local_with_the_module_around_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.average, self.maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.average(x) + self.maximum(x))

    assert [(site.path, site.owner) for site in tlsc.plan(Both(), BASE)] == [("average", ""), ("maximum", "")]
    assert all(site.converted for site in tlsc.plan(Both(), BASE))


def test_a_classifier_head_is_left_and_gates_in_front_of_it_are_not() -> None:
    model = with_random_weights(Classifier()).double().eval()
    assert "one value per image" in reason(model, "pool")
    x = image(36, 44)
    before = model(x)
    pool = model.pool
    tlsc.convert(model, BASE)
    assert model.pool is pool
    assert is_local(model, "gates.0.gate.0")
    assert is_local(model, "gates.1.pool")
    assert model(x).shape == before.shape
    assert not torch.allclose(model(x), before)


@pytest.mark.filterwarnings("ignore::tlsc.TLSCWarning")
def test_a_pure_classifier_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert "Linear" not in reason(model, "1")
    assert "one value per image" in reason(model, "1")
    assert not changes(model)


def test_a_pool_whose_value_is_used_late_is_the_one_that_is_left() -> None:
    """The failing pool is not the one that was reached last before the failure."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.fc, self.gate = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 3), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            early = self.early(x)
            x = x * self.gate(x)
            return x * self.fc(early.flatten(1)).sum()

    early, gate = tlsc.plan(Late(), BASE)
    assert early.path == "early"
    assert not early.converted
    assert gate.converted


def test_a_gate_for_a_map_of_another_resolution_is_left() -> None:
    class Cheap(nn.Module):
        """Pools a reduced map and multiplies the full one."""

        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * self.pool(F.avg_pool2d(x, 2))

    assert "a map of another size" in reason(Cheap(), "pool")


def test_a_pool_whose_result_becomes_the_output_is_left() -> None:
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.norm = nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(x), self.pool(x)

    assert "output would change its shape" in reason(TwoOutputs(), "pool")


def test_refused_pools_are_found_in_a_model_that_takes_square_images_only() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.norm = LinearGate(3), nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] != x.shape[3]:
                raise ValueError("square images only")
            return self.norm(self.gate(x))

    model = tlsc.convert(Square(), 16)
    assert type(model.gate.pool) is nn.AdaptiveAvgPool2d
    assert model(image(32, 32, dtype=torch.float32)).shape == (1, 3, 32, 32)


def test_a_model_that_takes_one_size_only_is_converted_for_it() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = LinearGate(3)

        def forward(self, x: Tensor) -> Tensor:
            if tuple(x.shape[2:]) != (16, 16):
                raise ValueError("16×16 only")
            return self.gate(x)

    model, x = Fixed(), image(16, 16, dtype=torch.float32)
    before = model(x)
    torch.testing.assert_close(tlsc.convert(model, 16)(x), before)


# ------------------------------------------------------------------------------ wrappers and other models


def test_data_parallel_on_the_cpu() -> None:
    model = nn.DataParallel(with_random_weights(Restorer(HalfNorm(8), SequentialGate(8))).double())
    assert [site.path for site in tlsc.plan(model, BASE)] == ["module.body.0.norm", "module.body.1.gate.0"]
    assert changes(model)


@pytest.mark.parametrize("how", ["wrapper", "in place", "part"])
def test_a_compiled_model(how: str) -> None:
    torch._dynamo.reset()
    plain = with_random_weights(Restorer(HalfNorm(8))).double().eval()
    model: nn.Module = copy.deepcopy(plain)
    if how == "wrapper":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model.body[0].norm.compile(backend="eager")
    x = image(36, 44)
    with torch.no_grad():
        before = plain(x)
        torch.testing.assert_close(model(x), before)
        tlsc.convert(model, BASE)
        torch.testing.assert_close(model(x), tlsc.convert(plain, BASE)(x))
        torch.testing.assert_close(tlsc.revert(model)(x), before)


@torch.no_grad()
def test_a_layer_compiled_by_itself_becomes_local() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(torch.compile(nn.InstanceNorm2d(3), backend="eager"), nn.InstanceNorm2d(3))
    x = image(36, 44, dtype=torch.float32)
    before = model(x)
    assert [site.action for site in tlsc.plan(tlsc.convert(model, BASE))] == ["exact", "exact"]
    local = tlsc.functional.local_instance_norm
    torch.testing.assert_close(model(x), local(local(x, BASE), BASE))
    torch.testing.assert_close(tlsc.revert(model)(x), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_model_is_left_with_a_reason() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8)))
    with pytest.warns(tlsc.TLSCWarning, match="convert it before scripting"):
        assert tlsc.convert(scripted, BASE) is scripted
    mixed = nn.Sequential(scripted, nn.InstanceNorm2d(8))
    first, second = tlsc.plan(mixed, BASE)
    assert "scripted" in first.reason
    assert second.converted
    x = image(36, 44, dtype=torch.float32)
    assert tlsc.convert(mixed, BASE)(x).shape == (1, 8, 36, 44)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "reparametrise",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["weight_norm", "parametrizations.weight_norm", "spectral_norm", "parametrizations.spectral_norm"],
)
@pytest.mark.parametrize("training", [False, True])
def test_reparametrised_weights(reparametrise: Callable[[nn.Module], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model = Restorer(HalfNorm(8), SequentialGate(8)).train(training)
    reparametrise(model.head)
    reparametrise(model.body[0].conv_1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = identities(model)
    tlsc.convert(model, BASE)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model(image(36, 44, dtype=torch.float32)).sum().backward()
    assert identities(tlsc.revert(model)) == before
    model(image(36, 44, dtype=torch.float32)).sum().backward()


def test_modules_in_a_plain_list_are_called_behind_the_slot_s_back() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.InstanceNorm2d(3), nn.InstanceNorm2d(3)
            self.layers = [self.norm]

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.layers[0](x))

    assert "not called" in reason(Listed(), "norm")


def test_layers_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.group, self.pool = nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.group(input=self.norm(input=x)) * self.pool(input=x)

    model = Keyword()
    assert len(tlsc.plan(model, BASE).converted) == 3
    assert changes(model)


def test_images_without_a_batch_dimension() -> None:
    model = with_random_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)))
    gate = Pooled()
    x = image(36, 44, dtype=torch.float32)
    tlsc.convert(model, BASE)
    torch.testing.assert_close(model(x[0]), model(x)[0])
    for stride in (1, 3):
        tlsc.convert(gate, BASE, stride=stride)
        torch.testing.assert_close(gate(x[0]), gate(x)[0])
        assert gate(x[0, :, :8, :8]).shape == (3, 8, 8)


def test_weights_that_are_not_a_number_are_kept_too() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 3))
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    assert isinstance(tlsc.convert(model, BASE)[0], tlsc.LocalGroupNorm)


def test_a_model_on_the_meta_device() -> None:
    model = with_random_weights(UNet(SequentialGate(8), Grouped(8), HalfNorm(8), AttributeGate(8)))
    model.extra = nn.BatchNorm2d(8)
    plan = tlsc.plan(model, BASE)
    assert tlsc.plan(model.to("meta"), BASE) == plan
    tlsc.convert(model, BASE)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3, affine=True)).to("meta"), BASE)


def test_lazy_layers_must_be_initialised_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 1), nn.InstanceNorm2d(8))
    with pytest.raises(tlsc.ProbeError, match="lazy layers"):
        tlsc.convert(model, BASE)
    model(image(8, 8, dtype=torch.float32))
    assert isinstance(tlsc.convert(model, BASE)[1], tlsc.LocalInstanceNorm2d)


@torch.no_grad()
def test_autocast_and_inference_mode() -> None:
    model = with_random_weights(Restorer(HalfNorm(8), Grouped(8), SequentialGate(8)))
    x = image(36, 44, dtype=torch.float32)
    expected = tlsc.convert(copy.deepcopy(model), BASE)(x)
    with torch.inference_mode():
        tlsc.convert(model, BASE)
        torch.testing.assert_close(model(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        tlsc.convert(model, BASE)
        torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(model(x), expected)


def test_gradients_flow_through_a_converted_model() -> None:
    """Converted in inference mode or not, the model can be trained afterwards."""
    model = with_random_weights(Restorer(HalfNorm(8), AttributeGate(8)))
    with torch.inference_mode():
        tlsc.convert(model, BASE)
    model(image(36, 44, dtype=torch.float32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ------------------------------------------------------------------------------- reverting, converting twice


def test_revert_on_a_part_of_the_model() -> None:
    model = Restorer(HalfNorm(8), HalfNorm(8))
    norms = model.body[0].norm, model.body[1].norm
    tlsc.convert(model, BASE)
    tlsc.revert(model.body[0])
    assert model.body[0].norm is norms[0]
    assert isinstance(model.body[1].norm, tlsc.LocalInstanceNorm2d)
    tlsc.revert(model)
    assert model.body[1].norm is norms[1]


def test_revert_on_a_wrapper() -> None:
    model = Restorer(HalfNorm(8))
    before = identities(model)
    tlsc.revert(nn.DataParallel(tlsc.convert(model, BASE)))
    assert identities(model) == before


def test_revert_on_a_model_that_was_never_converted() -> None:
    model = Restorer(HalfNorm(8))
    before = identities(model)
    assert tlsc.revert(model) is model
    assert identities(model) == before


def test_converting_with_fewer_sites_puts_the_others_back() -> None:
    model = Restorer(HalfNorm(8), HalfNorm(8))
    norm = model.body[1].norm
    tlsc.convert(model, BASE)
    tlsc.convert(model, BASE, include="body.0.*")
    assert isinstance(model.body[0].norm, tlsc.LocalInstanceNorm2d)
    assert model.body[1].norm is norm


def test_a_conversion_that_fails_leaves_the_earlier_one() -> None:
    model = tlsc.convert(Restorer(HalfNorm(8)), BASE)
    before = identities(model)
    with pytest.raises(ArgumentValueError):
        tlsc.convert(model, 0)
    with pytest.raises(ArgumentValueError):
        tlsc.convert(model, 8, include="nowhere")
    with pytest.raises(ArgumentValueError), tlsc.converted(model, -1):
        pass
    assert identities(model) == before
    assert model.body[0].norm.window == BASE


def test_with_blocks_can_be_nested() -> None:
    model = Restorer(HalfNorm(8))
    norm = model.body[0].norm
    with tlsc.converted(model, 32):
        with tlsc.converted(model, 16):
            with tlsc.converted(model, 8):
                assert model.body[0].norm.window == (8, 8)
            assert model.body[0].norm.window == (16, 16)
        assert model.body[0].norm.window == (32, 32)
    assert model.body[0].norm is norm


def test_what_happens_inside_the_with_block_stays() -> None:
    """Training flag and parameters are the model's, not the conversion's."""
    model = tlsc.convert(Restorer(HalfNorm(8)).train(), 32)
    with tlsc.converted(model, 16):
        model.eval().double()
    assert model.body[0].norm.window == (32, 32)
    assert not any(module.training for module in model.modules())
    tlsc.revert(model)
    assert not any(module.training for module in model.modules())
    assert model.body[0].norm.weight.dtype == torch.float64


def test_reverting_or_converting_inside_the_with_block() -> None:
    model = Restorer(HalfNorm(8))
    before = identities(model)
    with tlsc.converted(model, 16):
        tlsc.revert(model)
    assert identities(model) == before
    with tlsc.converted(model, 16):
        tlsc.convert(model, 8)
    assert identities(model) == before


def test_a_layer_replaced_by_the_user_after_converting_stays() -> None:
    model = tlsc.convert(Restorer(HalfNorm(8), HalfNorm(8)), BASE)
    model.body[0].norm = nn.InstanceNorm2d(4)
    mine = model.body[0].norm
    tlsc.revert(model)
    assert model.body[0].norm is mine


# ------------------------------------------------------------------------------------ include and exclude


def three() -> nn.Module:
    return Restorer(HalfNorm(8), Grouped(8), SequentialGate(8))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, [0, 1, 2]),
        ("body.0.norm", None, [0]),
        ("body.*", None, [0, 1, 2]),
        ("*.norm", None, [0, 1]),
        (["body.0.*", "*.gate.0"], None, [0, 2]),
        (("body.0.*",), None, [0]),
        (None, "*.norm", [2]),
        (None, ["body.0.*", "body.1.*"], [2]),
        ("body.[01].*", "body.1.*", [0]),
        (lambda module, path: isinstance(module, nn.GroupNorm), None, [1]),
        (None, lambda module, path: path.endswith("norm"), [2]),
        (lambda module, path: path != "", lambda module, path: isinstance(module, nn.AdaptiveAvgPool2d), [0, 1]),
    ],
)
def test_include_and_exclude(include: Any, exclude: Any, expected: list[int]) -> None:
    paths = ["body.0.norm", "body.1.norm", "body.2.gate.0"]
    plan = tlsc.plan(three(), BASE, include=include, exclude=exclude)
    assert [site.path for site in plan.converted] == [paths[i] for i in expected]
    for site in plan.left:
        assert site.reason in ("not in include", "in exclude")
    model = tlsc.convert(three(), BASE, include=include, exclude=exclude)
    assert [is_local(model, path) for path in paths] == [i in expected for i in range(3)]


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(name: str) -> None:
    model = three()
    before = identities(model)
    with pytest.raises(ArgumentValueError, match=rf"{name}: the pattern 'encoder\.\*' matches no path"):
        tlsc.convert(model, BASE, **{name: ["body.0.*", "encoder.*"]})
    assert identities(model) == before


@pytest.mark.parametrize("bad", [3, [3], b"body", {"body"}], ids=repr)
def test_a_selection_of_another_type_is_an_error(bad: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="include must be a predicate"):
        tlsc.convert(three(), BASE, include=bad)


def test_an_error_in_a_predicate_comes_through_and_leaves_the_model() -> None:
    model = tlsc.convert(three(), BASE)
    before = identities(model)

    def broken(module: nn.Module, path: str) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tlsc.convert(model, BASE, exclude=broken)
    assert identities(model) == before


def test_an_alias_can_be_named_too() -> None:
    assert tlsc.plan(shared_block(), BASE, include="body.2.*")[0].converted
    assert tlsc.plan(shared_block(), BASE, include=lambda module, path: path == "body.2.norm")[0].converted
    assert not tlsc.plan(shared_block(), BASE, exclude="body.2.*")[0].converted


# -------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (0, r"base_size must be .*, got 0"),
        (-1, r"base_size must be .*, got -1"),
        ((0, 4), r"base_size\[0\] must be .*, got 0"),
        ((4, -2), r"base_size\[1\] must be .*, got -2"),
        ((1, 2, 3), r"base_size must be .*, got 3 elements: \(1, 2, 3\)"),
        ((1,), r"base_size must be .*, got 1 elements"),
    ],
)
@pytest.mark.parametrize("call", [tlsc.convert, tlsc.plan], ids=["convert", "plan"])
def test_base_sizes_of_a_wrong_value(call: Callable[..., Any], bad: Any, message: str) -> None:
    model = three()
    before = identities(model)
    with pytest.raises(ArgumentValueError, match=message) as caught:
        call(model, bad)
    assert isinstance(caught.value, ValueError)
    assert identities(model) == before


@pytest.mark.parametrize("bad", [1.5, "64", True, None, (64.0, 64), (True, 64), torch.tensor(64), {64}], ids=repr)
@pytest.mark.parametrize("call", [tlsc.convert, tlsc.plan], ids=["convert", "plan"])
def test_base_sizes_of_a_wrong_type(call: Callable[..., Any], bad: Any) -> None:
    model = three()
    if call is tlsc.plan and bad is None:  # the plan of a converted model
        with pytest.raises(ArgumentValueError, match="is not converted"):
            call(model, bad)
        return
    before = identities(model)
    with pytest.raises(ArgumentTypeError, match="base_size") as caught:
        call(model, bad)
    assert isinstance(caught.value, TypeError)
    assert identities(model) == before


@pytest.mark.parametrize(
    ("bad", "error"), [(0, ArgumentValueError), (-2, ArgumentValueError), (1.5, ArgumentTypeError)]
)
def test_strides_that_cannot_be_used(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"stride must be a positive int, got {bad}"):
        tlsc.convert(three(), BASE, stride=bad)


@pytest.mark.parametrize(
    "bad", ["model", None, nn.InstanceNorm2d, lambda x: x], ids=["str", "None", "class", "function"]
)
@pytest.mark.parametrize("call", [tlsc.convert, tlsc.plan], ids=["convert", "plan"])
def test_what_is_not_a_module(call: Callable[..., Any], bad: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"model must be a torch\.nn\.Module"):
        call(bad, BASE)
    with pytest.raises(ArgumentTypeError, match=r"model must be a torch\.nn\.Module"):
        tlsc.revert(bad)
    with pytest.raises(ArgumentTypeError), tlsc.converted(bad, BASE):
        pass


def test_a_list_and_a_numpy_integer_will_do() -> None:
    import numpy as np

    assert tlsc.plan(three(), [20, 28]).base_size == BASE  # type: ignore[arg-type]
    assert tlsc.plan(three(), np.int64(20)).base_size == (20, 20)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- register


class Centre(nn.Module):
    """Subtracts each channel's mean and multiplies by a learned scale."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) * self.scale


class LocalCentre(nn.Module):
    def __init__(self, original: Centre, window: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        self.scale = original.scale
        self.window, self.stride = window, stride

    def forward(self, x: Tensor) -> Tensor:
        return (x - tlsc.functional.local_mean(x, self.window, self.stride)) * self.scale


@pytest.fixture
def register() -> Iterator[Callable[..., Any]]:
    """``tlsc.register`` whose registrations do not outlive the test."""
    handles: list[Any] = []

    def registering(*args: Any) -> Any:
        handles.append(tlsc.register(*args))
        return handles[-1]

    yield registering
    for handle in reversed(handles):
        handle.remove()


def keyword_stride(module: Centre, window: tuple[int, int], *, stride: int) -> nn.Module:
    return LocalCentre(module, window, stride)


@pytest.mark.parametrize(
    ("factory", "action"),
    [
        (lambda module, window: LocalCentre(module, window), "exact"),
        (lambda module, window, stride: LocalCentre(module, window, stride), "strided"),
        (lambda module, window, stride=1: LocalCentre(module, window, stride), "strided"),
        (keyword_stride, "strided"),
        (LocalCentre, "strided"),
        (lambda *args: LocalCentre(*args), "strided"),
    ],
    ids=["(module, window)", "(…, stride)", "(…, stride=1)", "(…, *, stride)", "class", "*args"],
)
def test_factories_of_every_signature(register: Callable[..., Any], factory: Any, action: str) -> None:
    register(Centre, factory)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), Centre())
    assert tlsc.plan(model, BASE, stride=3)[0].action == action
    assert tlsc.plan(model, BASE)[0].operation == "Centre"
    centre = model[1]
    tlsc.convert(model, BASE, stride=3)
    assert isinstance(model[1], LocalCentre)
    assert model[1].window == (10, 14)
    assert model[1].stride == (3 if action == "strided" else 1)
    assert model[1].scale is centre.scale
    assert tlsc.revert(model)[1] is centre


@pytest.mark.parametrize(
    "factory", [lambda: None, lambda module: module, lambda a, b, c, d: a], ids=["0", "1", "4"]
)
def test_factories_that_cannot_be_called_are_refused_at_once(factory: Any) -> None:
    with pytest.raises(ArgumentValueError, match="factory must take"):
        tlsc.register(Centre, factory)


@pytest.mark.parametrize(
    ("args", "name"),
    [((Centre(), LocalCentre), "module_type"), ((int, LocalCentre), "module_type"), ((Centre, 3), "factory")],
)
def test_what_cannot_be_registered(args: tuple[Any, Any], name: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
        tlsc.register(*args)


def failing(module: nn.Module, window: tuple[int, int]) -> nn.Module:
    raise RuntimeError("out of patience")


class Unscaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class OtherScale(Centre):
    """The same key, other values."""

    def __init__(self, module: Centre, window: tuple[int, int]) -> None:
        super().__init__()
        self.scale.data.fill_(3.0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (failing, r"failed on window \(20, 28\): RuntimeError: out of patience"),
        (lambda module, window: None, "returned None, not a module"),
        (lambda module, window: "local", "returned 'local', not a module"),
        (lambda module, window: Centre, "not a module"),
        (lambda module, window: module, "returned the module it was given"),
        (lambda module, window: Unscaled(), r"changed the state_dict, from .*scale.* to \{\}"),
        (OtherScale, "changed the state_dict"),
        (lambda module, window: Centre(4), r"changed the state_dict, from .*\(3, 1, 1\).* to .*\(4, 1, 1\)"),
    ],
    ids=["raises", "None", "str", "class", "same", "fewer keys", "other values", "other shape"],
)
def test_a_factory_that_misbehaves_leaves_the_model_untouched(
    register: Callable[..., Any], factory: Any, message: str
) -> None:
    register(Centre, factory)
    model = nn.Sequential(nn.InstanceNorm2d(3), Centre(), nn.InstanceNorm2d(3))
    before = identities(model)
    with pytest.raises(tlsc.TLSCError, match=message) as caught:
        tlsc.convert(model, BASE)
    assert "1: the factory registered for Centre" in str(caught.value)
    assert identities(model) == before
    # An earlier conversion stays too.
    tlsc.convert(model, 8, exclude="1")
    before = identities(model)
    with pytest.raises(tlsc.TLSCError), tlsc.converted(model, BASE):
        pass
    assert identities(model) == before


def test_one_module_for_two_layers_is_refused(register: Callable[..., Any]) -> None:
    only = nn.Identity()
    register(Unscaled, lambda module, window: only)
    model = nn.Sequential(Unscaled(), Unscaled())
    with pytest.raises(tlsc.TLSCError, match=r"1: .* returned one module for two layers"):
        tlsc.convert(model, BASE)
    assert classes(model) == ["Sequential", "Unscaled", "Unscaled"]


def test_removing_a_registration() -> None:
    model = nn.Sequential(Centre(), nn.InstanceNorm2d(3))
    handle = tlsc.register(Centre, LocalCentre)
    assert [site.operation for site in tlsc.plan(model, BASE)] == ["Centre", "InstanceNorm2d"]
    handle.remove()
    assert [site.operation for site in tlsc.plan(model, BASE)] == ["mean", "InstanceNorm2d"]
    handle.remove()


def test_the_last_registration_counts_and_removing_it_brings_the_earlier_one_back() -> None:
    class Mine(nn.Module):
        def __init__(self, module: nn.Module, window: tuple[int, int]) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(nn.InstanceNorm2d(3))
    handle = tlsc.register(nn.InstanceNorm2d, Mine)
    try:
        assert isinstance(tlsc.convert(model, BASE)[0], Mine)
    finally:
        handle.remove()
    assert isinstance(tlsc.convert(model, BASE)[0], tlsc.LocalInstanceNorm2d)


def test_a_converted_model_can_be_reverted_after_the_registration_is_gone() -> None:
    model = nn.Sequential(Centre())
    centre = model[0]
    handle = tlsc.register(Centre, LocalCentre)
    tlsc.convert(model, BASE)
    handle.remove()
    assert tlsc.revert(model)[0] is centre


class Attention(nn.Module):
    """A layer with known layers inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.InstanceNorm2d(3, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class LocalAttention(nn.Module):
    def __init__(self, original: Attention, window: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.window = original.inner, window

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_registered_parent_owns_the_sites_inside_it(register: Callable[..., Any]) -> None:
    register(Attention, LocalAttention)
    model = nn.Sequential(Attention(), nn.InstanceNorm2d(3))
    norm = model[0].inner[0]
    assert [site.path for site in tlsc.plan(model, BASE)] == ["0", "1"]
    with pytest.warns(tlsc.TLSCWarning, match=r"through 0.* \(.*which the plan takes for local"):
        tlsc.convert(model, BASE)  # the stand-in holds the very norm that it stands for
    assert isinstance(model[0], LocalAttention)
    assert model[0].inner[0] is norm
    tlsc.convert(model, 8, check=False)
    assert model[0].window == (8, 8)
    assert type(tlsc.revert(model)[0]) is Attention


def test_a_registered_root(register: Callable[..., Any]) -> None:
    register(Attention, LocalAttention)
    model = Attention()
    norm = model.inner[0]
    assert isinstance(tlsc.convert(model, BASE, check=False), LocalAttention)
    assert type(tlsc.revert(model)) is Attention
    assert model.inner[0] is norm


def test_a_subclass_of_a_registered_type_is_another_layer(register: Callable[..., Any]) -> None:
    class Wider(Centre):
        pass

    register(Centre, LocalCentre)
    model = tlsc.convert(nn.Sequential(Wider(), Centre()), BASE)
    assert isinstance(model[0], Wider)
    assert is_local(model, "0")
    assert isinstance(model[1], LocalCentre)


def test_hooks_and_flags_of_a_registered_layer(register: Callable[..., Any]) -> None:
    register(Centre, LocalCentre)
    model = nn.Sequential(Centre())
    centre = model[0].eval()
    fired: list[str] = []
    centre.register_forward_hook(lambda *args: fired.append("forward"))
    centre.register_full_backward_hook(lambda *args: fired.append("backward"))
    tlsc.convert(model, BASE)
    assert model.training
    assert not model[0].training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(image(36, 44, dtype=torch.float32).requires_grad_()).sum().backward()
    assert fired == ["forward", "backward"]
    model.train()
    assert tlsc.revert(model)[0].training


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_into_a_registered_layer_stay_after_revert(
    register: Callable[..., Any], assign: bool
) -> None:
    register(Centre, LocalCentre)
    model = tlsc.convert(nn.Sequential(Centre()), BASE)
    model.load_state_dict({"0.scale": torch.full((3, 1, 1), 5.0)}, assign=assign)
    model.double()
    tlsc.revert(model)
    assert torch.equal(model[0].scale, torch.full((3, 1, 1), 5.0, dtype=torch.float64))


def test_a_root_that_cannot_change_its_class_says_so(register: Callable[..., Any]) -> None:
    class Slotted(nn.Module):
        __slots__ = ("extra",)

        def forward(self, x: Tensor) -> Tensor:
            return x

    register(Slotted, lambda module, window: nn.Identity())
    model = Slotted()
    with pytest.raises(tlsc.TLSCError, match="cannot become Identity in place"):
        tlsc.convert(model, BASE)
    assert type(model) is Slotted
    assert model(torch.ones(1)) == 1
    assert type(tlsc.convert(nn.Sequential(model), BASE)[0]) is nn.Identity


def test_the_strided_form_is_the_factory_s_business(register: Callable[..., Any]) -> None:
    seen: list[tuple[tuple[int, int], int]] = []

    def factory(module: Centre, window: tuple[int, int], stride: int) -> nn.Module:
        seen.append((window, stride))
        return LocalCentre(module, window, stride)

    register(Centre, factory)
    tlsc.convert(nn.Sequential(Centre()), (16, 24), stride=5)
    assert seen == [((16, 24), 5)]
