"""Files outside of ``docs/`` that are pages, too, and links that lead to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

# From the repository's root: the page that it is.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
}
LINK = re.compile(r"(?<!!)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for origin, page in PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / origin)))
    for page in list(files.documentation_pages()):
        for target in _targets(page.content_string, _folder(page.src_uri)):
            path = ROOT / target
            if target not in PAGES and not target.startswith("docs/") and path.is_file():
                files.append(File.generated(config, f"files/{target}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are on the repository's pages, made links of the site."""
    here, folder = posixpath.dirname(page.file.src_uri), _folder(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        place = _place(target)
        return f"]({posixpath.relpath(place, here or '.')}{link[2] or ''})"

    return LINK.sub(led, markdown)


def _place(target: str) -> str:
    """Where on the site a file of the repository stands."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}"


def _folder(page: str) -> str:
    """The folder that a page's links start from, in the repository."""
    origins = {place: origin for origin, place in PAGES.items() if origin != "README.md"}
    return posixpath.dirname(origins.get(page, f"docs/{page}"))


def _targets(text: str, folder: str) -> list[str]:
    return [posixpath.normpath(posixpath.join(folder, link[1])) for link in LINK.finditer(text)]
