"""``convert(model, plan=…)``: the sites that a plan converts, each with its own window, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tlsc
from tlsc.errors import ArgumentTypeError, ArgumentValueError

from ..networks import AttributeGate, Grouped, HalfNorm, SequentialGate, UNet, image, with_random_weights


def _network() -> nn.Module:
    return with_random_weights(UNet(SequentialGate(8), Grouped(8), HalfNorm(8), AttributeGate(8))).eval()


def _mixed(model: nn.Module) -> tlsc.Plan:
    """The first site left, the second over 16, the others over 32 pixels."""
    large, small = tlsc.plan(model, 32), tlsc.plan(model, 16)
    first = replace(large[0], action="left global", window=None, owner=None, reason="tried: better whole")
    second = replace(large[1], window=small[1].window, base_size=(16, 16))
    return replace(large, sites=(first, second, *large.sites[2:]))


def test_each_site_has_the_window_of_the_plan(tmp_path: Path) -> None:
    """The same sites converted one after the other by include, each with its window, give the same image."""
    model, x = _network(), image(24, 40).float()
    plan = _mixed(model)
    plan.save(tmp_path / "plan.json")
    loaded = tlsc.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    before = {path: type(part) for path, part in model.named_modules()}
    assert tlsc.plan(tlsc.convert(model, plan=loaded)) == plan
    out = model(x)
    parts = dict(model.named_modules())
    expected = _network()
    for size, names in ((32, ["blocks.2*", "up_block*"]), (16, ["blocks.1*"])):
        other = tlsc.convert(_network(), size, include=names)
        for path, part in other.named_modules():
            if path and type(part) is not before[path]:
                assert type(parts[path]).__name__ == type(part).__name__
                parent, _, name = path.rpartition(".")
                setattr(expected.get_submodule(parent), name, part)
    torch.testing.assert_close(out, expected(x))
    assert not torch.allclose(out, tlsc.convert(_network(), 32)(x))
    assert "base_size 32×32 (smaller at 1), stride 1: 3 of 4 sites" in str(plan)


def test_a_plan_of_nothing_leaves_the_model_as_it_is() -> None:
    model, x = _network(), image(24, 40).float()
    sites = tuple(replace(site, action="left global", window=None, owner=None) for site in tlsc.plan(model, 32))
    plan = replace(tlsc.plan(model, 32), sites=sites)
    expected = model(x)
    assert torch.equal(tlsc.convert(model, plan=plan)(x), expected)
    with tlsc.converted(model, plan=_mixed(model)):
        assert not torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)


def test_a_calibrated_plan_brings_its_corrections() -> None:
    images = [torch.rand(3, 64, 72, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    model = tlsc.convert(_network(), 16)
    plan = tlsc.calibrate(model, images, 16)
    other = tlsc.convert(_network(), plan=plan)
    assert tlsc.plan(other) == plan
    assert torch.equal(other(images[0][None]), model(images[0][None]))


def test_what_is_refused() -> None:
    model = _network()
    plan = _mixed(model)
    with pytest.raises(ArgumentTypeError, match="give base_size"):
        tlsc.convert(model)
    with pytest.raises(ArgumentValueError, match="leave base_size and stride out"):
        tlsc.convert(model, 32, plan=plan, stride=2)
    with pytest.raises(ArgumentTypeError, match=r"must be a tlsc\.Plan"):
        tlsc.convert(model, plan="plan.json")  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match=r"another model: .*it has no such site"):
        tlsc.convert(nn.Sequential(nn.InstanceNorm2d(3)), plan=plan)
    wrong = replace(plan, sites=(*plan.sites[:3], replace(plan[3], window=(9, 9))))
    with pytest.raises(ArgumentValueError, match=r"would have the window \(32, 32\), not \(9, 9\)"):
        tlsc.convert(model, plan=wrong)
