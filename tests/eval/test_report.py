"""report.html: what it holds, and what it does in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tlsc.eval import cli
from tlsc.eval.show.pictures import ERROR, ERRORS, error_map

from .reports import report_of

NET = """
import torch
from torch import nn

class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x - 0.5 * self.pool(x) + 0.25
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with its report, on images whose names would break out of a page that does not escape them."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for role in ("input", "target"):
        (root / role).mkdir()
    for number in range(4):
        target = rng.uniform(0.3, 0.7, (40, 48, 3)) + np.linspace(-0.3, 0.3, 48)[:, None]
        name = f'{number} <b onclick=alert(1)>&".png'
        for role, image in (("target", target), ("input", target + rng.normal(0, 0.1, target.shape))):
            Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).save(root / role / name)
    (root / "input/bad.png").write_bytes(b"")
    (root / "report_net.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        argv = ["sweep", "report_net:Level", ".", "--patch-size", "12,24", "--base-size", "12,16", "--skip-bad"]
        assert cli.main([*argv, "--crop", "12", "--out", "out"]) == 0
    return root / "out"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else_and_escapes_names(folder: Path) -> None:
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(source)
    assert "http" not in re.sub(r"http-equiv|data:[^\"]*", "", source)
    for tag, attributes in page.tags:
        assert tag not in ("b", "iframe", "object", "base")
        assert not any(name.startswith("on") or name == "style" for name in attributes), attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    policy = next(str(a["content"]) for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = " ".join(page.text)
    report = report_of(folder)
    assert report["verdict"]["recommendation"] in text
    assert report["protocol"] in text
    assert "input/bad.png" in text
    for mean in report["means"]:
        assert f"{mean['psnr']:.2f}" in text
    for row in report["results"]:
        assert row["image"] in text


def _state(before: Any, bar: Any) -> tuple[str, float]:
    """How the left picture is cut, and where the bar stands."""
    return before.value_of_css_property("clip-path"), bar.location["x"]


def test_the_page_in_a_browser(folder: Path, browser: Any) -> None:
    """Plots render, sliders move by mouse and by key, pictures change, and no request leaves the page."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    url = (folder / "report.html").as_uri()
    browser.get("about:blank")
    browser.get_log("performance")  # of the page that a browser begins with
    browser.get(url)
    plots = browser.find_elements(By.CSS_SELECTOR, "img.plot")
    assert len(plots) == 2
    for plot in plots:
        assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", plot) > 500
    pairs = browser.find_elements(By.CSS_SELECTOR, "figure.pair")
    assert len(pairs) == 3
    for pair in pairs:
        box = pair.find_element(By.CSS_SELECTOR, ".compare")
        before, after = (pair.find_element(By.CSS_SELECTOR, f"img.{side}") for side in ("before", "after"))
        assert before.get_property("naturalWidth") == after.get_property("naturalWidth") == 40
        assert before.get_attribute("src") != after.get_attribute("src")
        slider = pair.find_element(By.CSS_SELECTOR, "input")
        bar = pair.find_element(By.CSS_SELECTOR, ".bar")
        states = [_state(before, bar)]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(120, 0).release().perform()
        states.append(_state(before, bar))
        slider.send_keys(Keys.ARROW_LEFT * 5)
        states.append(_state(before, bar))
        assert len({edge for edge, _ in states}) == 3, states
        assert states[0][1] < states[2][1] < states[1][1]
        source = before.get_attribute("src")
        Select(pair.find_element(By.CSS_SELECTOR, "select.before")).select_by_visible_text("target")
        assert before.get_attribute("src") != source
        Select(pair.find_element(By.CSS_SELECTOR, "select.view")).select_by_visible_text("whole image")
        assert (after.get_property("naturalWidth"), after.get_property("naturalHeight")) == (48, 40)
        width = box.size["width"]
        Select(pair.find_element(By.CSS_SELECTOR, "select.zoomed")).select_by_visible_text("4×")
        assert box.size["width"] == pytest.approx(4 * width, abs=60)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert url in asked
    assert [other for other in asked if other != url and not other.startswith(("data:", "chrome:"))] == []
    assert browser.get_log("browser") == []
    browser.execute_script("window.scrollTo(0, 0)")
    assert browser.save_screenshot(str(folder / "screenshot.png"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_telephone_has_to_scroll_down_only(folder: Path, browser: Any, theme: str) -> None:
    """390 pixels wide, in both themes; plots are turned dark where the page is."""
    from selenium.webdriver.common.by import By

    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.get((folder / "report.html").as_uri())
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        plot = browser.find_element(By.CSS_SELECTOR, "img.plot")
        turned = plot.value_of_css_property("filter") != "none"
        assert browser.save_screenshot(str(folder / f"telephone-{theme}.png"))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert wide <= 390
    assert turned == (theme == "dark")


def test_errors_are_pictures_on_one_scale() -> None:
    truth = np.zeros((2, 3, 3), dtype=np.float32)
    picture = truth.copy()
    picture[0, 0], picture[0, 1], picture[1, 2] = ERROR, 2 * ERROR, (0, 0, 0.75 * ERROR)
    found = error_map(picture, truth)
    expected = matplotlib.colormaps[ERRORS]([0.0, 0.25, 1.0])[:, :3]
    np.testing.assert_allclose(found[1, 0], expected[0], atol=1e-6)
    np.testing.assert_allclose(found[1, 2], expected[1], atol=1e-2)
    np.testing.assert_allclose(found[0, :2], [expected[2]] * 2, atol=1e-6)
