"""Every architecture of spandrel and spandrel_extra_arches, in small settings, and what is checked of each.

``python -m benchmarks coverage`` writes ``docs/coverage.md`` from this list; ``test_coverage.py`` runs it.
"""

# ruff: noqa: E501  one network a line
from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tlsc
from tlsc._influence.check import far_sources

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Entry:
    """One network: ``settings`` of ``path``'s class; ``base`` is its window, ``large`` an input beyond it.

    ``large`` None: it takes one size only.
    """

    name: str
    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    base: Size = (32, 32)
    large: Size | None = (32, 512)
    channels: int = 3
    example: Callable[[int, int], tuple[Tensor, ...]] | None = None
    double: bool = True  # False: its code makes float32 tensors
    note: str = ""
    heavy: bool = False  # an input beyond its receptive field takes too long
    far: bool = False  # far pixels have influence that is no aggregation over all positions: see ``note``

    def make(self) -> nn.Module:
        module, _, name = self.path.rpartition(".")
        torch.manual_seed(0)
        model: nn.Module = getattr(importlib.import_module(module), name)(**self.settings)
        return model

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def bar(self) -> float:
        """A relative change no larger than this is rounding."""
        return 1e-9 if self.double else 1e-4

    def randomised(self) -> nn.Module:
        """In float64, with random parameters, of which none is zero as many are at the beginning."""
        model = self.make().to(self.dtype).eval()
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            fan_in = max(1, p.shape[1:].numel()) if p.dim() > 1 else 4
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) / fan_in**0.5 + 0.5 * (p.dim() == 1)
        for b in model.buffers():
            if b.is_floating_point() and b.dim() == 1:
                b.data = torch.rand(b.shape, generator=generator, dtype=b.dtype) + 0.5
        return model

    def images(self, height: int, width: int) -> tuple[Tensor, ...]:
        if self.example is not None:
            return self.example(height, width)
        return (torch.rand(1, self.channels, height, width, dtype=self.dtype),)


@dataclass(frozen=True)
class Result:
    """What was found: ``identity``: the largest relative change on an input of ``base`` (I1); ``before``, ``after``:
    relative change of the output far from where the input changes (I4), None where it was not measured; ``sources``:
    by which modules far pixels reach the output of the converted network, None where that was not tried."""

    plan: tlsc.Plan
    identity: float
    before: float | None
    after: float | None
    sources: tuple[str, ...] | None = None

    @property
    def converted(self) -> Counter[str]:
        return Counter(site.operation for site in self.plan.converted)

    @property
    def left(self) -> Counter[tuple[str, str]]:
        return Counter((site.operation, site.reason) for site in self.plan.left)


@torch.no_grad()
def examine(entry: Entry, far: bool = True, check: bool = True) -> Result:
    """Build, plan, convert, and measure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = entry.randomised()
        far = far and entry.large is not None
        before = far_change(model, entry) if far else None
        torch.manual_seed(0)
        x = entry.images(*entry.base)
        expected = _outputs(model, x)
        plan = tlsc.plan(model, entry.base, example_input=entry.images)
        if plan.converted:
            tlsc.convert(model, entry.base, example_input=entry.images, check=False)
        identity = max(_difference(a, b) for a, b in zip(_outputs(model, x), expected, strict=True))
        after = far_change(model, entry) if far and plan.converted else before
        sources = looked_far(model, plan, entry) if check and entry.large is not None else None
    return Result(plan, identity, before, after, sources)


def looked_far(model: nn.Module, plan: tlsc.Plan, entry: Entry) -> tuple[str, ...] | None:
    """By which modules far pixels reach the output of a converted model; None: it does not take such images."""
    try:
        return tuple(map(str, far_sources(model, plan, entry.images)))
    except RuntimeError:
        return None


def far_change(model: nn.Module, entry: Entry) -> float:
    """How much the output's first columns change when the middle columns of the input do."""
    assert entry.large is not None
    torch.manual_seed(1)
    first = entry.images(*entry.large)
    second = [x.clone() for x in first]
    middle = slice(entry.large[1] * 7 // 16, entry.large[1] * 9 // 16)
    second[0][..., middle] = torch.rand_like(second[0][..., middle])
    changes = [
        _difference(a[..., : a.shape[-1] // 16], b[..., : b.shape[-1] // 16])
        for a, b in zip(_outputs(model, first), _outputs(model, tuple(second)), strict=True)
        if a.dim() == 4 and a.shape[-1] >= 16
    ]
    return max(changes, default=0.0)


def _outputs(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(0)  # some draw noise, some change what they are given
    return [
        y for y in tree_leaves(model(*(x.clone() for x in args))) if isinstance(y, Tensor) and y.is_floating_point()
    ]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


def _spandrel(name: str, where: str, settings: dict[str, Any] | None = None, **kwargs: Any) -> Entry:
    folder, _, rest = where.partition("/")
    module, _, cls = rest.partition(":")
    return Entry(name, f"spandrel.architectures.{folder}.__arch.{module}.{cls}", settings or {}, **kwargs)


def _extra(name: str, where: str, settings: dict[str, Any] | None = None, **kwargs: Any) -> Entry:
    folder, _, rest = where.partition("/")
    module, _, cls = rest.partition(":")
    return Entry(
        name, f"spandrel_extra_arches.architectures.{folder}.__arch.{module}.{cls}", settings or {}, **kwargs
    )


SWIN: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 8}


def _masked(height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    mask = torch.zeros(1, 1, height, width, dtype=dtype)
    mask[..., : height // 2, : width // 2] = 1
    return torch.rand(1, 3, height, width, dtype=dtype), mask


ENTRIES = [
    _spandrel("Compact", "Compact/SRVGG:SRVGGNetCompact", {"num_feat": 8, "num_conv": 2}),
    _spandrel("SwiftSRGAN", "SwiftSRGAN/SwiftSRGAN:Generator", {"num_channels": 8, "num_blocks": 2}),
    _spandrel("HAT", "HAT/HAT:HAT", {**SWIN, "upscale": 2, "compress_ratio": 3, "squeeze_factor": 4, "num_feat": 8}),
    _spandrel("GRL", "GRL/grl:GRL", {
        "img_size": 32, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2],
        "embed_dim": 24, "local_connection": True, "anchor_window_down_factor": 2,
    }, double=False),
    _spandrel("Swin2SR", "Swin2SR/Swin2SR:Swin2SR", {**SWIN, "upsampler": "pixelshuffle"}),
    _spandrel("SwinIR", "SwinIR/SwinIR:SwinIR", SWIN),
    _spandrel("GFPGAN", "GFPGAN/gfpganv1_clean_arch:GFPGANv1Clean", {
        "out_size": 64, "num_style_feat": 16, "num_mlp": 1, "narrow": 0.0625}, base=(64, 64), large=None, note="Takes images of one size: its style code comes from a Linear layer over all positions, so there is no larger map to convert for."),
    _spandrel("RestoreFormer", heavy=True, where="RestoreFormer/restoreformer_arch:RestoreFormer", settings={
        "n_embed": 16, "embed_dim": 32, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,),
        "resolution": 32, "z_channels": 32, "head_size": 2}),
    _spandrel("LaMa", heavy=True, where="LaMa/LaMa:LaMa", settings={"in_nc": 4}, example=_masked, large=(32, 256)),
    _spandrel("OmniSR", "OmniSR/OmniSR:OmniSR", {"num_feat": 16, "up_scale": 2}, far=True, note="Its grid attention joins 8×8 positions spread over the whole map: always 64, whatever the map's size, so no aggregation over all positions; far pixels remain."),
    _spandrel("SCUNet", heavy=True, where="SCUNet/SCUNet:SCUNet", settings={"config": [2] * 7, "dim": 64}, base=(128, 128), large=(128, 256)),
    _spandrel("FBCNN", "FBCNN/FBCNN:FBCNN", {"nc": [4, 8, 8, 512], "nb": 1}),
    _spandrel("Uformer", "Uformer/Uformer:Uformer", {"img_size": 128, "embed_dim": 8}, base=(128, 128), large=None, note="Takes square images only, and their receptive field is larger than any that fits here: far pixels were not tried."),
    _spandrel("RGT", "RGT/rgt:RGT", {"img_size": 32, "embed_dim": 16, "depth": [2], "num_heads": [2]}),
    _spandrel("DAT", "DAT/DAT:DAT", {"img_size": 32, "embed_dim": 16, "depth": [2], "num_heads": [2], "split_size": [4, 8]}),
    _spandrel("CRAFT", "CRAFT/CRAFT:CRAFT", {"embed_dim": 24, "depths": [2], "num_heads": [6]}),
    _spandrel("KBNet-l", heavy=True, where="KBNet/kbnet_l:KBNet_l", settings={"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}, base=(64, 64), large=(64, 512)),
    _spandrel("KBNet-s", heavy=True, where="KBNet/kbnet_s:KBNet_s", settings={"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    _spandrel("DITN", "DITN/DITN_Real:DITN_Real", {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1}, note="Its attention is over patches of 8×8 pixels cut out before: it was no larger before."),
    _spandrel("MMRealSR", "MMRealSR/mmrealsr_arch:MMRRDBNet_test", {
        "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 4, "num_feats": [4, 8, 8, 512], "num_blocks": [1, 1, 1, 1]}),
    _spandrel("SPAN", "SPAN/span:SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8}),
    _spandrel("RealCUGAN 2×", heavy=True, where="RealCUGAN/upcunet_v3:UpCunet2x", base=(48, 48), large=(48, 512)),
    _spandrel("RealCUGAN 2× fast", "RealCUGAN/upcunet_v3:UpCunet2x_fast", base=(48, 48), large=(48, 512)),
    _spandrel("RealCUGAN 3×", heavy=True, where="RealCUGAN/upcunet_v3:UpCunet3x", base=(48, 48), large=(48, 512)),
    _spandrel("RealCUGAN 4×", heavy=True, where="RealCUGAN/upcunet_v3:UpCunet4x", base=(48, 48), large=(48, 512)),
    _spandrel("SAFMN", "SAFMN/safmn:SAFMN", {"dim": 8, "n_blocks": 2}),
    _spandrel("SAFMN-BCIE", "SAFMNBCIE/safmn_bcie:SAFMN_BCIE", {"dim": 8, "n_blocks": 2, "num_layers": 2}),
    _spandrel("DCTLSA", "DCTLSA/dctlsa:DCTLSA", {"nf": 20}),
    _spandrel("FFTformer", "FFTformer/fftformer_arch:FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    _spandrel("NAFNet", "NAFNet/NAFNet_arch:NAFNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    _spandrel("ATD", "ATD/atd_arch:ATD", {**SWIN, "category_size": 16, "num_tokens": 8}),
    _spandrel("MixDehazeNet", "MixDehazeNet/MixDehazeNet:MixDehazeNet", {"embed_dims": [8, 8, 8, 8, 8]}, base=(48, 48), large=(48, 512)),
    _spandrel("DRUNet", "DRUNet/network_unet:DRUNet", {"in_nc": 3, "out_nc": 3, "nc": [4, 4, 4, 4], "nb": 1}),
    _spandrel("DnCNN", "DnCNN/network_dncnn:DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 4}),
    _spandrel("IPT", "IPT/ipt:IPT", {"patch_size": 24, "n_feats": 8, "num_heads": 2, "num_layers": 1}, base=(24, 24), large=None),
    _spandrel("DRCT", "DRCT/drct_arch:DRCT", {**SWIN, "gc": 8}),
    _spandrel("ESRGAN", "ESRGAN/RRDB:RRDBNet", {"num_filters": 8, "num_blocks": 1}),
    _spandrel("PLKSR", "PLKSR/PLKSR:PLKSR", {"dim": 16, "n_blocks": 2}),
    _spandrel("RealPLKSR", "PLKSR/RealPLKSR:RealPLKSR", {"dim": 16, "n_blocks": 2}),
    _spandrel("RealPLKSR layer norm", "PLKSR/RealPLKSR:RealPLKSR", {"dim": 16, "n_blocks": 2, "layer_norm": True}),
    _spandrel("RetinexFormer", "RetinexFormer/retinexformer_arch:RetinexFormer", {"n_feat": 8, "stage": 1}),
    _spandrel("HVI-CIDNet", "HVICIDNet/cidnet:CIDNet", {"channels": [8, 8, 16, 16], "heads": [1, 2, 2, 4]}),
    _spandrel("SeemoRe", "SeemoRe/seemore_arch:SeemoRe", {"num_experts": 3, "num_layers": 2, "embedding_dim": 16}),
    _spandrel("MoSR", "MoSR/mosr_arch:MoSR", {"n_block": 2, "dim": 16}),
    _spandrel("MoESR", "MoESR/MoESR:MoESR", {"dim": 16, "n_blocks": 2, "n_block": 1}),
    _spandrel("RCAN", "RCAN/rcan_arch:RCAN", {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16, "reduction": 4}),
    _spandrel("FDAT", "FDAT/fdat:FDAT", {"embed_dim": 16, "num_groups": 1, "num_heads": 2, "mid_dim": 8}),
    _spandrel("AuraSR", "AuraSR/aura_sr:UnetUpsampler", {"dim": 8, "image_size": 64, "input_image_size": 32, "style_network": {"dim_in": 8, "dim_out": 8, "depth": 1},
        "up_dim_mults": (1, 2), "down_dim_mults": (2,), "full_attn": (False, True), "attn_depths": (1, 1), "mid_attn_depth": 1,
        "self_attn_dim_head": 8, "self_attn_heads": 2, "resnet_block_groups": 2, "num_conv_kernels": 2}, double=False),
    _extra("SRFormer", "SRFormer/SRFormer:SRFormer", SWIN),
    _extra("CodeFormer", "CodeFormer/codeformer:CodeFormer", {"dim_embd": 32, "n_head": 2, "n_layers": 1, "codebook_size": 16}, base=(512, 512), large=None, double=False),
    _extra("MAT", "MAT/MAT:MAT", {}, base=(512, 512), large=None, example=lambda h, w: _masked(h, w, torch.float32), double=False),
    _extra("DDColor", "DDColor/ddcolor:DDColor", {"encoder_name": "convnext-t", "input_size": (64, 64), "nf": 512, "num_queries": 8, "dec_layers": 3}, base=(64, 64), large=(64,512), double=False),
    _extra("AdaCode", "AdaCode/adacode_contrast_arch:AdaCodeSRNet_Contrast", {"codebook_params": [[32, 16, 16], [32, 16, 16]]}, base=(64, 64), large=(64, 512), heavy=True),
    _extra("FeMaSR", "FeMaSR/femasr:FeMaSRNet", {"codebook_params": [[32, 16, 16]]}, base=(64, 64), large=(64, 512), heavy=True),
    _extra("M3SNet", "M3SNet/M3SNet:M3SNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    _extra("Restormer", "Restormer/restormer_arch:Restormer", {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}),
    _extra("MPRNet", "MPRNet/MPRNet:MPRNet", {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}),
    _extra("MIRNet2", "MIRNet2/mirnet_v2_arch:MIRNet_v2", {"n_feat": 16, "n_MRB": 1}, heavy=True),
]  # fmt: skip
