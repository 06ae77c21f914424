"""The plan: what a conversion would do, as data and as a table, and nothing done."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import tlsc

from .networks import (
    BASE,
    NETWORKS,
    AttributeGate,
    Classifier,
    Grouped,
    HalfNorm,
    Network,
    OneSlotTwoSizes,
    Restorer,
    SequentialGate,
    TwoScales,
    UNet,
    image,
    shared_block,
    siblings_share,
    with_random_weights,
)


def u_net() -> nn.Module:
    return with_random_weights(UNet(SequentialGate(8), Grouped(8), HalfNorm(8), AttributeGate(8))).eval()


def test_sites_stand_in_call_order_not_in_the_order_of_definition() -> None:
    assert [site.path for site in tlsc.plan(u_net(), 32)] == [
        "blocks.0.gate.0",
        "blocks.1.norm",
        "blocks.2.norm",
        "up_block.pool",
    ]


def test_each_site_has_its_own_window_with_height_and_width_told_apart() -> None:
    windows = {site.path: (site.operation, site.feature_size, site.window) for site in tlsc.plan(u_net(), (24, 64))}
    assert windows == {
        "blocks.0.gate.0": ("AdaptiveAvgPool2d", (24, 64), (24, 64)),
        "blocks.1.norm": ("GroupNorm", (12, 32), (12, 32)),
        "blocks.2.norm": ("InstanceNorm2d", (6, 16), (6, 16)),
        "up_block.pool": ("AdaptiveAvgPool2d", (24, 64), (24, 64)),
    }


def test_one_module_in_two_slots_is_two_sites_with_two_windows() -> None:
    plan = tlsc.plan(TwoScales(), BASE)
    assert [(site.path, site.window) for site in plan] == [("high.norm", (20, 28)), ("deep.norm", (10, 14))]


def test_one_place_under_several_paths_is_one_site_with_aliases() -> None:
    (site,) = tlsc.plan(shared_block(), BASE)
    assert (site.path, site.aliases) == ("body.0.norm", ("body.2.norm",))
    assert [site.path for site in tlsc.plan(siblings_share(), BASE)] == [f"body.{i}.norm" for i in range(3)]


def test_the_action_is_strided_for_pools_and_exact_for_norms() -> None:
    assert [site.action for site in tlsc.plan(u_net(), 32)] == ["exact"] * 4
    assert [site.action for site in tlsc.plan(u_net(), 32, stride=4)] == ["strided", "exact", "exact", "strided"]


def test_a_plan_is_a_sequence_of_sites() -> None:
    plan = tlsc.plan(Classifier(), BASE)
    assert len(plan) == len(list(plan)) == len(plan.sites) == 3
    assert plan[0] is plan.sites[0]
    assert plan[-1] is plan.sites[2]
    assert [site.path for site in plan.converted] == ["gates.0.gate.0", "gates.1.pool"]
    assert [site.path for site in plan.left] == ["pool"]
    assert all(site.converted for site in plan.converted)
    assert not any(site.converted for site in plan.left)
    with pytest.raises(IndexError):
        plan[3]


def test_a_plan_cannot_be_changed() -> None:
    plan = tlsc.plan(u_net(), 32)
    with pytest.raises(FrozenInstanceError):
        plan.stride = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan[0].window = (1, 1)  # type: ignore[misc]


def test_as_dict_goes_through_json() -> None:
    plan = tlsc.plan(Classifier(), (20, 28), stride=2)
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["base_size"] == [20, 28]
    assert data["stride"] == 2
    assert data["sites"][0] == {
        "path": "gates.0.gate.0",
        "operation": "AdaptiveAvgPool2d",
        "feature_size": [20, 28],
        "window": [20, 28],
        "action": "strided",
        "reason": "",
        "aliases": [],
        "owner": "gates.0",
        "fit": None,
        "base_size": None,
    }
    left = data["sites"][2]
    assert (left["path"], left["window"], left["action"]) == ("pool", None, "left global")
    assert "one value per image" in left["reason"]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_table_is_aligned_and_holds_every_path_and_reason(network: Network) -> None:
    plan = tlsc.plan(network(), BASE)
    head, blank, names, rule, *rows = str(plan).splitlines()
    assert head.startswith(f"base_size 20×28, stride 1: {len(plan.converted)} of {len(plan)} site")
    assert blank == ""
    # A column begins where a dash follows a space; no cell crosses into the next column.
    starts = [i for i in range(len(rule)) if rule[i] == "-" and (i == 0 or rule[i - 1] == " ")]
    assert len(starts) == 6
    assert [names[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] == [
        "path",
        "operation",
        "feature size",
        "window",
        "action",
        "reason",
    ]
    for row in rows:
        assert all(row[start - 2 : start].strip() == "" for start in starts[1:])
    columns = [" ".join(row[a:b].strip() for row in rows) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for site in plan:
        for path in (site.path or "(the model)", *site.aliases):
            assert path in (columns[0].replace(",", " ").split() if site.path else columns[0])
        assert site.operation in columns[1]
        assert site.reason in columns[5]
        if site.window:
            assert "×".join(map(str, site.window)) in columns[3]


def test_long_reasons_wrap_inside_their_column() -> None:
    assert max(len(line) for line in str(tlsc.plan(Classifier(), 32)).splitlines()) < 160


def test_a_long_path_stays_in_one_piece() -> None:
    model: nn.Module = nn.InstanceNorm2d(3)
    for name in ("block", "residual_dense_block_number_one", "transformer_layers"):
        outer = nn.Sequential()
        outer.add_module(name, model)
        model = outer
    assert "transformer_layers.residual_dense_block_number_one.block " in str(tlsc.plan(model, 16))


def test_the_table_tells_one_site_from_several() -> None:
    assert "1 of 1 site becomes local" in str(tlsc.plan(nn.InstanceNorm2d(3), 32))
    assert "4 of 4 sites become local" in str(tlsc.plan(u_net(), 32))


def test_a_model_without_any_site_has_an_empty_plan() -> None:
    plan = tlsc.plan(nn.Sequential(nn.Conv2d(3, 3, 1)), (32, 48))
    assert len(plan) == 0
    assert str(plan) == "base_size 32×48, stride 1: 0 of 0 sites become local"


def test_planning_changes_nothing() -> None:
    model = u_net()
    modules = [(path, id(module)) for path, module in model.named_modules()]
    dicts = [dict(module.__dict__) for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tlsc.plan(model, 32, stride=4)
    assert [(path, id(module)) for path, module in model.named_modules()] == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for module, before in zip(model.modules(), dicts, strict=True):
        assert module.__dict__.keys() == before.keys()
        assert all(module.__dict__[key] is value for key, value in before.items())


@torch.no_grad()
def test_a_converted_model_is_planned_as_its_original_and_stays_converted() -> None:
    model, x = u_net(), image(40, 48, dtype=torch.float32)
    expected = tlsc.plan(model, 16)
    tlsc.convert(model, BASE)
    modules, before = [id(module) for module in model.modules()], model(x)
    assert tlsc.plan(model, 16) == expected
    assert [id(module) for module in model.modules()] == modules
    assert torch.equal(model(x), before)


def test_a_converted_root_is_planned_as_its_original_and_stays_converted() -> None:
    norm = tlsc.convert(nn.InstanceNorm2d(3), 16)
    assert tlsc.plan(norm, 8)[0].operation == "InstanceNorm2d"
    assert isinstance(norm, tlsc.LocalInstanceNorm2d)
    assert norm.window == (16, 16)


def test_a_slot_called_on_several_sizes_says_which() -> None:
    first, second = tlsc.plan(OneSlotTwoSizes(), BASE)
    assert first.action == "left global"
    assert "20×28, 10×14" in first.reason
    assert second.converted


def test_a_site_that_is_not_reached_says_so() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.InstanceNorm2d(3), nn.InstanceNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    used, unused = tlsc.plan(Unused(), 32)
    assert used.converted
    assert unused.action == "left global"
    assert "not called" in unused.reason
    assert unused.feature_size is None


def test_the_same_plan_whatever_the_training_mode() -> None:
    model = Restorer(HalfNorm(8), SequentialGate(8))
    assert tlsc.plan(model.train(), 32) == tlsc.plan(model.eval(), 32)
