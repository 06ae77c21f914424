"""Which sites to convert, decided with pairs and without, on photographs held out: ``docs/when-it-helps.md``.

``python -m benchmarks tune [NAME…] [FOLDER] [tuned=16] [held=24]`` tunes small networks (by default all that
are there; those of ``prediction train`` and ``calibration unets``) as ``tlsc tune`` does, and measures what was
decided. FOLDER holds clean photographs (PNG), of which 224×256 pixels are taken: the first six (``tuned=``) are
tuned on, the next eight (``held=``) held out. Without it the halves of three photographs are tuned on, and held
out are the same with haze and noise of another seed. What was measured is kept beside the networks; a run goes
on where it was stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.io
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

import tlsc
from tlsc.adapters import DEMO_NETWORKS, load_demo_network
from tlsc.eval.data.degradations import smooth_field
from tlsc.eval.files import replacing
from tlsc.eval.judge.intervals import interval
from tlsc.eval.networks import Network
from tlsc.eval.tune.corrections import Corrections
from tlsc.eval.tune.groups import Choice, Local, shown
from tlsc.eval.tune.scores import Pairs
from tlsc.eval.tune.tune import Tuning, tune

from .small_networks import FOLDER, HELD_OUT, SITE_BY_SITE, degradation_of, halves
from .unets import NETWORKS

TUNED, TESTED = 6, 8

Photographs = list[tuple[Tensor, Tensor]]


def known_networks() -> dict[str, tuple[Network, str]]:
    """Name: network, with its training crop, and degradation; those that are there."""
    found = {}
    for name in ("se", "hin", "hin-all"):
        demo = DEMO_NETWORKS[name]
        found[f"{name} (demo)"] = Network(name, load_demo_network(name), crop=demo.crop), demo.degradation
    for name, recipe in {**HELD_OUT, **SITE_BY_SITE}.items():
        if recipe.file(name).exists():
            found[name] = Network(name, recipe.load(name), crop=recipe.crop), recipe.degradation
    for name, own in NETWORKS.items():
        if (FOLDER / own.file("pt")).exists():
            found[name] = Network(name, own.load(FOLDER), crop=96), own.degradation
    return found


def photographs(
    degradation: str, folder: Path | None, tuned: int = TUNED, tested: int = TESTED
) -> tuple[Photographs, Photographs]:
    """To tune on, and held out: degraded and clean."""
    if folder is None:
        return _cut(halves(degradation)), _cut(halves(degradation, 1))
    pairs = []
    for number, file in enumerate(sorted(folder.glob("*.png"))[: tuned + tested]):
        clean = np.asarray(skimage.io.imread(file)[:224, :256, :3], dtype=np.float32) / np.float32(255)
        rng = np.random.default_rng((11, number))
        level = smooth_field(clean.shape[0], clean.shape[1], rng)
        given = degradation_of(degradation).apply(clean, level, rng)
        pair = [torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1) for x in (given, clean)]
        pairs.append((pair[0], pair[1]))
    pairs = _cut(pairs)
    return pairs[:tuned], pairs[tuned:]


def _cut(pairs: Photographs) -> Photographs:
    """To multiples of 16."""
    return [
        (
            a[:, : a.shape[1] // 16 * 16, : a.shape[2] // 16 * 16],
            b[:, : b.shape[1] // 16 * 16, : b.shape[2] // 16 * 16],
        )
        for a, b in pairs
    ]


def _measured(network: Network, tuned_on: Photographs, held_out: Photographs) -> dict[str, Any]:
    """PSNR on photographs held out: of none, of all at each window, of what was decided with pairs and without."""
    images, targets = [list(x) for x in zip(*tuned_on, strict=True)]
    ways = {"pairs": tune(network, images, targets), "no pairs": tune(network, images)}
    found: dict[str, Any] = {"PSNR": {}, "said": {name: way.sentence for name, way in ways.items()}}
    choices: dict[str, Choice] = {"none": (None,) * len(ways["pairs"].groups)}
    every = [Local(size, strength) for strength in (0.0, 1.0) for size in ways["pairs"].windows]
    choices.update({f"all at {shown(one)}": (one,) * len(ways["pairs"].groups) for one in every})
    choices.update({name: way.found.choice for name, way in ways.items()})
    choices["best found with pairs"] = ways["pairs"].found.best
    choices["best found without"] = ways["no pairs"].found.best
    found["PSNR"] = _values(network, ways["pairs"], images, held_out, choices)
    found["choices"] = {name: [shown(w) for w in choice] for name, choice in choices.items()}
    return found


def _values(
    network: Network, way: Tuning, tuned_on: list[Tensor], held_out: Photographs, choices: dict[str, Choice]
) -> dict[str, list[float]]:
    """PSNR of each choice on photographs held out, corrected by what was found on those it was tuned on."""
    assert isinstance(network.crop, int)
    given, clean = [list(x) for x in zip(*held_out, strict=True)]
    corrections = Corrections(network, tuned_on, way.groups, (network.crop, network.crop), 0)
    score = Pairs(
        network, given, way.groups, lambda size: tlsc.plan(network.model, size), way.windows[0], corrections
    )
    score.targets = clean
    found = {}
    for name, choice in choices.items():
        with score.converted(None if not any(choice) else score.plan_of(choice)):
            found[name] = [score.value(n, score.restored(image)) for n, image in enumerate(given)]
    return found


def main(parts: Sequence[str]) -> None:
    """Tune what is there, and print the table."""
    torch.set_num_threads(1)
    known = known_networks()
    numbers = {"tuned": TUNED, "held": TESTED}
    numbers.update((key, int(n)) for key, _, n in (part.partition("=") for part in parts) if key in numbers)
    named = [part for part in parts if part.partition("=")[0] not in numbers]
    folders = [Path(part) for part in named if part not in known]
    folder = folders[0] if folders else None
    some = "" if (numbers["tuned"], numbers["held"]) == (TUNED, TESTED) else "-{tuned}-{held}".format(**numbers)
    kept = FOLDER / f"tuned-{folder.name if folder else 'scikit-image'}{some}.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in [part for part in named if part in known] or list(known):
        if name not in found:
            network, degradation = known[name]
            found[name] = _measured(network, *photographs(degradation, folder, *numbers.values()))
            with replacing(kept) as new:
                new.write_text(json.dumps(found))
            print(f"{name}: {found[name]['said']}", flush=True)
    _print(found)


def _print(found: dict[str, Any]) -> None:
    rows = []
    for name, own in found.items():
        values = {key: np.array(one) for key, one in own["PSNR"].items()}
        plain, corrected = (
            max(keys, key=lambda key: values[key].mean()) if keys else None
            for keys in (
                [key for key in values if key.startswith("all") and key.endswith("corrected") == whether]
                for whether in (False, True)
            )
        )
        better = max(("none", plain), key=lambda key: values[key].mean())
        row = [name, f"{values['none'].mean():.2f}"]
        row += ["–" if key is None else f"{values[key].mean():.2f}" for key in (plain, corrected)]
        for way in ("pairs", "no pairs"):
            row.append(", ".join(own["choices"][way]))
            row += [_over(values[way] - values[key]) for key in (better, corrected) if key is not None]
        rows.append(row)
    head = ["network", "none", "all", "corrected"]
    head += ["with pairs", "over the better", "over corrected", "without", "over the better", "over corrected"]
    print(tabulate(rows, headers=head, tablefmt="github", disable_numparse=True))


def _over(gain: NDArray[np.float64]) -> str:
    low, high = interval(gain.tolist())
    return f"{gain.mean():+.3f}" + ("" if math.isnan(low) or not gain.any() else f" [{low:+.3f}, {high:+.3f}]")
