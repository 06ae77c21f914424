"""A denoiser that reads the strength of :class:`NonLocalMeans` off the noisy image, through global pooling."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tlsc._arguments import as_positive_int
from tlsc.adapters.nlm import NonLocalMeans

__all__ = ["NLMNet"]

_SIDE = 5  # of the neighbourhood whose variation is one sample
_WEIGHTS = Path(__file__).resolve().parent / "weights" / "nlm_net.safetensors"


class NLMNet(nn.Module):
    """Blind denoiser: how much each place of the image varies, global average pooling, a gate that gives ``h``.

    The network computes high-pass filters, the mean of their squares over a few pixels, its logarithm, and two
    1×1 convolutions that separate levels. Pooled, this is a soft histogram of local noise levels. Noise is
    everywhere and alike in all channels; texture is not. So the gate can use the histogram's low end and colour
    differences, while a mean of the variation itself would mistake texture for noise. Non-local means with
    Gaussian weights and colour distances then denoise the image.

    One ``h`` serves the whole image. :func:`tlsc.convert` makes the pooling local, and so ``h`` becomes a map:
    every pixel gets the strength for its surroundings, as each crop did in training. Nothing else in the
    network looks further than a few pixels, so local statistics are right here by construction.

    Args:
        width: channels of the levels and of the gate.
        search_window: of the non-local means, in pixels; odd.
        patch: of the non-local means, in pixels; odd.

    Shape:
        (N, 3, H, W) → (N, 3, H, W), RGB in [0, 1].

    Raises:
        ArgumentTypeError, ArgumentValueError: ``width`` is not a positive int, or ``search_window`` or ``patch``
            not an odd one; in ``forward`` as :func:`nonlocal_means`.

    Example:
        >>> import tlsc, torch
        >>> net = NLMNet.pretrained()
        >>> noisy = torch.rand(1, 3, 180, 200)
        >>> net.strength(noisy).shape
        torch.Size([1, 1, 1, 1])
        >>> tlsc.convert(net, base_size=NLMNet.base_size).strength(noisy).shape
        torch.Size([1, 1, 180, 200])
    """

    crop = 160
    """Side of the training crops, in pixels."""
    base_size = crop
    """The window to convert with, in pixels: the larger it is, the less is texture taken for noise."""

    def __init__(self, width: int = 16, search_window: int = 11, patch: int = 3) -> None:
        super().__init__()
        width = as_positive_int(width, "width")
        bank = _high_pass()
        # Repeated borders: zeros would look like strong edges, and differ in share between crop and image.
        self.filters = nn.Conv2d(3, len(bank), 3, padding=1, padding_mode="replicate", bias=False)
        with torch.no_grad():
            self.filters.weight.copy_(bank)
        self.around = nn.AvgPool2d(_SIDE, 1, _SIDE // 2, count_include_pad=False)
        self.levels = nn.Sequential(
            nn.Conv2d(len(bank) + 3, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        self.denoise = NonLocalMeans(
            None, search_window, patch, border="reflect", distance="color", weights="gaussian"
        )

    @classmethod
    def pretrained(cls) -> NLMNet:
        """With the weights that come with the package, in evaluation mode, on the CPU.

        They were trained by ``python -m tlsc.eval.train.nlm_net`` on 160 × 160 crops of photographs with white
        noise of a standard deviation from 0 to 0.25, constant in a crop.

        Raises:
            FileNotFoundError: the weight file is missing from the installation.
        """
        net = cls()
        net.load_state_dict(load_file(_WEIGHTS))
        return net.eval()

    def strength(self, x: Tensor) -> Tensor:
        """``h``: (N, 1, 1, 1), or a map (N, 1, H, W) once converted; positive.

        Args:
            x: (N, 3, H, W), RGB in [0, 1].
        """
        return self._read(self._variation(x))

    def _read(self, variation: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.levels(variation))
        return F.softplus(self.gate(pooled) - 2)

    def _variation(self, x: Tensor) -> Tensor:
        """Logarithms of root mean squares around each pixel; and its colour, because clipping makes noise less."""
        roots = 0.5 * (self.around(self.filters(x).square()) + 1e-6).log()
        return torch.cat([(roots + 4) / 1.5, 2 * self.around(x) - 1], 1)

    def forward(self, x: Tensor) -> Tensor:
        denoised: Tensor = self.denoise(x, self.strength(x))
        return denoised


def _high_pass() -> Tensor:
    """(12, 3, 3, 3): second differences in four ways, of brightness and of two differences of colour.

    White noise comes out of each with the standard deviation that it has.
    """
    second = torch.tensor([-1.0, 2.0, -1.0])
    across = F.pad(second[None], (0, 0, 1, 1))
    spatial = torch.stack([torch.outer(second, second), across, across.T, torch.diag(second)])
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    bank = torch.einsum("ck,sij->cskij", colors, spatial).flatten(0, 1)
    return bank / bank.square().sum((1, 2, 3), keepdim=True).sqrt()
