"""HINet, MPRNet, and loading checkpoints of any kind."""

from __future__ import annotations

import ast
import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import tlsc
from tlsc import adapters
from tlsc.adapters import CheckpointError, Descriptor, HINet, MPRNet, load, run

from ..marks import slow
from ..networks import with_random_weights

DATA = Path(__file__).parents[1] / "data"
CASES = range(4)
SMALL: dict[str, Callable[[], nn.Module]] = {
    "HINet": lambda: HINet(wf=4, depth=3, hin_position_left=1, hin_position_right=2),
    "MPRNet": lambda: MPRNet(n_feat=4, scale_unetfeats=2, scale_orsnetfeats=2, num_cab=1, reduction=2),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The maps are tiny: two threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The settings, the state dict and everything else."""
    path = DATA / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        config = ast.literal_eval(file.metadata()["config"])
    tensors = load_file(path)
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return config, state, tensors


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    return with_random_weights(SMALL[request.param]()).eval()


# ------------------------------------------------------------------------------------------ golden vectors


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("hinet", ".pth"), ("hinet", ".safetensors"), ("mprnet", ".pth"), slow("mprnet", ".safetensors")],
)
@torch.no_grad()
def test_golden_vectors_through_load(name: str, suffix: str, tmp_path: Path) -> None:
    """The published implementation's stages, original and local, from a file that says nothing but weights."""
    config, state, tensors = golden(name)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"params": state}, path)
    else:
        save_file(state, path)
    original = load(path, dtype=torch.float64)
    assert config.items() <= original.tlsc.settings.items()
    if suffix == ".pth":
        local = load(path, base_size=48, dtype=torch.float64)
    else:
        # Converted before the weights are there.
        local = tlsc.convert(type(original)(**original.tlsc.settings).double().eval(), 48)
        local.load_state_dict(load(path).state_dict())
    for case in CASES[:1] if (name, suffix) == ("mprnet", ".pth") else CASES:
        x = tensors[f"case{case}.input"]
        for model, kind in ((original, "original"), (local, "local")):
            out = model(x)
            expected = {
                int(key.rpartition(".")[2]): value
                for key, value in tensors.items()
                if key.startswith(f"case{case}.{kind}.")
            }
            assert expected
            for stage, value in expected.items():
                assert (out[stage] - value).abs().max() <= 1e-9
            assert torch.equal(run(model, x), out[original.tlsc.output])


@pytest.mark.parametrize(
    ("make", "millions"),
    [(lambda: HINet(hin_position_left=3, hin_position_right=4), 88.67), (MPRNet, 20.13)],
    ids=["HINet", "MPRNet"],
)
def test_full_size_networks_have_the_published_number_of_parameters(
    make: Callable[[], nn.Module], millions: float
) -> None:
    with torch.device("meta"):
        number = sum(parameter.numel() for parameter in make().parameters())
    assert round(number / 1e6, 2) == millions


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 17), (16, 16), (21, 38), (33, 8)], ids=str)
@torch.no_grad()
def test_any_size_is_the_network_on_the_padded_image_cut_back(small: nn.Module, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    out = small(x)
    height, width = small.tlsc.padding.padded(*size)
    padded = torch.zeros(2, 3, height, width)
    padded[..., : size[0], : size[1]] = x
    for stage, expected in zip(out, small(padded), strict=True):
        assert stage.shape == x.shape
        torch.testing.assert_close(stage, expected[..., : size[0], : size[1]])


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (16, 17), (3, 40)], ids=str)
@torch.no_grad()
def test_hinet_takes_images_whose_deepest_map_would_be_one_position(size: tuple[int, int]) -> None:
    """PyTorch refuses to normalise a single position."""
    for levels in ((0, 4), (3, 3), (3, 4)):
        model = HINet(wf=4, hin_position_left=levels[0], hin_position_right=levels[1]).eval()
        out = model(torch.rand(1, 3, *size))
        assert all(stage.shape[-2:] == size and stage.isfinite().all() for stage in out)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HINet(wf=5), "wf must be even"),
        (lambda: HINet(depth=6), "padder_size must be a multiple of"),
        (lambda: HINet(wf=0), "wf must be a positive int"),
        (lambda: MPRNet(in_c=1), "in_c and out_c must agree"),
        (lambda: MPRNet(kernel_size=2), "kernel_size must be odd"),
        (lambda: MPRNet(padder_size=4), "padder_size must be a multiple of 8"),
        (lambda: MPRNet(n_feat=8, reduction=9), "reduction must be at most"),
        (lambda: MPRNet(scale_unetfeats=-1), "scale_unetfeats must be a positive int"),
    ],
)
def test_settings_are_checked(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ------------------------------------------------------------------------------------------- detection


def nested(*keys: str) -> Callable[[dict[str, Tensor]], Any]:
    def wrap(state: dict[str, Tensor]) -> Any:
        out: Any = state
        for key in reversed(keys):
            out = {key: out, "epoch": 3, "best": 31.5}
        return out

    return wrap


WRAPPERS = [
    *((key,) for key in ("params_ema", "params", "state_dict", "model", "model_state_dict", "net_g", "generator")),
    (),
    ("ema",),
    ("anything",),
    ("checkpoint", "model", "state_dict"),
    ("state_dict", "params_ema"),
    ("models", "g"),
]
PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "net.",
    "generator.",
    "net_g.module.",
    "model.net.",
    "some.thing.",
]

_HINETS = st.builds(
    lambda wf, depth, levels, in_chn: {
        "in_chn": in_chn,
        "wf": wf,
        "depth": depth,
        "hin_position_left": min(levels) % depth,
        "hin_position_right": max(min(levels) % depth, max(levels) % depth),
    },
    st.sampled_from([2, 4, 6]),
    st.integers(2, 6),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.sampled_from([1, 3, 4]),
)
_MPRNETS = st.builds(
    lambda n, unet, ors, cabs, kernel, reduction, bias, channels: {
        "in_c": channels,
        "out_c": channels,
        "n_feat": n * reduction,
        "scale_unetfeats": unet,
        "scale_orsnetfeats": ors,
        "num_cab": cabs,
        "kernel_size": kernel,
        "reduction": reduction,
        "bias": bias,
    },
    st.integers(2, 4),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(1, 4),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from([1, 3]),
)


@pytest.mark.parametrize(("build", "drawn"), [(HINet, _HINETS), slow(MPRNet, _MPRNETS)], ids=["HINet", "MPRNet"])
def test_settings_are_read_off_under_every_wrapping_and_prefix(
    build: Callable[..., nn.Module], drawn: st.SearchStrategy[dict[str, Any]], tmp_path: Path
) -> None:
    """Random networks, and in turn every wrapping with some prefix and every prefix with some wrapping."""
    seen: set[str] = set()
    pairs = itertools.cycle(
        (wrapper, PREFIXES[(i + shift) % len(PREFIXES)]) for shift in range(4) for i, wrapper in enumerate(WRAPPERS)
    )

    @settings(max_examples=16, deadline=None, database=None, derandomize=True)
    @given(arguments=drawn)
    def check(arguments: dict[str, Any]) -> None:
        if build is HINet:
            arguments = arguments | {"padder_size": max(16, 2 ** (arguments["depth"] - 1))}
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in build(**arguments).state_dict().items()}
        seen.add(str(arguments))
        for wrapper, prefix in itertools.islice(pairs, 3):
            state = {prefix + key: torch.full(shape, 0.25) for key, shape in shapes.items()}
            torch.save(nested(*wrapper)(state), tmp_path / "a.ckpt")
            loaded = load(tmp_path / "a.ckpt")
            found = loaded.tlsc.settings
            assert {key: found[key] for key in arguments} == arguments, (wrapper, prefix)
            assert type(loaded) is build
            assert {key: value.shape for key, value in loaded.state_dict().items()} == shapes

    check()
    assert len(seen) >= 12


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", WRAPPERS, ids=str)
def test_every_wrapping_with_every_prefix(wrapper: tuple[str, ...], prefix: str, tmp_path: Path) -> None:
    model = HINet(wf=2, depth=2, hin_position_left=1)
    torch.save(nested(*wrapper)({prefix + k: v for k, v in model.state_dict().items()}), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").tlsc.settings["wf"] == 2


def test_weights_are_found_among_those_of_other_networks(small: nn.Module, tmp_path: Path) -> None:
    """A GAN's checkpoint, Lightning's with its loss and optimizer, and averaged weights beside the last ones."""
    state = small.state_dict()
    other = {f"features.{i}.weight": torch.randn(3, 3) for i in range(5)}
    last = {key: value + 1 for key, value in state.items()}
    payloads: list[Any] = [
        {"discriminator": other, "generator": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {
            "state_dict": {
                **{f"loss.vgg.{k}": v for k, v in other.items()},
                **{f"net.{k}": v for k, v in state.items()},
            }
        },
        {"params": last, "params_ema": state},
        {"params_ema": state, "params": last},
        {"params_ema": None, "params": state},
        {"model": last, "model_ema": state},
        {"state_dict": {f"{p}.{k}": v for p, part in (("net", last), ("net_ema", state)) for k, v in part.items()}},
        {f"params.{k}": v for k, v in last.items()} | {f"params_ema.{k}": v for k, v in state.items()},
        {"score": np.float64(31.2), "scores": {"psnr": np.float32(3)}, "params": state},
    ]
    for payload in payloads:
        torch.save(payload, tmp_path / "a.ckpt")
        loaded = load(tmp_path / "a.ckpt")
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items()), list(payload)


def test_two_networks_that_could_be_meant(small: nn.Module, tmp_path: Path) -> None:
    torch.save({"first": small.state_dict(), "second": small.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"several .*under first, second"):
        load(tmp_path / "a.pth")


# ---------------------------------------------------------------------------------- the shared PReLU


def test_shared_weights_survive_safetensors(tmp_path: Path) -> None:
    """``save_model`` writes the PReLU's weight once; a plain state dict holds it under each block."""
    model = with_random_weights(SMALL["MPRNet"]()).eval()
    save_model(model, str(tmp_path / "once.safetensors"))
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "each.safetensors")
    x = torch.rand(1, 3, 16, 16)
    for name in ("once", "each"):
        loaded = load(tmp_path / f"{name}.safetensors")
        assert torch.equal(run(loaded, x), run(model, x))
        relus = {id(module) for module in loaded.modules() if isinstance(module, nn.PReLU)}
        weights = {id(p) for n, p in loaded.named_parameters(remove_duplicate=False) if n.endswith("body.1.weight")}
        assert len(relus) == len(weights & {id(p) for p in loaded.parameters() if p.numel() == 1}) == 1


def test_copies_of_the_shared_weight_must_agree(tmp_path: Path) -> None:
    state = SMALL["MPRNet"]().state_dict()
    key = "stage2_decoder.skip_attn1.body.1.weight"
    torch.save(state | {key: state[key] + 0.5}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"{key} differs from .*shared by all blocks") as caught:
        load(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- what load returns


@pytest.mark.parametrize("name", adapters.DEMO_NETWORKS)
@torch.no_grad()
def test_the_demo_s_networks_load_from_their_files(name: str) -> None:
    network = adapters.DEMO_NETWORKS[name]
    model = load(network.weights)
    x = torch.rand(1, 3, 21, 30)
    assert torch.equal(run(model, x), adapters.load_demo_network(name)(x))
    assert network.settings.items() <= model.tlsc.settings.items()
    assert model.tlsc.crop == network.crop


def test_the_result_is_described_and_in_eval_mode(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.train().state_dict(), tmp_path / "x-GoPro.pth")
    model = load(tmp_path / "x-GoPro.pth")
    known = model.tlsc
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert (known.architecture, known.task, known.scale) == (type(small).__name__, "deblurring", 1)
    assert (known.crop, known.base_size, known.source) == (256, 384, "tlsc")
    assert known.output == {"HINet": -1, "MPRNet": 0}[known.architecture]
    assert type(small)(**known.settings).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("small", ["HINet", slow("MPRNet")], indirect=True)
@torch.no_grad()
def test_the_descriptor_disturbs_nothing(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", base_size=24)
    x = torch.rand(1, 3, 30, 40)
    expected = run(model, x)
    assert list(model.state_dict()) == list(small.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.tlsc == model.tlsc
        assert torch.equal(run(twin, x), expected)
    assert isinstance(tlsc.revert(model).tlsc, Descriptor)
    assert tlsc.plan(model, 24).converted


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("asked", [None, torch.float64, torch.bfloat16], ids=str)
def test_dtypes(stored: torch.dtype, asked: torch.dtype | None, tmp_path: Path) -> None:
    torch.save(SMALL["HINet"]().to(stored).state_dict(), tmp_path / "a.pth")
    expected = asked or (torch.float64 if stored == torch.float64 else torch.float32)
    model = load(tmp_path / "a.pth", dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_the_file_can_go_once_it_is_loaded(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({key: value.clone() for key, value in small.state_dict().items()}, path)
    model = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"device": "nonsense"}, "device 'nonsense'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"dtype": torch.int8}, "dtype must be a floating"),
        ({"dtype": "float32"}, "dtype must be a floating"),
        ({"base_size": 0}, "base_size"),
        ({"base_size": 16, "stride": 0}, "stride must be a positive int"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch.save(SMALL["HINet"]().state_dict(), tmp_path / "a.pth")
    with pytest.raises(tlsc.TLSCError, match=said) as caught:
        load(tmp_path / "a.pth", **arguments)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- networks of others


@pytest.mark.parametrize(("file", "name"), [("nafnet", "NAFNet"), ("restormer", "Restormer")])
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.generator."])
@torch.no_grad()
def test_spandrel_s_networks_load(file: str, name: str, prefix: str, tmp_path: Path) -> None:
    _, state, tensors = golden(file)
    torch.save({"params": {prefix + key: value for key, value in state.items()}}, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", dtype=torch.float64)
    assert (model.tlsc.architecture, model.tlsc.source, model.tlsc.base_size) == (name, "spandrel", 384)
    for case in CASES:
        assert (run(model, tensors[f"case{case}.input"]) - tensors[f"case{case}.original.0"]).abs().max() <= 1e-9


@torch.no_grad()
def test_spandrel_s_networks_are_converted_and_padded(tmp_path: Path) -> None:
    _, state, _ = golden("restormer")
    torch.save(state, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", base_size=30)  # Restormer takes multiples of 8
    assert tlsc.plan(model, 32).converted
    assert run(model, torch.rand(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    assert run(model, torch.rand(1, 3, 37, 50)).shape == (1, 3, 37, 50)


@torch.no_grad()
def test_super_resolution_by_spandrel(tmp_path: Path) -> None:
    """Its own call, on a network that enlarges, is the oracle."""
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    compact = Compact(num_feat=8, num_conv=2, upscale=3)
    torch.save({"params": compact.state_dict()}, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth")
    x = torch.rand(1, 3, 9, 14)
    expected = spandrel.ModelLoader().load_from_state_dict(compact.state_dict())(x)
    assert (model.tlsc.scale, model.tlsc.task) == (3, "super-resolution")
    torch.testing.assert_close(run(model, x).clamp(0, 1), expected)


@torch.no_grad()
def test_networks_that_spandrel_calls_in_its_own_way(tmp_path: Path) -> None:
    """DRUNet takes a map of the noise level beside the image; a pickled one says that the call was lost."""
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.DRUNet import DRUNet

    torch.manual_seed(0)
    network = DRUNet(in_nc=4, out_nc=3, nc=[4, 4, 4, 4], nb=4)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth")
    x = torch.rand(1, 3, 16, 24)
    expected = spandrel.ModelLoader().load_from_state_dict(network.state_dict())(x)
    torch.testing.assert_close(run(copy.deepcopy(model), x).clamp(0, 1), expected)
    with pytest.raises(ValueError, match="load its checkpoint again"):
        run(pickle.loads(pickle.dumps(model)), x)


# ------------------------------------------------------------------------------------------ bad files


def _without(*keys: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {key: value for key, value in state.items() if key not in keys}


BAD_STATES: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    ("HINet", _without("conv_01.weight"), "keys are missing: conv_01.weight"),
    ("HINet", _without("conv_01.weight", "conv_02.weight"), "keys are missing: conv_01.weight, conv_02.weight"),
    ("HINet", _without("down_path_1.1.norm.weight"), "norm.weight"),
    ("MPRNet", _without("tail.weight"), "keys are missing: tail.weight"),
    ("MPRNet", _without("shallow_feat1.0.weight"), "keys are missing: shallow_feat1.0.weight"),
    ("HINet", lambda state: state | {"extra.weight": torch.ones(1)}, "keys are surplus: extra.weight"),
    ("MPRNet", lambda state: state | {"extra.weight": torch.ones(1)}, "keys are surplus: extra.weight"),
    (
        "HINet",
        lambda state: state | {"last.weight": torch.ones(3, 5, 3, 3)},
        r"last.weight has shape \(3, 5, 3, 3\)",
    ),
    ("MPRNet", lambda state: state | {"tail.weight": torch.ones(5, 12, 3, 3)}, "in_c and out_c must agree"),
    ("MPRNet", lambda state: state | {"concat12.weight": torch.ones(8)}, r"concat12.weight has shape \(8,\)"),
    ("HINet", lambda state: state | {"conv_01.weight": torch.ones(8)}, "where 4 dimensions belong"),
    ("HINet", lambda state: state | {"conv_01.weight": torch.ones(6, 3, 3, 3)}, "shapes contradict each other"),
    ("HINet", lambda state: state | {"last.bias": torch.ones(3, dtype=torch.int8)}, "last.bias is torch.int8"),
    (
        "HINet",
        lambda state: {"a.weight": torch.ones(2)},
        "unknown architecture.*a.weight.*tried HINet, MPRNet, UNet, FFDNet and",
    ),
    ("HINet", lambda state: {"epoch": 3, "lr": 1e-3}, "holds no weights: its keys are epoch, lr"),
    ("HINet", lambda state: [1, 2], "holds a list"),
    ("HINet", lambda state: torch.ones(3), "holds a Tensor"),
]


@pytest.mark.parametrize(("name", "change", "said"), BAD_STATES, ids=[said for _, _, said in BAD_STATES])
def test_weights_that_do_not_fit_are_named(
    name: str, change: Callable[[dict[str, Tensor]], Any], said: str, tmp_path: Path
) -> None:
    torch.save(change(dict(SMALL[name]().state_dict())), tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", said)


def test_weights_that_spandrel_cannot_load(tmp_path: Path) -> None:
    _, state, _ = golden("nafnet")
    del state["ending.bias"]
    torch.save(state, tmp_path / "a.pth")
    _fails_in_one_line(tmp_path / "a.pth", "spandrel takes the weights for NAFNet, but .*ending.bias")


def _fails_in_one_line(path: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert isinstance(caught.value, ValueError)


def test_run_checks_its_image(small: nn.Module) -> None:
    with pytest.raises(ValueError, match="takes images of 3 channels"):
        run(small, torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="4 dimensions"):
        run(small, torch.rand(3, 8, 8))
    assert run(nn.Identity(), torch.rand(1, 5, 8, 8)).shape == (1, 5, 8, 8)


def test_public_names() -> None:
    for name in adapters.__all__:
        assert getattr(adapters, name).__doc__
