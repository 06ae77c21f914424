"""The invariants I1 to I7 of a conversion, each on every network that the project knows."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlsc

from .marks import slow, slow_unless
from .networks import BASE, MPRNET, NETWORKS, Network, image, recorded, reference_site, window_start

LARGER = 36, 44
IN_PLACE = "gate as attributes"  # PyTorch allows no backward hook on a layer whose output is changed in place
# The experiment of ``check`` is made in the first test, by ``tlsc.convert``: it runs every network once more.
convert = functools.partial(tlsc.convert, check=False)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Every kind of site, of owner and of sharing at least once. Values (I1, I2) and plans (I6) are looked at on every
# network; what else must hold of a conversion, whatever its sites compute, on these, and on the others where
# there is time (pytest -m slow).
USUAL = {
    "gate as attributes",
    "U-Net",
    "one norm under two names",
    "one norm at two scales",
    "nested blocks used again",
    "root is a group norm",
    "gate with Linear",
    "classifier behind gates",
    "running statistics",
}

every_network = pytest.mark.parametrize("network", NETWORKS, ids=str)
with_mprnet = pytest.mark.parametrize("network", [*NETWORKS, slow(MPRNET)], ids=str)


def is_usual(network: Network) -> bool:
    return network.name in USUAL


def usual_marks(network: Network) -> list[pytest.MarkDecorator]:
    return [] if is_usual(network) else [pytest.mark.slow]


each_kind = pytest.mark.parametrize("network", slow_unless(is_usual, NETWORKS), ids=str)
each_kind_and_mprnet = pytest.mark.parametrize("network", slow_unless(is_usual, [*NETWORKS, MPRNET]), ids=str)


@pytest.fixture(autouse=True)
def _left_sites_are_expected() -> Iterator[None]:
    """A network of which nothing becomes local warns; these tests are about what does not change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsc.TLSCWarning)
        yield


def objects(model: nn.Module) -> list[tuple[str, int]]:
    return [(path, id(module)) for path, module in model.named_modules(remove_duplicate=False)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).abs().max() / expected.abs().max())


# ------------------------------------------------------------------------------------------ I1 identity


@with_mprnet
@torch.no_grad()
def test_i1_inputs_up_to_base_size_give_what_they_gave(network: Network) -> None:
    model = network(torch.float32)
    images = [image(*size, dtype=torch.float32) for size in (BASE, (BASE[0], 16), (8, BASE[1]), (12, 16))]
    before = [model(x) for x in images]
    tlsc.convert(model, BASE)
    for x, expected in zip(images, before, strict=True):
        assert relative_error(model(x), expected) <= 1e-5, x.shape


@each_kind
@torch.no_grad()
def test_i1_holds_on_the_grid_too(network: Network) -> None:
    model, x = network(torch.float32), image(*BASE, dtype=torch.float32)
    before = model(x)
    assert relative_error(convert(model, BASE, stride=4)(x), before) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@each_kind
@torch.no_grad()
def test_i1_holds_in_every_dtype(network: Network, dtype: torch.dtype, device: str) -> None:
    model, x = network(dtype).to(device), image(*BASE, dtype=dtype).to(device)
    before = model(x)
    after = convert(model, BASE)(x)
    assert after.dtype == dtype
    assert after.device == x.device
    bound = {torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert relative_error(after, before) <= bound


@each_kind_and_mprnet
@torch.no_grad()
def test_beyond_base_size_the_output_does_change(network: Network) -> None:
    """The other side of I1: a conversion that does nothing would pass it."""
    model, x = network(), image(*LARGER)
    before = model(x)
    convert(model, BASE)
    assert relative_error(model(x), before) > 1e-4


# ----------------------------------------------------------------------------------------- I2 exactness


@pytest.mark.parametrize(
    ("network", "size"),
    [
        *(pytest.param(network, (28, 36), id=f"{network}, both axes larger") for network in NETWORKS),
        *(
            pytest.param(network, (16, 36), id=f"{network}, one axis larger", marks=usual_marks(network))
            for network in NETWORKS
        ),
    ],
)
@torch.no_grad()
def test_i2_every_site_is_the_original_on_each_position_s_window(network: Network, size: tuple[int, int]) -> None:
    model, x = network(), image(*size)
    originals = copy.deepcopy(model)
    sites = tlsc.plan(model, BASE).converted
    convert(model, BASE)
    with recorded(model, [treated(site) for site in sites]) as calls:
        model(x)
    assert sites
    for site in sites:
        assert calls[treated(site)], site
        original = originals.get_submodule(treated(site))
        for given, got in calls[treated(site)]:
            assert site.window is not None
            assert got.shape == given.shape
            step = 7 if network is MPRNET else 1
            expected = reference_site(original, given, site.window, step)
            torch.testing.assert_close(
                got[..., ::step, ::step], expected, rtol=1e-9, atol=1e-9, msg=lambda m, s=site: f"{s.path}: {m}"
            )


def treated(site: tlsc.Site) -> str:
    """The module that is replaced or rewritten for a site."""
    return site.path if site.owner is None else site.owner


@each_kind
def test_i2_windows_are_the_feature_sizes_at_base_size(network: Network) -> None:
    model = network()
    sites = tlsc.plan(model, BASE).converted
    convert(model, BASE)  # before it, the slots of a shared module cannot be told apart
    with recorded(model, [treated(site) for site in sites]) as calls, torch.no_grad():
        model(image(*BASE))
    for site in sites:
        assert {tuple(given.shape[-2:]) for given, _ in calls[treated(site)]} == {site.window}


def on_the_grid(values: Tensor, window: tuple[int, int], stride: int) -> Tensor:
    """Read by linear interpolation between the positions whose windows start at 0, r, 2r, … and the last start."""
    out = values.numpy()
    for axis in (2, 3):
        n = out.shape[axis]
        k = min(window[axis - 2], n)
        starts = [window_start(i, k, n) for i in range(n)]
        evaluated = sorted({*range(0, n - k + 1, stride), n - k})
        chosen = out.take([starts.index(start) for start in evaluated], axis)
        out = np.apply_along_axis(lambda line: np.interp(starts, evaluated, line), axis, chosen)  # noqa: B023
    return torch.from_numpy(out)


@every_network
@torch.no_grad()
def test_i2_on_the_grid_only_pools_change(network: Network) -> None:
    """With a stride the gate that a pool ends in is interpolated; norms stay exact."""
    model, x = network(), image(*LARGER)
    sites = tlsc.plan(model, BASE, stride=3).converted
    exact = convert(copy.deepcopy(model), BASE)
    convert(model, BASE, stride=3)
    with recorded(model, [treated(site) for site in sites]) as calls:
        model(x)
    for site in sites:
        assert site.window is not None
        assert calls[treated(site)], site
        for given, got in calls[treated(site)]:
            expected = exact.get_submodule(treated(site))(given)
            if site.operation == "AdaptiveAvgPool2d":
                assert site.action == "strided"
                if site.owner is None:
                    expected = tlsc.functional.local_mean(given, site.window, 3)
                else:
                    expected = given * on_the_grid(expected / given, site.window, 3)
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
            else:
                assert site.action == "exact"
                assert torch.equal(got, expected)


# ---------------------------------------------------------------------------------------- I3 checkpoint


@each_kind_and_mprnet
def test_i3_state_dict_is_unchanged(network: Network) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = convert(model, BASE).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert list(tlsc.revert(model).state_dict()) == list(before)


@each_kind
@pytest.mark.parametrize("assign", [False, True])
@torch.no_grad()
def test_i3_loading_before_or_after_converting_gives_the_same_model(network: Network, assign: bool) -> None:
    state = {key: value * 1.5 + 0.1 for key, value in network().state_dict().items() if value.is_floating_point()}
    x = image(*LARGER)
    first, last = network(), network()
    first.load_state_dict(copy.deepcopy(state), assign=assign, strict=False)
    convert(first, BASE)
    convert(last, BASE)
    missing = last.load_state_dict(copy.deepcopy(state), assign=assign, strict=False)
    assert not missing.unexpected_keys
    assert torch.equal(last(x), first(x))
    # What was loaded into the local modules is what the originals have afterwards.
    assert torch.equal(tlsc.revert(last)(x), tlsc.revert(first)(x))
    assert all(torch.equal(last.state_dict()[key], value) for key, value in state.items())


# ------------------------------------------------------------------------------------------ I4 locality


def _influence_of_far_pixels(model: nn.Module, far: int) -> tuple[float, float]:
    """Largest gradient of one output pixel with respect to far pixels, and to near ones."""
    x = image(16, 320).requires_grad_()
    model(x)[0, :, 8, 12].sum().backward()
    assert x.grad is not None
    return float(x.grad[..., far:].abs().max()), float(x.grad[..., :far].abs().max())


@pytest.mark.parametrize(
    "network",
    slow_unless(
        lambda network: network.name not in ("adapters.NLMNet", MPRNET.name),
        [*(network for network in NETWORKS if network.all_local), MPRNET],
    ),
    ids=str,
)
def test_i4_a_pixel_depends_on_far_pixels_before_and_not_after(network: Network) -> None:
    model = network()
    far_before, _ = _influence_of_far_pixels(model, far=160)
    far_after, near_after = _influence_of_far_pixels(convert(model, (8, 12)), far=160)
    assert far_before > 1e-9
    # Zero but for what running sums leave of terms that cancel.
    assert far_after <= 1e-13 * near_after


# -------------------------------------------------------------------------------------- I5 reversible


@each_kind_and_mprnet
def test_i5_revert_restores_the_very_same_modules(network: Network) -> None:
    model = network()
    before, types = objects(model), [type(module) for module in model.modules()]
    convert(model, BASE)
    assert [type(module) for module in model.modules()] != types
    assert tlsc.revert(model) is model
    assert objects(model) == before
    assert [type(module) for module in model.modules()] == types


@each_kind
def test_i5_revert_after_converting_twice(network: Network) -> None:
    model = network()
    before = objects(model)
    convert(convert(model, BASE), (8, 12))
    tlsc.revert(model)
    assert objects(model) == before


@each_kind
@torch.no_grad()
def test_i5_converting_again_replaces_the_window(network: Network) -> None:
    twice, once, x = network(), network(), image(*LARGER)
    convert(convert(twice, BASE), (8, 12))
    assert torch.equal(twice(x), convert(once, (8, 12))(x))


@each_kind
def test_i5_the_with_block_reverts_also_after_an_exception(network: Network) -> None:
    model = network()
    before = objects(model)
    with tlsc.converted(model, BASE) as inside:
        assert inside is model
        assert not network.all_local or tlsc.plan(model, BASE).converted
    assert objects(model) == before
    with pytest.raises(KeyError, match="from inside"), tlsc.converted(model, BASE):
        raise KeyError("from inside")
    assert objects(model) == before


@each_kind
@torch.no_grad()
def test_i5_the_with_block_restores_an_earlier_conversion(network: Network) -> None:
    model, x = convert(network(), BASE), image(*LARGER)
    before, outside = objects(model), model(x)
    with tlsc.converted(model, (8, 12)):
        assert not torch.equal(model(x), outside)
    assert objects(model) == before
    assert torch.equal(model(x), outside)


@each_kind
def test_i5_the_original_s_behaviour_is_back(network: Network) -> None:
    model, x = network(), image(*LARGER)
    before = model(x)
    assert torch.equal(tlsc.revert(convert(model, BASE))(x), before)


# ----------------------------------------------------------------------------------------- I6 visible


@every_network
def test_i6_every_global_layer_is_in_the_plan_and_each_that_is_left_has_a_reason(network: Network) -> None:
    model = network()
    known = nn.AdaptiveAvgPool2d, nn.InstanceNorm2d, nn.GroupNorm
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, known)]
    plan = tlsc.plan(model, BASE)
    assert sorted(path for site in plan for path in (site.path, *site.aliases)) == sorted(paths)
    for site in plan:
        assert bool(site.reason) == (not site.converted)
        assert (site.window is None) == (not site.converted)
    assert network.all_local == (not plan.left)


@every_network
def test_i6_what_is_done_is_what_the_plan_says(network: Network) -> None:
    model = network()
    plan = tlsc.plan(model, BASE)
    convert(model, BASE)
    local = tlsc.LocalAvgPool2d, tlsc.LocalInstanceNorm2d, tlsc.LocalGroupNorm
    for site in plan:
        for path in (site.path, *site.aliases):
            module = model.get_submodule(path)
            assert isinstance(module, local) == (site.converted and site.owner is None)
            if isinstance(module, local):
                assert module.window == site.window


# ----------------------------------------------------------------------------------------- I7 in place


@each_kind_and_mprnet
def test_i7_parameters_are_the_same_objects(network: Network) -> None:
    model = network()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = [(name, id(p), p.requires_grad, p.device, p.dtype) for name, p in model.named_parameters()]

    def now() -> list[tuple[str, int, bool, torch.device, torch.dtype]]:
        return [(name, id(p), p.requires_grad, p.device, p.dtype) for name, p in model.named_parameters()]

    convert(model, BASE)
    assert now() == before
    tlsc.revert(model)
    assert now() == before


@each_kind
@pytest.mark.parametrize("training", [slow(False), True])
def test_i7_training_flags_survive_and_follow(network: Network, training: bool) -> None:
    model = network().train(training)
    last = list(model.modules())[-1].train(not training)

    def flags() -> list[tuple[str, bool]]:
        return [(path, module.training) for path, module in model.named_modules(remove_duplicate=False)]

    before = flags()
    convert(model, BASE)
    assert flags() == before
    tlsc.revert(model)
    assert flags() == before
    assert last.training is not training
    convert(model, BASE)
    model.train(not training)
    tlsc.revert(model)
    assert {module.training for module in model.modules()} == {not training}


@pytest.mark.parametrize("network", slow_unless(is_usual, [n for n in NETWORKS if n.name != IN_PLACE]), ids=str)
def test_i7_hooks_survive_and_their_handles_still_work(network: Network) -> None:
    model = network()
    path = tlsc.plan(model, BASE).converted[0].path
    site = model.get_submodule(path)
    fired: list[str] = []
    handles = [
        site.register_forward_pre_hook(lambda module, args: fired.append("pre")),
        site.register_forward_hook(lambda module, args, output: fired.append("forward")),
        site.register_full_backward_pre_hook(lambda module, given: fired.append("backward pre")),
        site.register_full_backward_hook(lambda module, inwards, outwards: fired.append("backward")),
    ]
    everything = {"pre", "forward", "backward pre", "backward"}

    def fires() -> set[str]:
        fired.clear()
        model(image(*LARGER).requires_grad_()).sum().backward()
        return set(fired)

    assert fires() == everything
    fired.clear()
    convert(model, BASE)
    assert fired == [], "the probe must not run hooks"
    assert fires() == everything
    handles.pop().remove()
    assert fires() == everything - {"backward"}
    # A hook given to the local module stays with the layer.
    handles.append(model.get_submodule(path).register_forward_hook(lambda *args: fired.append("late")))
    tlsc.revert(model)
    assert fires() == everything - {"backward"} | {"late"}
    for handle in handles:
        handle.remove()
    assert fires() == set()


@each_kind
def test_i7_an_optimizer_keeps_hold_of_the_parameters(network: Network) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, BASE)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(image(*LARGER)).square().mean().backward()
    # A bias in front of an instance norm has no effect: its gradient is zero up to rounding.
    graded = [p.grad is not None and bool(p.grad.abs().max() > 1e-9) for p in model.parameters()]
    optimizer.step()
    assert any(graded)
    steps = [(p.detach() - b).abs().max() for p, b in zip(model.parameters(), before, strict=True)]
    assert [bool(step > 1e-10) for step in steps] == graded
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    tlsc.revert(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained, strict=True))


@each_kind
@torch.no_grad()
def test_i7_a_deep_copy_is_independent(network: Network) -> None:
    model, x = network(), image(*LARGER)
    plain = model(x)
    local = convert(model, BASE)(x)
    twin = copy.deepcopy(model)
    tlsc.revert(twin)
    assert torch.equal(twin(x), plain)
    assert torch.equal(model(x), local)
    convert(twin, BASE)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(x), local)
    assert torch.equal(tlsc.revert(model)(x), plain)


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name in ("U-Net", "root is a group norm")], ids=str)
@torch.no_grad()
def test_i7_a_pickled_model_can_be_reverted(network: Network) -> None:
    model, x = network(), image(*LARGER)
    plain = model(x)
    local = convert(model, BASE)(x)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(x), local)
    assert torch.equal(tlsc.revert(twin)(x), plain)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(tlsc.revert(torch.load(file, weights_only=False))(x), plain)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.float32)], ids=str)
def test_i7_a_dtype_change_after_converting_reaches_the_originals(network: Network, dtype: torch.dtype) -> None:
    model = convert(network(), BASE)
    model.to(dtype)
    assert model(image(*LARGER, dtype=dtype)).dtype == dtype
    tlsc.revert(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(image(*LARGER, dtype=dtype)).dtype == dtype


@each_kind
def test_i7_attributes_and_settings_survive(network: Network) -> None:
    model = network()
    path = tlsc.plan(model, BASE).converted[0].path
    site = model.get_submodule(path)
    site.note = "kept"
    for module in model.modules():
        if isinstance(module, (nn.InstanceNorm2d, nn.GroupNorm)):
            module.eps = 0.5
    settings = {name: getattr(site, name) for name in getattr(site, "__constants__", ())}
    x = image(*BASE)
    before = model(x)
    convert(model, BASE)
    local = model.get_submodule(path)
    assert local.note == "kept"
    assert {name: getattr(local, name) for name in settings} == settings
    assert relative_error(model(x), before) <= 1e-12
