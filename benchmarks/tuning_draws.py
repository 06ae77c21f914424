"""How ``tlsc tune`` decides on few photographs, drawn many times from many: ``docs/when-it-helps.md``.

``python -m benchmarks draws NAME… FOLDER`` measures networks of ``benchmarks tune`` on forty photographs of FOLDER
(PNG, 224×256 pixels of each) in every form in which some groups of sites are local, all over one window, with
statistics corrected or not, or none is. Then photographs to tune on are drawn, many times over, and what ``tlsc
tune`` would decide on them is compared on all others with the better of none and all over 1.5 times the crop, and
of none and all in the best form, corrected or not. Better is what is so on all forty: what is better on the few
that are left is so by chance, too. A last table tunes on the first sixteen once. What was measured is kept beside
the networks; a run goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

import tlsc
from tlsc._internal.prediction import doubt
from tlsc.eval.files import replacing
from tlsc.eval.judge.intervals import interval
from tlsc.eval.networks import Network
from tlsc.eval.tune.corrections import Corrections, uncorrected
from tlsc.eval.tune.groups import Choice, Local, as_choice, groups_of, shown
from tlsc.eval.tune.scores import Energies, Pairs
from tlsc.eval.tune.search import Found, tuned
from tlsc.eval.tune.tune import windows_for

from .small_networks import FOLDER
from .tuning import known_networks, photographs

PHOTOGRAPHS = 40
NUMBERS = (6, 8, 12, 16, 24)
ONCE = 16
DRAWS = 80

Values = NDArray[np.float64]


def forms(groups: int, windows: Sequence[Any]) -> list[Choice]:
    """None local; then some groups local or all, over each window, corrected or not."""
    which = list(itertools.product((True, False), repeat=groups))[:-1]
    every = [Local(window, strength) for strength in (0.0, 1.0) for window in windows]
    return [(None,) * groups, *(tuple(one if on else None for on in some) for one in every for some in which)]


def plain_references(choices: Sequence[Choice]) -> list[int]:
    """Numbers of the forms in which all or no site is local, none corrected."""
    return [n for n, choice in enumerate(choices) if len(set(choice)) == 1 and uncorrected(choice) == choice]


def measured(network: Network, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """PSNR and mismatch energy of each form on each photograph, and the mean square change from none and from all.

    ``moved`` is (references, forms, photographs): the references are the forms in which all or no site is local.
    """
    windows = windows_for(network, None, True)
    planned = cache(lambda size: tlsc.plan(network.model, size))
    groups = groups_of(planned(windows[0]))
    choices = forms(len(groups), windows)
    given = [one for one, _ in pairs]
    assert isinstance(network.crop, int)
    corrections = Corrections(network, given, groups, (network.crop, network.crop), 0)
    paired, energies = (
        kind(network, given, groups, planned, windows[0], corrections) for kind in (Pairs, Energies)
    )
    assert isinstance(paired, Pairs)
    assert isinstance(energies, Energies)
    paired.targets = [clean for _, clean in pairs]
    energies.measure_crops((network.crop, network.crop), 16, 0)
    references = plain_references(choices)
    psnr, energy = np.zeros((2, len(choices), len(pairs)))
    moved = np.zeros((len(references), len(choices), len(pairs)))
    kept = [dict(paired.outputs(choices[reference])) for reference in references]
    for n, choice in enumerate(choices):
        for i, out in paired.outputs(choice):
            psnr[n, i], energy[n, i] = paired.value(i, out), energies.value(i, out)
            for k, outputs in enumerate(kept):
                moved[k, n, i] = float((outputs[i] - out).square().mean())
    return {
        "groups": [group.name for group in groups],
        "windows": windows,
        "choices": choices,
        "psnr": psnr.tolist(),
        "energy": energy.tolist(),
        "moved": moved.tolist(),
        "disagreement": [own.disagreement for own in energies.crops],
    }


def all_measured(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Of these networks, what is kept and what is measured now."""
    found: dict[str, Any] = {}
    known = known_networks()
    for name in names:
        if name not in known:
            raise SystemExit(f"{name} is not there; these are: {', '.join(known)}")
        kept = FOLDER / f"draws-{folder.name}-{name}.json"
        if not kept.exists():
            network, degradation = known[name]
            pairs, _ = photographs(degradation, folder, PHOTOGRAPHS, 0)
            own = measured(network, pairs)
            with replacing(kept) as new:
                new.write_text(json.dumps(own))
            print(name, "measured", flush=True)
        found[name] = json.loads(kept.read_text())
    return found


class Forms:
    """What was measured of a network: what is decided on some photographs, and what it is worth on others."""

    def __init__(self, own: dict[str, Any]) -> None:
        self.choices = [as_choice(choice) for choice in own["choices"]]
        self.psnr, self.moved = np.array(own["psnr"]), np.array(own["moved"])
        self.energy = np.array(own["energy"])
        self.disagreement = np.array(own["disagreement"], dtype=float)
        self.groups = len(own["groups"])
        self.windows = [(w[0], w[1]) for w in own["windows"]]
        self.references = plain_references(self.choices)

    def decided(self, use: NDArray[np.intp], paired: bool) -> Found:
        """As ``tlsc tune`` decides on these photographs, but that no form has more than one window or strength.

        Corrections are those of all forty: each half of them is tried with what was found on the other.
        """
        values = (self.psnr if paired else self.energy)[:, use]

        def score(choice: Choice) -> Values:
            if choice in self.choices:
                own: Values = values[self.choices.index(choice)]
                return own
            return np.full(len(use), np.nan)

        def unsure(one: Choice, other: Choice) -> Values:
            reference = self.references.index(self.choices.index(other))
            moved = self.moved[reference, self.choices.index(one)][use]
            return np.array([doubt(m, d) for m, d in zip(moved, self.disagreement[use], strict=True)])

        least = Pairs.least if paired else -0.005 * float(values[0].mean())
        windows = self.windows if paired else self.windows[1:]
        return tuned(score, self.groups, windows, len(use), least, None if paired else unsure, 0, windows)

    def better(self, of: Sequence[int]) -> int:
        """The best form of some, on all photographs."""
        return max(of, key=lambda n: float(self.psnr[n].mean()))

    def over(self, choice: Choice, reference: int, rest: NDArray[np.intp]) -> Values:
        """Gain over a form, in dB on each of some photographs."""
        found: Values = (self.psnr[self.choices.index(choice)] - self.psnr[reference])[rest]
        return found

    @property
    def plain(self) -> int:
        """The better of none and all over 1.5 times the crop."""
        return self.better([0, self.choices.index((Local(self.windows[1]),) * self.groups)])

    @property
    def best(self) -> int:
        """The best of none and all, over any window, corrected or not."""
        return self.better([n for n, choice in enumerate(self.choices) if len(set(choice)) == 1])


def _drawn(forms_of: Forms, number: int, paired: bool) -> tuple[float, float, float]:
    """Means over draws: gain over the plain better of both, over the best, and how often a part was taken."""
    every = np.arange(forms_of.psnr.shape[1])
    rows = []
    for n in range(DRAWS):
        use = np.random.default_rng((5, n)).permutation(every)[:number]
        found, rest = forms_of.decided(use, paired), np.setdiff1d(every, use)
        against = (forms_of.plain, forms_of.best)
        gains = [forms_of.over(found.choice, reference, rest).mean() for reference in against]
        rows.append([*gains, float(found.choice != found.fallback)])
    over, hard, taken = np.mean(rows, 0).tolist()
    return over, hard, taken


def _once(name: str, forms_of: Forms) -> list[str]:
    """Tuned on the first sixteen, measured on all others."""
    photographs = np.arange(forms_of.psnr.shape[1])
    use, rest = photographs[:ONCE], photographs[ONCE:]
    row = [name, f"{forms_of.psnr[0, rest].mean():.2f}"]
    for strength in (0.0, 1.0):
        every = [forms_of.choices.index((Local(w, strength),) * forms_of.groups) for w in forms_of.windows]
        row += ["/".join(f"{forms_of.psnr[n, rest].mean():.2f}" for n in every)]
    for paired in (True, False):
        choice = forms_of.decided(use, paired).choice
        gain = forms_of.over(choice, forms_of.plain, rest)
        low, high = interval(gain.tolist()) if gain.any() else (0.0, 0.0)
        row += [", ".join(map(shown, choice)), f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"]
    return row


def main(parts: Sequence[str]) -> None:
    """Measure what is named, and print the tables."""
    torch.set_num_threads(1)
    folder = Path(parts[-1])
    found = {name: Forms(own) for name, own in all_measured(parts[:-1], folder).items()}
    rows = []
    for name, own in found.items():
        for paired in (True, False):
            cells = [_drawn(own, number, paired) for number in NUMBERS]
            shown_as = [f"{over:+.2f} / {hard:+.2f} ({taken:.0%})" for over, hard, taken in cells]
            rows.append([name, "with" if paired else "without", *shown_as])
    head = ["network", "pairs", *(f"tuned on {number}" for number in NUMBERS)]
    print(tabulate(rows, headers=head, tablefmt="github", disable_numparse=True))
    print()
    head = [
        "network",
        "none",
        "all",
        "all corrected",
        "with pairs",
        "over the better",
        "without",
        "over the better",
    ]
    rows = [_once(name, own) for name, own in found.items()]
    print(tabulate(rows, headers=head, tablefmt="github", disable_numparse=True))
