"""FFDNet: the reorganisation in both forms, the network against its description, the weights that come along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tlsc
from tlsc.adapters import FFDNet, load_demo_ffdnet
from tlsc.adapters.ffdnet import PixelShuffle, PixelUnshuffle
from tlsc.errors import ArgumentTypeError, ArgumentValueError

FORMS = ("shuffle", "convolution")


def _reference_unshuffle(x: np.ndarray) -> np.ndarray:
    """Channel c, then (0, 0), (0, 1), (1, 0), (1, 1): out[4c + 2i + j] = x[c, i::2, j::2]."""
    channels = [x[:, c, i::2, j::2] for c in range(x.shape[1]) for i in (0, 1) for j in (0, 1)]
    return np.stack(channels, 1)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
    double=st.booleans(),
)
def test_reorganisation_is_exact_and_so_is_its_inverse(
    form: str, channels: int, height: int, width: int, seed: int, double: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    x = torch.randn((2, channels, 2 * height, 2 * width), generator=generator, dtype=dtype) * 1e3
    blocks = PixelUnshuffle(channels, form)(x)  # type: ignore[arg-type]
    np.testing.assert_array_equal(blocks.numpy(), _reference_unshuffle(x.numpy()))
    assert torch.equal(PixelShuffle(channels, form)(blocks), x)  # type: ignore[arg-type]


def _reference_ffdnet(model: FFDNet, image: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The published order: noise-level channels, reorganised image; convolutions with ReLU between; back again."""
    blocks = torch.from_numpy(_reference_unshuffle(image.numpy()))
    x = torch.cat([level.expand(-1, image.shape[1], *blocks.shape[2:]), blocks], 1)
    convolutions = [layer for layer in model.model if isinstance(layer, nn.Conv2d)]
    for index, layer in enumerate(convolutions):
        x = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        x = x.relu() if index < len(convolutions) - 1 else x
    out = torch.empty_like(image)
    for c in range(image.shape[1]):
        for i in (0, 1):
            for j in (0, 1):
                out[:, c, i::2, j::2] = x[:, 4 * c + 2 * i + j]
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_what_the_paper_describes(channels: int, form: str) -> None:
    torch.manual_seed(0)
    model = FFDNet(channels, width=8, depth=4, form=form).double()  # type: ignore[arg-type]
    image = torch.rand(2, channels, 8, 10, dtype=torch.float64)
    with torch.no_grad():
        expected = _reference_ffdnet(model, image, torch.full((2, 1, 1, 1), 0.1, dtype=torch.float64))
        for sigma in (0.1, torch.tensor(0.1), torch.tensor([0.1, 0.1]), torch.full((2, 1, 8, 10), 0.1)):
            torch.testing.assert_close(model(image, sigma), expected, rtol=1e-6, atol=1e-8)
        # A map is averaged over the blocks.
        level = torch.rand(2, 1, 8, 10, dtype=torch.float64)
        expected = _reference_ffdnet(model, image, nn.functional.avg_pool2d(level, 2))
        torch.testing.assert_close(model(image, level), expected)


def test_defaults_are_the_published_sizes() -> None:
    for channels, width, depth in ((3, 96, 12), (1, 64, 15)):
        layers = [layer for layer in FFDNet(channels).model if isinstance(layer, nn.Conv2d)]
        assert len(layers) == depth
        assert {layer.out_channels for layer in layers[:-1]} == {width}
        assert (layers[0].in_channels, layers[-1].out_channels) == (5 * channels, 4 * channels)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (7, 9), (8, 9)])
@pytest.mark.parametrize("form", FORMS)
def test_odd_sizes_are_continued_and_cut(size: tuple[int, int], form: str) -> None:
    torch.manual_seed(0)
    model = FFDNet(3, width=8, depth=3, form=form)  # type: ignore[arg-type]
    image = torch.rand(1, 3, *size)
    level = torch.rand(1, 1, *size)
    even = [n + n % 2 for n in size]
    continued, continued_level = (
        nn.functional.pad(x, (0, even[1] - size[1], 0, even[0] - size[0]), mode="replicate") for x in (image, level)
    )
    with torch.no_grad():
        out = model(image, level)
        assert out.shape == image.shape
        torch.testing.assert_close(out, model(continued, continued_level)[..., : size[0], : size[1]])


def test_it_has_no_site_and_convert_says_so() -> None:
    model = load_demo_ffdnet()
    example = (torch.rand(1, 3, 16, 16), torch.tensor([0.1]))
    assert not tlsc.plan(model, 16, example_input=example)
    with pytest.raises(tlsc.NoSiteError, match="nothing to convert"):
        tlsc.convert(model, 16, example_input=example)


def test_the_weights_that_come_along_remove_noise() -> None:
    from skimage.metrics import peak_signal_noise_ratio
    from skimage.restoration import denoise_tv_chambolle

    from tlsc.eval.images.photographs import load_photograph

    clean = load_photograph("astronaut")[100:260, 150:310]
    model = load_demo_ffdnet()
    for sigma in (15 / 255, 50 / 255):
        noise = np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
        noisy = clean + np.float32(sigma) * noise
        with torch.no_grad():
            out = model(torch.from_numpy(noisy).permute(2, 0, 1)[None], sigma)[0].permute(1, 2, 0).numpy()
        ours, before = (peak_signal_noise_ratio(clean, x, data_range=1) for x in (out, noisy))
        variation = max(
            peak_signal_noise_ratio(
                clean, denoise_tv_chambolle(noisy, weight=w * sigma, channel_axis=2), data_range=1
            )
            for w in (1.0, 1.5, 2.0)
        )
        assert ours > before + 5
        assert ours > variation + 0.5


def test_training_starts_from_the_image() -> None:
    from tlsc.eval.train.ffdnet import train

    model = train(2, seed=0, width=32, depth=4)
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        difference = model(image, 0.1) - image
    assert 0 < float(difference.abs().mean()) < 0.15  # a third of what an image without relation has


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((torch.rand(1, 3, 4, 4), -0.1), ArgumentValueError),
        ((torch.rand(1, 3, 4, 4), float("nan")), ArgumentValueError),
        ((torch.rand(1, 3, 4, 4), "25"), ArgumentTypeError),
        ((torch.rand(1, 3, 4, 4), torch.rand(2)), ArgumentValueError),
        ((torch.rand(1, 3, 4, 4), torch.rand(1, 1, 2, 2)), ArgumentValueError),
        ((torch.rand(1, 1, 4, 4), 0.1), ArgumentValueError),
        ((torch.rand(3, 4, 4), 0.1), ArgumentValueError),
        ((torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.1), ArgumentTypeError),
        ((torch.rand(1, 3, 0, 4), 0.1), ArgumentValueError),
    ],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"sigma|image"):
        FFDNet(width=4, depth=2)(*arguments)


@pytest.mark.parametrize("arguments", [{"width": 0}, {"depth": 1}, {"channels": 0}, {"form": "slices"}])
def test_bad_settings_are_named(arguments: dict) -> None:
    with pytest.raises(ArgumentValueError, match=next(iter(arguments))):
        FFDNet(**arguments)
