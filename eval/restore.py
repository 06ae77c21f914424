"""Pictures through a network: which files are read and written, and one picture restored."""

from __future__ import annotations

import dataclasses
import glob
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc.errors import ArgumentValueError
from tlsc.eval.telling import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tlsc.eval.images import Picture
    from tlsc.eval.networks import Network

__all__ = ["calibrate_on", "restore_picture", "sources", "targets"]


def targets(inputs: Sequence[str], out: Path) -> dict[Path, Path]:
    """Which file each image is written to.

    One image by its name goes to ``out`` if that has an image's suffix and is no folder. Otherwise ``out`` is a
    folder, and the files in it are PNG, with the inputs' names; where two would be the same, with their suffixes,
    too (``a.jpg.png``). A folder's images are those at and below it, whose places below it are kept; inputs of
    several folders keep the folders below the one they have in common.

    Raises:
        ArgumentValueError: nothing is found, an input would be overwritten, or two outputs are still the same.
    """
    images, tops = _all(inputs, out)
    if len(inputs) == 1 and Path(inputs[0]).is_file() and not out.is_dir() and out.suffix:
        written = {images[0]: out}
    else:
        if out.exists() and not out.is_dir():
            raise ArgumentValueError(f"{out} is a file; several images need a folder")
        top = Path(os.path.commonpath([folder.absolute() for folder in tops]))
        places = {image: out / image.absolute().relative_to(top).with_suffix(".png") for image in images}
        names = list(places.values())
        written = {
            image: place.with_name(f"{image.name}.png") if _is_second(image, place, names) else place
            for image, place in places.items()
        }
    taken = {image.resolve(): image for image in images}
    first: dict[Path, Path] = {}
    for image, place in written.items():
        if place.resolve() in taken:
            raise ArgumentValueError(
                f"{taken[place.resolve()]} would be overwritten by the result of {image}: choose another OUT"
            )
        if place in first:
            raise ArgumentValueError(
                f"{first[place]} and {image} would both be written to {place}: restore them one by one"
            )
        first[place] = image
    return written


def sources(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders and patterns name, each once.

    Raises:
        ArgumentValueError: one of the inputs names none.
    """
    return _all(inputs, None)[0]


def restore_picture(
    model: nn.Module | Network,
    picture: Picture,
    tile: int | None = None,
    overlap: int = 0,
    progress: Callable[[int, int], None] | None = None,
    run: Callable[[Tensor], Tensor] | None = None,
) -> Picture:
    """Restore one image with a network of :func:`tlsc.adapters.load` or :func:`tlsc.eval.networks.load_network`.

    A grey image goes through a network for RGB as three equal channels, of whose results the mean is taken; an RGB
    image through a network for grey channel by channel. Alpha is kept, enlarged where the network enlarges.

    Args:
        model: the network.
        picture: the image.
        tile: side of the square tiles in pixels, None for the whole image at once.
        overlap: pixels that neighbouring tiles share.
        progress: is told the number of tiles done and of all.
        run: how the network restores an image with channels that it takes; by default whole or in tiles.

    Raises:
        TLSCError: the network takes neither grey nor RGB, or what it returns is not finite.
    """
    import numpy as np
    import torch
    from torch import nn

    from tlsc.eval.channels import Channels, in_range
    from tlsc.eval.networks import of_model
    from tlsc.eval.run.patches import in_tiles

    network = of_model(type(model).__name__, model) if isinstance(model, nn.Module) else model
    if run is None:

        def run(image: Tensor) -> Tensor:
            return in_tiles(network, image, tile, overlap, progress)

    alpha = picture.alpha
    image = torch.from_numpy(_filled(picture.pixels, alpha)).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        way = Channels(network.channels, image.shape[1])
        # One by one: three grey pictures take a third of the memory so.
        restored = way.taken(torch.cat([in_range(run(part)) for part in way.given(image).chunk(3)]))
    pixels = np.ascontiguousarray(restored[0].permute(1, 2, 0).numpy())
    if alpha is not None:
        height, width = pixels.shape[:2]
        enlarged = alpha if alpha.shape == (height, width) else _resized(alpha, height, width)
        _keep_hidden(pixels, picture.pixels, enlarged)
        alpha = enlarged
    return dataclasses.replace(picture, pixels=pixels, alpha=alpha)


def _filled(pixels: NDArray[np.float32], alpha: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The picture with the nearest visible colour where it is transparent.

    What is stored under full transparency, often black, would reach what is visible: a dark rim.
    """
    from scipy.ndimage import distance_transform_edt

    if alpha is None or alpha.all() or not alpha.any():
        return pixels
    rows, columns = distance_transform_edt(alpha == 0, return_distances=False, return_indices=True)
    filled: NDArray[np.float32] = pixels[rows, columns]
    return filled


def _keep_hidden(pixels: NDArray[np.float32], stored: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
    """Colours under full transparency as they were, where the picture was enlarged those of the nearest pixel."""
    import numpy as np

    hidden = alpha == 0
    if not hidden.any() or pixels.shape[2] != stored.shape[2]:
        return
    rows, columns = np.nonzero(hidden)
    height, width = alpha.shape
    pixels[rows, columns] = stored[rows * stored.shape[0] // height, columns * stored.shape[1] // width]


def calibrate_on(model: nn.Module | Network, picture: Picture, crop: int | None = None) -> list[str]:
    """Calibrate a converted network on the image that it is to restore.

    Args:
        model: the network, as for :func:`restore_picture`; an earlier calibration is replaced.
        picture: the image.
        crop: side of the training crops in pixels; by default what is known of the network, at most its window.

    Returns:
        The warnings of :func:`tlsc.calibrate`.
    """
    import torch
    from torch import nn

    import tlsc
    from tlsc._internal.prediction import smallest_window
    from tlsc.eval.networks import of_model

    network = of_model(type(model).__name__, model) if isinstance(model, nn.Module) else model
    image = torch.from_numpy(picture.pixels).permute(2, 0, 1).unsqueeze(0)
    if network.channels == 3 and image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    if network.channels == 1 and image.shape[1] == 3:
        image = image.transpose(0, 1)
    if crop is None:
        base = min(smallest_window(tlsc.plan(network.model)))
        crop = min(base, network.crop or base)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", tlsc.TLSCWarning)
        network.calibrated(image, crop)
    return [str(warning.message) for warning in said]


def _resized(alpha: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    import numpy as np
    import PIL.Image

    larger = PIL.Image.fromarray(np.ascontiguousarray(alpha)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    clipped: NDArray[np.float32] = np.clip(np.asarray(larger), 0, 1)  # the cubic overshoots
    return clipped


def _all(inputs: Sequence[str], out: Path | None) -> tuple[list[Path], list[Path]]:
    found: dict[Path, None] = {}
    tops: list[Path] = []
    for pattern in inputs:
        own, folders = _found(pattern, out)
        found.update(dict.fromkeys(own))
        tops += folders
    return list(found), tops


def _found(pattern: str, out: Path | None) -> tuple[list[Path], list[Path]]:
    """The images of an input, and the folders whose names are not kept: a folder itself, or that of each image.

    A folder's images are those below it, too, but for what was written to ``out``.
    """
    path = Path(pattern)
    if path.is_dir():
        from tlsc.eval.data.layouts import files, is_image
        from tlsc.eval.images import READABLE

        inside = files(path)
        if out is not None and path.resolve() in out.resolve().parents:
            inside = [file for file in inside if out.resolve() not in file.resolve().parents]
        found = [file for file in inside if is_image(file)]
        if not found:
            raise ArgumentValueError(f"{path} holds no image ({', '.join(READABLE)})")
        if len(found) < len(inside):
            say(f"{path}: {len(inside) - len(found)} files are no images by their names, and left out")
        return found, [path]
    if path.exists():
        return [path], [path.parent]
    matching = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    found = [entry for entry in matching if entry.is_file()]
    if not found:
        raise ArgumentValueError(f"{pattern}: no such file or folder, and no file matches it as a pattern")
    return found, [entry.parent for entry in found]


def _is_second(image: Path, place: Path, places: list[Path]) -> bool:
    return places.count(place) > 1 and image.suffix.lower() != ".png"
