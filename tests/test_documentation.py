"""The documentation's code runs, page by page, and its site holds together."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest
import torch

import tlsc
from tlsc import adapters
from tlsc.eval import cli

from .eval.reports import properties
from .marks import slow_unless
from .networks import with_random_weights

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# A page's blocks run one after the other, in one namespace. What cannot run has another language than these two.
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>python|console)\n(?P<text>.*?)^ *```$", re.M | re.S)
QUICK = ("index.md",)  # the other pages are for `pytest -m slow`
NEEDS = {"integrations.md": ("lightning", "timm", "spandrel"), "coreml.md": ("coremltools",)}
"""Packages of others that a page is about; they warn of many things."""


@dataclass
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in FENCE.finditer(text):
        code = re.sub(f"^{match['indent']}", "", match["text"], flags=re.M)
        found.append(Block(match["language"], code, text.count("\n", 0, match.start("text"))))
    return found


def pages() -> list[Any]:
    """Every page that has code."""
    found = [page for page in sorted([ROOT / "README.md", *DOCS.rglob("*.md")]) if blocks(page)]
    return slow_unless(lambda page: page.name in QUICK, found)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: a checkpoint and a few pictures, all small."""
    place = tmp_path_factory.mktemp("documentation")
    generator = np.random.default_rng(0)
    for name in ("photo.png", "photos/a.png", "photos/b.png", "degraded/a.png", "clean/a.png"):
        (place / name).parent.mkdir(exist_ok=True)
        coarse = generator.integers(40, 220, (6, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((56, 40), PIL.Image.Resampling.BICUBIC).save(place / name)
    model = with_random_weights(adapters.HINet(wf=4, hin_position_left=3))
    torch.save(
        {"params": {key: value * 0.1 for key, value in model.state_dict().items()}}, place / "HINet-GoPro.pth"
    )
    return place


@pytest.fixture
def place(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for path in material.rglob("*"):
        copy = tmp_path / path.relative_to(material)
        copy.mkdir() if path.is_dir() else copy.hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def given(page: Path) -> dict[str, Any]:
    """What a page takes for granted."""
    if page.name != "README.md":
        return {}
    image = torch.rand(1, 3, 80, 96)
    model = adapters.load_demo_network("se")
    return {"model": model, "image": image, "images": [image], "tlsc": tlsc}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("place")
@pytest.mark.filterwarnings("ignore::tlsc.TLSCWarning", "ignore::FutureWarning")  # random pictures, spandrel
def test_the_code_of_a_page_runs(page: Path) -> None:
    for package in NEEDS.get(page.name, ()):
        warnings.simplefilter("ignore")  # for this test: pytest puts the filters back
        pytest.importorskip(package, reason=f"{page.name} needs {package}")
    names: dict[str, Any] = {"__name__": "page", **given(page)}
    for block in blocks(page):
        with tlsc.backend("torch"):  # kernels would have to be compiled
            if block.language == "python":
                # The page and its line, so that an error's traceback leads there.
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
            for command in re.findall(r"^\$ tlsc (.*)$", block.text, re.M) if block.language == "console" else ():
                assert cli.main(shlex.split(command, comments=True)) == 0, f"{page}: tlsc {command}"


def test_the_api_page_names_everything_that_is_public() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^::: (\S+)$", text, re.M))
    errors = {f"tlsc.{name}" for name in tlsc.errors.__all__} | {"tlsc.functional"}
    public = {f"tlsc.{name}" for name in tlsc.__all__} - errors
    public |= {f"tlsc.adapters.{name}" for name in adapters.__all__}
    public |= {f"tlsc.functional.{name}" for name in tlsc.functional.__all__}
    assert told == public


def test_every_page_is_in_the_menu() -> None:
    menu = set(
        re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    )
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= menu


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """``uv run --group docs jupyter execute docs/notebooks/*.ipynb``; its outputs are not committed."""
    nbclient = pytest.importorskip("nbclient", reason="the dependency group docs is not installed")
    nbformat = pytest.importorskip("nbformat")
    pages = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in pages.cells)
    nbclient.NotebookClient(pages, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


class Links(HTMLParser):
    """What a page asks for, where its links lead, and the places in it that links may lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.asked: set[str] = set()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.asked.add(found.get("href", ""))
        elif "src" in found:
            self.asked.add(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``uv run --group docs mkdocs build --strict`` makes."""
    pytest.importorskip("mkdocs", reason="the dependency group docs is not installed")
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return made


@pytest.mark.slow
def test_the_site_asks_others_for_nothing_and_has_no_broken_link(site: Path) -> None:
    found = {page: Links(page) for page in site.rglob("*.html")}
    assert len(found) > 12
    for page, what in found.items():
        for target in what.asked:
            assert "//" not in target or target.startswith("data:"), f"{page.name} asks for {target}"
        for target in what.asked | what.links:
            path, _, part = unquote(target).partition("#")
            if re.match(r"[a-z]+:", path) or target.startswith(("data:", "/")):
                continue
            other = (page.parent / path).resolve() if path else page
            other = other / "index.html" if other.is_dir() else other
            assert other.is_file(), f"{page.name} leads to {target}"
            if part and other.suffix == ".html":
                assert part in found[other].places | {"__search"}, f"{page.name} leads to {target}"


@pytest.mark.slow
def test_the_site_in_a_browser(site: Path, browser: Any) -> None:
    """Every page is opened: no request leaves the machine, and none is for what is not there."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        browser.get("about:blank")
        browser.get_log("performance")
        for page in sorted(site.rglob("*.html")):
            browser.get(f"{home}{page.relative_to(site).as_posix()}")
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        server.shutdown()
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 50
    assert [url for url in asked if not url.startswith((home, "data:", "blob:", "about:"))] == []
    answers = [m["params"]["response"] for m in messages if m["method"] == "Network.responseReceived"]
    assert [answer["url"] for answer in answers if answer["status"] >= 400] == []


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_the_files_of_a_run_are_described() -> None:
    """The page names every property with the schema's own words; columns are tested where they are written."""
    text = (DOCS / "results-files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text.split("## results.json")[1], re.M)
    assert rows == properties()
