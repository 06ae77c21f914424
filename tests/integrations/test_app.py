"""``tlsc app``: what the page does, and once the page itself in a browser without a screen."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import tlsc
from tlsc.errors import ArgumentValueError
from tlsc.eval.cli import main
from tlsc.eval.networks import load_network
from tlsc.eval.show.app import Page, serve


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(load_network("se"), largest=20_000)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "photograph.png"
    values = np.random.default_rng(0).integers(0, 256, (72, 140, 3), dtype=np.uint8)
    values[:, :70] //= 3
    PIL.Image.fromarray(values).save(path)
    return path


def test_both_pictures_come_before_the_prediction(page: Page, photograph: Path) -> None:
    """The pictures are those of the network itself; afterwards it is as trained."""
    first, second = page.restored(str(photograph), 64)
    model = load_network("se").model
    with PIL.Image.open(photograph) as file:
        image = torch.from_numpy(np.array(file)).permute(2, 0, 1)[None] / 255
    said = tlsc.predict(model, image, 64, crop=64, crops_per_image=8).sentence
    with torch.no_grad():
        expected = [model(image), tlsc.convert(model, 64)(image)]
    for pictures in (first[:2], second[:2]):
        for picture, values in zip(pictures, expected, strict=True):
            assert picture is not None
            values = values[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
            assert np.abs(picture.astype(float) - values).max() < 1
    assert not torch.equal(*expected)
    assert first[2].startswith("Converted, pixels change by")
    assert second[2].endswith(said)
    assert not any("Local" in type(module).__name__ for module in page.network.model.modules())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "Choose a photograph first."),
        ("large.png", "has 0.1 million pixels, and this page takes up to 0.02 million"),
        ("text.png", "text.png"),
        ("absent.png", "absent.png"),
    ],
)
def test_what_cannot_be_restored_is_one_line(page: Page, tmp_path: Path, name: str | None, said: str) -> None:
    PIL.Image.new("RGB", (300, 300)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    ((before, after, line),) = page.restored(name and str(tmp_path / name), 96)
    assert before is after is None
    assert said in line
    assert "\n" not in line
    assert str(tmp_path) not in line


def test_what_cannot_be_compared_is_refused_at_once() -> None:
    with pytest.raises(tlsc.NoSiteError, match="nothing to convert"):
        Page(load_network("plain"))
    network = load_network("se")
    network.crop = network.base_size = None
    with pytest.raises(ArgumentValueError, match="se needs --base-size or --crop"):
        Page(network)
    assert Page(network, 80).windows == (40, 320)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "se"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "tlsc: the page needs gradio: pip install 'tlsc[app]'"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a screen, which notes every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--window-size=1280,1000", f"--user-data-dir={tmp_path / 'profile'}"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_in_a_browser(page: Page, photograph: Path, browser: Any, tmp_path: Path) -> None:
    """A photograph is sent, two pictures and a prediction appear, and no request leaves this machine."""
    pytest.importorskip("gradio", reason="Gradio is in the group 'integrations'")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    address = serve(page, None, wait=False)
    assert address.startswith("http://127.0.0.1:")
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(address)
    wait = WebDriverWait(browser, 120)
    said = (By.CSS_SELECTOR, "#said textarea")
    wait.until(lambda chrome: chrome.find_elements(*said))
    browser.find_element(By.CSS_SELECTOR, "#restore").click()
    wait.until(lambda chrome: "Choose a photograph" in chrome.find_element(*said).get_property("value"))
    browser.find_element(By.CSS_SELECTOR, "#photograph input[type=file]").send_keys(str(photograph))
    wait.until(
        lambda chrome: (
            "Leave" in chrome.find_element(*said).get_property("value")
            or "Convert at" in chrome.find_element(*said).get_property("value")
        )
    )
    for name in ("trained", "converted"):
        picture = browser.find_element(By.CSS_SELECTOR, f"#{name} img")
        assert (picture.get_property("naturalWidth"), picture.get_property("naturalHeight")) == (140, 72)
    assert browser.save_screenshot(str(tmp_path / "app.png"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))] == []
