"""Every architecture of spandrel and spandrel_extra_arches, and the layers of timm with global statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlsc

from .test_owners import reference
from .zoo import ENTRIES, Entry, examine

pytest.importorskip("spandrel")
pytest.importorskip("spandrel_extra_arches")
pytest.importorskip("timm")
WINDOW = (8, 6)
SLOW = {  # planned and compared far away by ``python -m benchmarks coverage`` alone
    "CodeFormer",
    "MAT",
    "DDColor",
    "RealCUGAN 2×",
    "RealCUGAN 3×",
    "RealCUGAN 4×",
    "KBNet-l",
    "SCUNet",
    "LaMa",
    "Uformer",
}

ALWAYS = {  # one of each kind; the others with ``pytest -m slow``
    *("SwinIR", "FBCNN", "DITN", "NAFNet", "PLKSR", "RCAN", "MoSR"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_architecture_is_listed() -> None:
    import spandrel
    import spandrel_extra_arches

    registries = spandrel.MAIN_REGISTRY, spandrel_extra_arches.EXTRA_REGISTRY
    names = {support.architecture.id for registry in registries for support in registry.architectures()}
    listed = {entry.path.split(".")[2] for entry in ENTRIES}
    assert names == listed
    document = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert all(f"| {entry.name} |" in document for entry in ENTRIES)


def _timed(entry: Entry) -> Any:
    return pytest.param(entry, id=entry.name, marks=[] if entry.name in ALWAYS else [pytest.mark.slow])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", [_timed(entry) for entry in ENTRIES if entry.name not in SLOW])
def test_architecture(entry: Entry) -> None:
    """It builds, plans and converts; I1 holds; and no far pixel has influence that the plan is silent about."""
    result = examine(entry, far=not entry.heavy, check=not entry.heavy)
    assert result.identity <= entry.bar
    assert all(site.reason for site in result.plan.left)
    if not result.plan.left and not entry.far:
        assert result.after is None or result.after <= entry.bar
        assert not result.sources
    if result.before is not None and entry.far:
        assert result.before > entry.bar, "the note is out of date"


class ChannelsLast(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Selective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = timm_layer("selective_kernel", "SelectiveKernelAttn", 8, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([x, x * x], 1)
        return (paths * self.attn(paths)).sum(1)


class Pooled(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.pool = timm_layer("adaptive_avgmax_pool", "SelectAdaptivePool2d", pool_type=how)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pool(x).view(x.shape[0], -1, 1, 1)


def timm_layer(module: str, name: str, *args: Any, **kwargs: Any) -> nn.Module:
    import importlib

    made: nn.Module = getattr(importlib.import_module(f"timm.layers.{module}"), name)(*args, **kwargs)
    return made


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SEModule": lambda: timm_layer("squeeze_excite", "SEModule", 8, rd_channels=4),
    "SEModule, maximum too": lambda: timm_layer(
        "squeeze_excite", "SEModule", 8, rd_channels=4, add_maxpool=True, norm_layer=nn.BatchNorm2d
    ),
    "SqueezeExciteCl": lambda: ChannelsLast(timm_layer("squeeze_excite", "SqueezeExciteCl", 8, rd_channels=4)),
    "EffectiveSEModule": lambda: timm_layer("squeeze_excite", "EffectiveSEModule", 8),
    "EcaModule": lambda: timm_layer("eca", "EcaModule", 8),
    "EcaModule, MLP": lambda: timm_layer("eca", "EcaModule", 8, use_mlp=True),
    "CecaModule": lambda: timm_layer("eca", "CecaModule", 8),
    "CbamModule": lambda: timm_layer("cbam", "CbamModule", 8, rd_channels=4, spatial_kernel_size=1),
    "LightCbamModule": lambda: timm_layer("cbam", "LightCbamModule", 8, rd_channels=4, spatial_kernel_size=1),
    # With use_mlp its constructor fails in timm 1.0.31.
    "GatherExcite": lambda: timm_layer("gather_excite", "GatherExcite", 8, use_mlp=False, add_maxpool=True),
    "GlobalContext": lambda: timm_layer("global_context", "GlobalContext", 8, rd_channels=4, fuse_add=True),
    "GlobalContext, mean": lambda: timm_layer("global_context", "GlobalContext", 8, rd_channels=4, use_attn=False),
    "GlobalResponseNorm": lambda: timm_layer("grn", "GlobalResponseNorm", 8, channels_last=False),
    "GlobalResponseNorm, last": lambda: ChannelsLast(timm_layer("grn", "GlobalResponseNorm", 8)),
    "FilterResponseNormTlu2d": lambda: timm_layer("filter_response_norm", "FilterResponseNormTlu2d", 8),
    "FilterResponseNormAct2d": lambda: timm_layer("filter_response_norm", "FilterResponseNormAct2d", 8),
    **{
        f"EvoNorm2d{kind}": lambda kind=kind: timm_layer("evo_norm", f"EvoNorm2d{kind}", 8, groups=2)  # type: ignore[misc]
        for kind in ("S0", "S0a", "S1", "S1a", "S2", "S2a")
    },
    **{
        f"EvoNorm2d{kind}": lambda kind=kind: timm_layer("evo_norm", f"EvoNorm2d{kind}", 8)  # type: ignore[misc]
        for kind in ("B0", "B1", "B2")
    },
    "GroupNorm": lambda: timm_layer("norm", "GroupNorm", 8, num_groups=2),
    "GroupNorm1": lambda: timm_layer("norm", "GroupNorm1", 8),
    "GroupNormAct": lambda: timm_layer("norm_act", "GroupNormAct", 8, 2),
    "GroupNorm1Act": lambda: timm_layer("norm_act", "GroupNorm1Act", 8),
    "SelectiveKernelAttn": Selective,
    "SplitAttn": lambda: timm_layer("split_attn", "SplitAttn", 8, kernel_size=1, padding=0, rd_channels=4),
    "NonLocalAttn": lambda: timm_layer("non_local_attn", "NonLocalAttn", 8),
    "SelectAdaptivePool2d, fast": lambda: Pooled("fast"),
    "SelectAdaptivePool2d, avgmax": lambda: Pooled("avgmax"),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_timm_layer_equals_the_original_on_every_window(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), LAYERS[name]()).double().eval()
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    original = copy.deepcopy(model)
    plan = tlsc.plan(model, WINDOW)
    assert plan.converted
    assert not plan.left
    tlsc.convert(model, WINDOW)
    # Some compute in float32 whatever they are given.
    bar = 1e-6 if any(part in name for part in ("Filter", "S2", "B1", "B2")) else 1e-9
    for size in ((11, 13), (5, 9)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(model(x), reference(original, x, WINDOW), rtol=bar, atol=bar)


class TimmUNet(nn.Module):
    """A decoder over the features of a timm encoder with squeeze-excitation."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.encoder = timm.create_model(
            "seresnet18" if "seresnet18" in timm.list_models("seresnet18") else "seresnet50",
            pretrained=False,
            features_only=True,
            out_indices=(0, 1, 2),
        )
        channels = self.encoder.feature_info.channels()
        self.lateral = nn.ModuleList([nn.Conv2d(c, 8, 1) for c in channels])
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.interpolate
        maps = [layer(y) for layer, y in zip(self.lateral, self.encoder(x), strict=True)]
        y = maps[-1]
        for skip in reversed(maps[:-1]):
            y = skip + up(y, size=skip.shape[-2:])
        return x + self.tail(up(y, size=x.shape[-2:]))


@torch.no_grad()
def test_a_unet_over_a_timm_encoder() -> None:
    torch.manual_seed(0)
    model = TimmUNet().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # timm starts the last one of each block at 0
    base = (32, 32)
    plan = tlsc.plan(model, base)
    assert plan.converted
    assert not plan.left
    small, wide = torch.rand(1, 3, *base, dtype=torch.float64), torch.rand(1, 3, 32, 768, dtype=torch.float64)
    other = wide.clone()
    other[..., 640:] = torch.rand_like(other[..., 640:])

    def far() -> float:
        return float((model(wide) - model(other))[..., :32].abs().max())

    expected, before = model(small), far()
    tlsc.convert(model, base)
    assert (model(small) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert before > 1e-9
    assert far() <= 1e-12
