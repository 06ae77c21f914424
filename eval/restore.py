"""``tlsc restore``: from a checkpoint and photographs on disk to restored photographs."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc.errors import ArgumentValueError, TLSCError
from tlsc.eval.commands.arguments import add_overwrite_argument, size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tlsc.eval.images import Picture

__all__ = ["add_command", "calibrate_on", "restore_picture", "targets"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``restore`` to the command line."""
    parser = commands.add_parser(
        "restore",
        help="restore photographs with a pretrained network, whatever architecture its checkpoint holds",
        description="Restore photographs with a pretrained network. Its architecture is found from the checkpoint. "
        "8 and 16 bit, grey and RGB are read and written as they are, alpha is kept, EXIF orientation is applied. "
        "Results of several images are PNG. A file is written whole or not at all, never over an input, and over "
        "what else exists only with --overwrite; a bad one is named at the end, makes the exit status 1, and does "
        "not stop the rest.",
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help="images, folders of images, or glob patterns")
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder, or a file's name for a single image")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="weights by torch.save or safetensors, or a network of the demo by name ('tlsc list')",
    )
    parser.add_argument(
        "--base-size",
        type=size,
        help="convert to local statistics with this window at the input, in pixels: N or HEIGHTxWIDTH, such as 1.5 "
        "times the training crop (default: the network as trained)",
    )
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const="",
        metavar="PLAN",
        help="correct the converted network's statistics for what the training crops' borders did to them, on each "
        "image itself, or as a saved plan (JSON, Plan.save) says; with --base-size",
    )
    parser.add_argument(
        "--crop", type=int, metavar="N", help="side of the training crops, for --calibrate (default: what is known)"
    )
    parser.add_argument("--stride", type=int, default=1, help="grid of the strided path; 1 is exact (%(default)s)")
    parser.add_argument(
        "--tile", type=int, metavar="N", help="restore in tiles of N×N pixels (default: whole images)"
    )
    parser.add_argument(
        "--overlap", type=int, metavar="M", help="pixels that tiles share and are blended over (default: N / 8)"
    )
    parser.add_argument("--device", default="cpu", help="such as cuda or cuda:1 (%(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and images (%(default)s)")
    add_overwrite_argument(parser)
    parser.set_defaults(run=_restore)


def targets(inputs: Sequence[str], out: Path) -> dict[Path, Path]:
    """Which file each image is written to.

    One image by its name goes to ``out`` if that has an image's suffix and is no folder. Otherwise ``out`` is a
    folder, and the files in it are PNG, with the inputs' names; where two would be the same, with their suffixes,
    too (``a.jpg.png``). Inputs of several folders keep the folders below the one they have in common.

    Raises:
        ArgumentValueError: nothing is found, an input would be overwritten, or two outputs are still the same.
    """
    found: dict[Path, None] = {}
    for pattern in inputs:
        found.update(dict.fromkeys(_found(pattern)))
    images = list(found)
    if len(inputs) == 1 and Path(inputs[0]).is_file() and not out.is_dir() and out.suffix:
        written = {images[0]: out}
    else:
        if out.exists() and not out.is_dir():
            raise ArgumentValueError(f"{out} is a file; several images need a folder")
        top = Path(os.path.commonpath([image.absolute().parent for image in images]))
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


def restore_picture(
    model: nn.Module,
    picture: Picture,
    tile: int | None = None,
    overlap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Picture:
    """Restore one image with a network of :func:`tlsc.adapters.load`.

    A grey image goes through a network for RGB as three equal channels, of whose results the mean is taken; an RGB
    image through a network for grey channel by channel. Alpha is kept, enlarged where the network enlarges.

    Args:
        model: the network.
        picture: the image.
        tile: side of the square tiles in pixels, None for the whole image at once.
        overlap: pixels that neighbouring tiles share.
        progress: is told the number of tiles done and of all.

    Raises:
        TLSCError: the network takes neither grey nor RGB, or what it returns is not finite.
    """
    import numpy as np
    import torch

    alpha = picture.alpha
    image = torch.from_numpy(_filled(picture.pixels, alpha)).permute(2, 0, 1).unsqueeze(0)
    like = next(model.parameters(), image)
    restored = _in_its_channels(model, image.to(like.device, like.dtype), tile, overlap, progress).float().cpu()
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


def calibrate_on(model: nn.Module, picture: Picture, crop: int | None = None) -> list[str]:
    """Calibrate a converted network of :func:`tlsc.adapters.load` on the image that it is to restore.

    Args:
        model: the network; an earlier calibration is replaced.
        picture: the image.
        crop: side of the training crops in pixels; by default what is known of the network, at most its window.

    Returns:
        The warnings of :func:`tlsc.calibrate`.
    """
    import torch

    import tlsc
    from tlsc import adapters

    image = torch.from_numpy(picture.pixels).permute(2, 0, 1).unsqueeze(0)
    like, known = next(model.parameters(), image), getattr(model, "tlsc", None)
    described = known if isinstance(known, adapters.Descriptor) else adapters.Descriptor(type(model).__name__)
    if described.in_channels == 3 and image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    if described.in_channels == 1 and image.shape[1] == 3:
        image = image.transpose(0, 1)
    if crop is None:
        base = tlsc.plan(model).base_size
        crop = min(*base, described.crop or min(base))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", tlsc.TLSCWarning)
        tlsc.calibrate(model, image.to(like.device, like.dtype), crop)
    return [str(warning.message) for warning in said]


def _in_its_channels(
    model: nn.Module, image: Tensor, tile: int | None, overlap: int, progress: Callable[[int, int], None] | None
) -> Tensor:
    import torch

    from tlsc import adapters
    from tlsc.eval.run.tiles import in_tiles

    def restored(image: Tensor) -> Tensor:
        out = in_tiles(lambda part: adapters.run(model, part), image, tile, overlap, progress)
        if not bool(out.isfinite().all()):
            raise TLSCError("the network returned NaN or Inf; try --dtype float32, or look at its weights")
        return out.clamp(0, 1)

    known = getattr(model, "tlsc", None)
    channels = known.in_channels if isinstance(known, adapters.Descriptor) else 3
    if channels == image.shape[1]:
        return restored(image)
    if channels == 3 and image.shape[1] == 1:
        out = restored(image.expand(-1, 3, -1, -1))
        return out.mean(1, keepdim=True) if out.shape[1] == 3 else out
    if channels == 1 and image.shape[1] == 3:
        return torch.cat([restored(channel) for channel in image.chunk(3, dim=1)], 1)
    raise TLSCError(f"the network takes images of {channels} channels, neither grey nor RGB")


def _resized(alpha: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    import numpy as np
    import PIL.Image

    larger = PIL.Image.fromarray(np.ascontiguousarray(alpha)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    clipped: NDArray[np.float32] = np.clip(np.asarray(larger), 0, 1)  # the cubic overshoots
    return clipped


def _restore(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    import tlsc
    from tlsc import adapters
    from tlsc.eval.files import refuse_existing
    from tlsc.eval.images import check_writable, read_picture, write_picture

    tile, overlap = _tiling(args.tile, args.overlap)
    if args.calibrate is not None and args.base_size is None:
        raise ArgumentValueError("--calibrate corrects a converted network: give --base-size, too")
    plan = tlsc.Plan.load(args.calibrate) if args.calibrate else None
    places = targets(args.inputs, args.out)
    for place in places.values():
        check_writable(place)
    refuse_existing(places.values(), args.overwrite)
    demo = adapters.DEMO_NETWORKS.get(args.checkpoint) if not Path(args.checkpoint).exists() else None
    checkpoint = demo.weights if demo else Path(args.checkpoint)
    model = adapters.load(checkpoint, args.base_size, args.stride, args.device, getattr(torch, args.dtype))
    print(_described(model, args.base_size), flush=True)
    if plan is not None:
        tlsc.calibrate(model, plan)
    for folder in dict.fromkeys(place.parent for place in places.values()):
        folder.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, str] = {}
    with tqdm(places.items(), unit="image") as bar:
        for image, place in bar:
            try:
                picture = read_picture(image)
                check_writable(place, picture.bits, picture.alpha is not None)
                if args.calibrate == "":
                    for said in calibrate_on(model, picture, args.crop):
                        tqdm.write(f"tlsc: {image}: {said}", file=sys.stderr)
                restored = restore_picture(
                    model,
                    picture,
                    tile,
                    overlap,
                    lambda done, number, name=image.name: bar.set_postfix_str(f"{name}, tile {done} of {number}"),  # type: ignore[misc]
                )
                write_picture(place, restored)
            except Exception as error:
                # Whatever is wrong with this one, the next may be good.
                failed[image] = _reason(error)
    print(f"restored {len(places) - len(failed)} of {len(places)} images to {args.out}", flush=True)
    for image, reason in failed.items():
        print(f"tlsc: {image}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _tiling(tile: int | None, overlap: int | None) -> tuple[int | None, int]:
    if tile is None:
        if overlap is not None:
            raise ArgumentValueError("--overlap is of tiles: give --tile, too")
        return None, 0
    if tile < 1:
        raise ArgumentValueError(f"--tile must be a positive number of pixels, got {tile}")
    overlap = tile // 8 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ArgumentValueError(f"--overlap must be at least 0 and less than --tile {tile}, got {overlap}")
    return tile, overlap


def _found(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        from tlsc.eval.images import READABLE

        inside = sorted(entry for entry in path.iterdir() if entry.is_file())
        images = [entry for entry in inside if entry.suffix.lower() in READABLE and entry.name[0] != "."]
        if not images:
            raise ArgumentValueError(f"{path} holds no image ({', '.join(READABLE)})")
        if len(images) < len(inside):
            print(f"{path}: {len(inside) - len(images)} files are no images by their names, and left out")
        return images
    if path.exists():
        return [path]
    matching = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    images = [entry for entry in matching if entry.is_file()]
    if not images:
        raise ArgumentValueError(f"{pattern}: no such file or folder, and no file matches it as a pattern")
    return images


def _is_second(image: Path, place: Path, places: list[Path]) -> bool:
    return places.count(place) > 1 and image.suffix.lower() != ".png"


def _described(model: nn.Module, base_size: int | tuple[int, int] | None) -> str:
    import tlsc
    from tlsc.adapters import Descriptor

    known = model.tlsc
    assert isinstance(known, Descriptor)
    name = f"{known.architecture}, {known.task}" if known.task else known.architecture
    if base_size is None:
        recommended = f"; --base-size {known.base_size} would convert it" if known.base_size else ""
        return f"{name}, as trained{recommended}"
    plan = tlsc.plan(model, base_size)
    left = f", {len(plan.left)} stay global ('tlsc inspect' says why)" if plan.left else ""
    height, width = plan.base_size
    return f"{name}, {len(plan.converted)} sites local over {height}×{width} pixels{left}"


def _reason(error: Exception) -> str:
    from tlsc.adapters.pieces.memory import is_shortage
    from tlsc.eval.images import ImageError

    if isinstance(error, ImageError):
        return error.reason
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if is_shortage(error):
        return f"does not fit in memory whole: try --tile 512 ({lines[0][:120]})"
    if isinstance(error, (TLSCError, OSError)):
        return lines[0]
    return f"{type(error).__name__}: {lines[0][:200]}"
