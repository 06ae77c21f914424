"""``uv run python -m benchmarks local_statistics`` prints one benchmark's tables."""

from __future__ import annotations

import argparse

from . import (
    attention,
    calibration,
    coverage,
    fingerprint,
    first_minutes,
    full_size,
    gpu,
    intervals,
    kernels,
    large,
    local_statistics,
    modes,
    mutants,
    nlm,
    pieces,
    prediction,
    realcugan,
    sources,
    states,
    structure,
    tuning,
    tuning_draws,
    values,
    versions,
    wheels,
)

BENCHMARKS = {
    "attention": attention.main,
    "first_minutes": first_minutes.main,
    "full_size": full_size.main,
    "intervals": intervals.main,
    "local_statistics": local_statistics.main,
    "nlm": nlm.main,
    "structure": structure.main,
}
WITH_PARTS = {
    "calibration": calibration.main,
    "coverage": coverage.main,
    "draws": tuning_draws.main,
    "fingerprint": fingerprint.main,
    "gpu": gpu.main,
    "kernels": kernels.main,
    "large": large.main,
    "modes": modes.main,
    "mutants": mutants.main,
    "pieces": pieces.main,
    "prediction": prediction.main,
    "realcugan": realcugan.main,
    "sources": sources.main,
    "states": states.main,
    "tune": tuning.main,
    "values": values.main,
    "versions": versions.main,
    "wheels": wheels.main,
}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("name", choices=[*BENCHMARKS, *WITH_PARTS])
parser.add_argument(
    "parts",
    nargs="*",
    help="of kernels: means, norms, windows, gates, networks; of calibration: train, networks, borders, "
    "guards, hinet, unets, and a folder of photographs; of coverage: plans (all but what is far), names of "
    "networks; of modes: names of networks; of gpu: dry (tiny, on the CPU), layers, gates, attention, "
    "nlm, networks; all if none; of fingerprint: the file to write, and one to compare with; of mutants: "
    "the file to write, and one whose mutants are run again; of versions: kernels (compiled for GPUs, "
    "too), versions of PyTorch; the oldest, 2.11 and the newest if none; of wheels: versions of Python, "
    "or paths of interpreters; of prediction: train, networks, picture FILE, "
    "whole; of tune: names of networks, and a folder of photographs; of "
    "draws: the same; of states: another checkout's "
    "folder, and threads; of values: the folder to write, and "
    "seconds to stop after, or another state's folder to compare with; of pieces: names of networks; of "
    "large: a network, WIDTHxHEIGHT, the memory, a folder; of "
    "realcugan: names of images, picture FILE, a folder that figures are kept in; of "
    "sources: the file that is kept",
)
given = parser.parse_args()
if given.name in WITH_PARTS:
    WITH_PARTS[given.name](given.parts)
elif given.parts:
    parser.error(f"{given.name} has no parts")
else:
    BENCHMARKS[given.name]()
