"""A picture larger than memory, from disk to disk: one process, one that is killed half-way, and two.

``uv run python -m benchmarks large [NETWORK] [WIDTHxHEIGHT] [SIZE] [FOLDER]``: by default ``hin``, 20000×15000
pixels and 1GB; the folder needs three times the picture (2.7 GB). The picture is a photograph repeated, darker to
the left and hazier downwards, so that statistics differ everywhere. Peaks are those of the whole process, from the
system, and above a process that has only loaded the network as trained.
"""

from __future__ import annotations

import filecmp
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

WINDOW = 96


def main(parts: list[str]) -> None:
    """``[NETWORK] [WIDTHxHEIGHT] [SIZE] [FOLDER]``: a line as soon as it is known."""
    size = next((part for part in parts if re.fullmatch(r"\d+x\d+", part)), "20000x15000")
    memory = next((part for part in parts if re.fullmatch(r"\d+[MG]i?B", part)), "1GB")
    folder = next((part for part in parts if Path(part).is_dir()), None)
    names = [part for part in parts if part not in (size, memory, folder)]
    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory(dir=folder) as made:
        picture = Path(made, "picture.tif")
        _make(picture, width, height)
        print(f"{width}×{height}, {picture.stat().st_size / 1e6:.0f} MB, --memory {memory}", flush=True)
        for name in names or ["hin"]:
            _restored(name, picture, memory)


def _restored(name: str, picture: Path, memory: str) -> None:
    out = picture.parent
    loaded = _measured(
        [sys.executable, "-c", f"from tlsc.adapters import load_demo_network as load; load({name!r})"]
    )
    command = ["-m", "tlsc.eval", "restore", name, str(picture), "--base-size", str(WINDOW), "--memory", memory]
    one = _measured([sys.executable, *command, "-o", str(out / "one.tif")])
    print(f"{name}, one process: {one['seconds']:.0f} s, {one['cpu']:.0f} s of processors", flush=True)
    print(f"peak {one['peak']:.0f} MB, {one['peak'] - loaded['peak']:.0f} above the network loaded", flush=True)
    print(one["said"].strip(), flush=True)

    before = set(out.iterdir())
    process = subprocess.Popen([sys.executable, *command, "-o", str(out / "killed.tif")], stdout=subprocess.DEVNULL)
    time.sleep(one["seconds"] / 2)
    process.kill()
    process.wait()
    print(f"killed after {one['seconds'] / 2:.0f} s: left {sorted(p.name for p in set(out.iterdir()) - before)}")

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    two = _measured([*torchrun, *command, "-o", str(out / "two.tif")])
    print(
        f"two processes: {two['seconds']:.0f} s, {two['cpu']:.0f} s of processors, peak of one {two['peak']:.0f} MB"
    )
    same = filecmp.cmp(out / "one.tif", out / "two.tif", shallow=False)
    print(f"bytes of one and of two processes: {'equal' if same else 'DIFFERENT'}", flush=True)


def _make(path: Path, width: int, height: int) -> None:
    """The photograph, repeated, times a ramp from left to right, behind haze that grows downwards."""
    import numpy as np
    import pyvips

    from tlsc.eval.images.photographs import load_photograph

    tile = np.rint(load_photograph("astronaut") * 255).astype(np.uint8)
    clear = pyvips.Image.new_from_array(tile)
    clear = clear.replicate(-(-width // tile.shape[1]), -(-height // tile.shape[0])).crop(0, 0, width, height)
    place = pyvips.Image.xyz(width, height)
    light, haze = place[0] * (0.7 / width) + 0.3, place[1] * (0.6 / height)
    hazy = clear * light * (1 - haze) + haze * 200
    hazy.cast("uchar").copy(interpretation="srgb").tiffsave(str(path), bigtiff=True)


_RUN = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "said": done.stdout, "seconds": time.perf_counter() - start,
    "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1e3 * 1.024}))
"""


def _measured(command: list[str]) -> dict[str, Any]:
    """Seconds, seconds of processors, and the largest peak of a process in MB, of a command and those it starts."""
    done = subprocess.run([sys.executable, "-c", _RUN, *command], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["code"]:
        raise SystemExit(f"{' '.join(command)} ended with {found['code']}:\n{found['said']}")
    return found
