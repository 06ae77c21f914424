"""Grey and RGB pictures for networks that take the other."""

from __future__ import annotations

from torch import Tensor

from tlsc.errors import TLSCError

__all__ = ["Channels", "in_range"]


class Channels:
    """Between pictures of so many channels and a network for images of so many.

    Raises:
        TLSCError: the network takes neither the picture's channels, nor grey or RGB.

    Example:
        >>> import torch
        >>> way = Channels(network=3, picture=1)
        >>> way.taken(way.given(torch.rand(1, 1, 8, 8))).shape
        torch.Size([1, 1, 8, 8])
    """

    def __init__(self, network: int, picture: int) -> None:
        self._network, self._picture = network, picture
        if network not in (1, 3) and network != picture:
            raise TLSCError(f"the network takes images of {network} channels, neither grey nor RGB")

    def given(self, image: Tensor) -> Tensor:
        """(1, C, H, W) as the network takes it: a grey picture three times, RGB as three grey pictures."""
        if self._picture == 1 and self._network == 3:
            return image.expand(-1, 3, -1, -1)
        return image.transpose(0, 1) if self._picture == 3 and self._network == 1 else image

    def taken(self, result: Tensor) -> Tensor:
        """(1, C, H, W) of what it returned: the mean of three, or three grey pictures as RGB."""
        if self._picture == 1 and self._network == 3 and result.shape[1] == 3:
            return result.mean(1, keepdim=True)
        if self._picture == 3 and self._network == 1:
            return result.flatten(0, 1).unsqueeze(0)
        return result


def in_range(result: Tensor) -> Tensor:
    """What a network returned, in float32 on the CPU and clipped to [0, 1].

    Raises:
        TLSCError: it is not finite.
    """
    if not bool(result.isfinite().all()):
        raise TLSCError("the network returned NaN or Inf; try --dtype float32, or look at its weights")
    return result.float().cpu().clamp(0, 1)
