"""report.html: one page with tables, plots and before/after sliders, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlsc.eval.files import replacing
from tlsc.eval.show.comparisons import Comparison
from tlsc.eval.show.outputs import Outcome, best_row, filled, head, sweep_table
from tlsc.eval.show.pictures import ERROR
from tlsc.eval.show.seams import sentences

__all__ = ["write_report"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #0b6fb8; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.verdict { border-left: .4rem solid var(--accent); padding: .6rem 1rem; font-size: 1.1rem; background: #8881; }
.small { font-size: .85rem; opacity: .8; }
.scroll { overflow-x: auto; max-height: 36rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.best td { font-weight: 700; }
figure.seams img { max-width: 100%; }
img.plot { width: 100%; max-width: 58rem; background: #fff; }
@media (prefers-color-scheme: dark) { img.plot { filter: invert(1) hue-rotate(180deg); } }
@media (max-width: 30rem) { body { margin: 1rem auto; } .choose { flex-wrap: wrap; } }
figure { margin: 1.5rem 0; }
.zoom { max-width: 40rem; max-height: 90vh; overflow: auto; }
.compare { position: relative; width: calc(100% * var(--zoom)); line-height: 0; --at: 50%; --zoom: 1; }
.compare img { width: 100%; image-rendering: pixelated; display: block; }
.compare .before { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.compare .bar { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
  background: #ffd400; pointer-events: none; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.compare input:focus-visible ~ .bar { outline: 2px solid var(--accent); }
.choose { display: flex; justify-content: space-between; max-width: 40rem; gap: .5rem; margin-bottom: .3rem; }
.choose select { min-width: 0; max-width: 100%; font: inherit; font-size: .85rem; }
.store { display: none; }
"""

_SCRIPT = """
for (const figure of document.querySelectorAll("figure.pair")) {
  const box = figure.querySelector(".compare");
  const range = box.querySelector("input");
  const move = () => box.style.setProperty("--at", range.value + "%");
  range.addEventListener("input", move);
  move();
  const view = figure.querySelector("select.view");
  const show = () => {
    const stored = figure.querySelectorAll(".store[data-view=" + view.value + "] img");
    for (const side of ["before", "after"]) {
      box.querySelector("img." + side).src = stored[figure.querySelector("select." + side).value].src;
    }
  };
  for (const select of figure.querySelectorAll("select.before, select.after, select.view")) {
    select.addEventListener("change", show);
  }
  show();
  const zoom = figure.querySelector("select.zoomed");
  zoom.addEventListener("change", () => box.style.setProperty("--zoom", zoom.value));
}
"""


def write_report(
    path: Path, outcome: Outcome, plots: Sequence[tuple[str, bytes]], comparisons: Sequence[Comparison]
) -> None:
    """Write the page. Its content security policy allows its own style and script, by hash, and inline images.

    Args:
        path: of the file.
        outcome: what to show.
        plots: caption and SVG of each.
        comparisons: for the sliders.
    """
    verdict = outcome.verdict
    title = f"tlsc {outcome.command}: {outcome.network}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(verdict.recommendation)}</p>',
        f'<p class="small">Gains: {escape(verdict.interval)}.</p>' if verdict.interval else "",
        _list(verdict.remarks),
        "<h2>What was measured</h2>",
        _list(head(outcome)),
        "<h2>Figures</h2>",
        _cells_table(outcome),
        "<p class='small'>Gain: mean over images of PSNR minus the baseline's, with its interval. Time: median "
        f"over images, on {escape(outcome.device)}. Peak: of the process (or the GPU) while the network ran, all "
        "images.</p>",
    ]
    if outcome.command == "sweep":
        parts += ["<h2>PSNR by patch size</h2>", _table(*sweep_table(outcome))]
    for caption, drawing in plots:
        source = base64.b64encode(drawing).decode()
        parts.append(
            f'<figure><img class="plot" alt="{escape(caption)}" src="data:image/svg+xml;base64,{source}">'
            f'<figcaption class="small">{escape(caption)}</figcaption></figure>'
        )
    if comparisons:
        parts.append("<h2>Where the results differ most</h2>")
        how = "Drag, or use the arrow keys. Choose what stands left and right, the part, and how large it is."
        parts.append(f'<p class="small">{how}</p>')
        parts += [_pair(number, found) for number, found in enumerate(comparisons)]
    parts += [_seams(outcome, comparisons), _bad(outcome), _per_image(outcome)]
    with replacing(path) as new:
        new.write_text(_page(title, "\n".join(parts)), encoding="utf-8", errors="replace")


def _page(title: str, body: str) -> str:
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _table(names: Sequence[str], body: Sequence[Sequence[str]], best: int | None = None) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for number, row in enumerate(body):
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        lines.append(f'<tr class="best">{cells}</tr>' if number == best else f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _cells_table(outcome: Outcome) -> str:
    return _table(*filled(outcome), best_row(outcome))


def _seams(outcome: Outcome, comparisons: Sequence[Comparison]) -> str:
    """Both indicators in a sentence each, and a picture of where plain tiles meet."""
    said = sentences(outcome.summaries)
    found = next((own.seams for own in comparisons if own.seams is not None), None)
    if not said and found is None:
        return ""
    parts = ["<h2>Seams, and crops within images</h2>", _list(said)]
    if found is not None:
        caption = (
            f"{found.image}: {found.cell}, minus the same network on the whole image; white is "
            f"{255 * found.brightest:.2g}/255 and more. Rectangles are seams: statistics differ from tile to tile."
        )
        picture = _exact(np.repeat(found.picture[..., None], 3, axis=2))
        parts.append(
            f'<figure class="seams"><img alt="differences where tiles meet" src="{picture}">'
            f'<figcaption class="small">{escape(caption)}</figcaption></figure>'
        )
    return "".join(parts)


def _pair(number: int, found: Comparison) -> str:
    names = list(found.crops)
    stored = "".join(
        f'<div class="store" data-view="{view}">'
        + "".join(f'<img alt="{escape(name)}" src="{source(own[name])}">' for name in names)
        + "</div>"
        for view, own, source in (("detail", found.crops, _exact), ("whole", found.whole, _small))
    )
    left, top, width, height = found.place
    options = list(enumerate(names))
    before, after = (
        _select(side, f"{side}, image {number + 1}", options, names.index(chosen))
        for side, chosen in (("before", found.before), ("after", found.after))
    )
    views = _select(
        "view", f"part of image {number + 1}", [("detail", "detail"), ("whole", "whole image")], "detail"
    )
    zooms = _select("zoomed", f"zoom of image {number + 1}", [(n, f"{n}×") for n in (1, 2, 4, 8)], 1)
    caption = (
        f"{found.image}: {width}×{height} pixels at ({left}, {top}), sample for sample, or all of it, compressed. "
        f"Errors: mean of the channels, brightest from {ERROR:g} of the range on."
    )
    return (
        f'<figure class="pair"><div class="choose">{before}{after}</div><div class="zoom"><div class="compare">'
        f'<img class="after" alt="right: {escape(found.image)}">'
        f'<img class="before" alt="left: {escape(found.image)}">'
        '<input type="range" min="0" max="100" value="50" step="any" aria-label="where left ends and right begins">'
        f'<div class="bar"></div></div></div><div class="choose">{views}{zooms}</div>{stored}'
        f'<figcaption class="small">{escape(caption)}</figcaption></figure>'
    )


def _select(name: str, label: str, options: Sequence[tuple[object, str]], chosen: object) -> str:
    listed = "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in options
    )
    return f'<select class="{name}" aria-label="{escape(label)}">{listed}</select>'


def _exact(picture: NDArray[np.float32]) -> str:
    return _inline(picture, "PNG", optimize=True)


def _small(picture: NDArray[np.float32]) -> str:
    return _inline(picture, "WEBP", quality=92)


def _inline(picture: NDArray[np.float32], kind: str, **settings: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def _bad(outcome: Outcome) -> str:
    lines = [str(bad) for bad in outcome.data.bad]
    lines += [f"failed: {r.image} ({r.cell}): {r.message}" for r in outcome.failed]
    return f"<h2>Left out: {len(lines)}</h2>{_list(lines)}" if lines else ""


def _per_image(outcome: Outcome) -> str:
    table: dict[str, dict[str, str]] = {}
    for record in outcome.records:
        table.setdefault(record.image, {})[record.cell] = f"{record.psnr:.2f}" if record.good else record.status
    names = [str(cell) for cell in outcome.cells]
    body = [[image, *(own.get(name, "") for name in names)] for image, own in table.items()]
    shown = _table(["image", *names], body)
    return f"<h2>PSNR of every image, dB</h2><details><summary>Show</summary>{shown}</details>"
