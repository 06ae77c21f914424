"""A denoiser that reads the strength of :class:`NonLocalMeans` off the noisy image, through global pooling."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tlsc._arguments import as_positive_int
from tlsc.adapters.nlm import NonLocalMeans

__all__ = ["NLMNet"]

_WEIGHTS = Path(__file__).resolve().parent / "weights" / "nlm_net.safetensors"


class NLMNet(nn.Module):
    """Blind denoiser: three convolutions, global average pooling, a gate that gives ``h``, non-local means.

    One ``h`` serves the whole image. :func:`tlsc.convert` makes the pooling local, and so ``h`` a map: every pixel
    gets the strength that its surroundings ask for, as each crop did in training. Nothing else in the network
    looks further than a few pixels, so that local statistics are right here by construction.

    Args:
        width: channels of the convolutions.
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
        >>> noisy = torch.rand(1, 3, 120, 160)
        >>> net.strength(noisy).shape
        torch.Size([1, 1, 1, 1])
        >>> tlsc.convert(net, base_size=NLMNet.base_size).strength(noisy).shape
        torch.Size([1, 1, 120, 160])
    """

    crop = 64
    """Side of the training crops, in pixels."""
    base_size = 96
    """The window to convert with, in pixels: one and a half crops."""

    def __init__(self, width: int = 16, search_window: int = 11, patch: int = 3) -> None:
        super().__init__()
        width = as_positive_int(width, "width")
        layers: list[nn.Module] = []
        for channels in (3, width, width):
            # Repeated borders: zeros would look like strong edges, and differ in share between crop and image.
            layers += [nn.Conv2d(channels, width, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        self.denoise = NonLocalMeans(None, search_window, patch, border="reflect")

    @classmethod
    def pretrained(cls) -> NLMNet:
        """With the weights that come with the package, in evaluation mode, on the CPU.

        They were trained by ``python -m tlsc.eval.train_nlm_net`` on 64 × 64 crops of photographs with white noise
        of a standard deviation from 0 to 0.22, constant in a crop.

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
        pooled: Tensor = self.pool(self.features(x - 0.5))
        return 0.1 * F.softplus(self.gate(pooled))

    def forward(self, x: Tensor) -> Tensor:
        denoised: Tensor = self.denoise(x, self.strength(x))
        return denoised
