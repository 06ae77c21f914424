"""Settings of the processes that tests run in: pytest-xdist's workers inherit them, and what tests start."""

import atexit
import contextlib
import gc
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# There is a worker process for each core, so that a second thread of one would only wait for the other's; tests of
# threads ask for two by name. A thread that waits in a busy loop takes the core from the one it waits for: asleep
# instead, the tests take a third less time. Both are read when PyTorch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.disable()  # until the tests are collected: what they and their libraries are made of stays

# Where Python is told not to write bytecode, each of some fifty processes would compile PyTorch and the rest anew,
# for up to ten seconds. It is written, then, but not beside the sources, and not for long.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="tlsc-bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)


# A red run has a reason in the change that it tests. New examples are looked for by --hypothesis-profile=explore.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile("same")

# Each file is one process's, so that what its tests share is made once. The long ones come first, so that no
# process is left with one at the end. In a fresh clone the first file compiles nearly all of Numba's kernels, for
# most of a minute: what the other process begins with needs none of them, or both would compile the same.
FIRST = (
    "test_invariants.py",
    "test_triton_compile.py",
    "test_triton_interpreted.py",
    "test_nlm_triton.py",
    "test_import.py",
    "test_docstrings.py",
    "test_quality.py",
    "test_export.py",
    "test_basicsr.py",
    "test_functional.py",
    "test_kernels.py",
    "test_command_line.py",
    "test_coverage.py",
    "test_nlm.py",
    "test_loading.py",
    "test_owners.py",
    "test_harness.py",
    "test_eval.py",
    "test_pieces.py",
    "test_surgery.py",
    "test_calibrate.py",
    "test_restore.py",
    "test_probe.py",
    "test_plan.py",
    "test_nlm_net.py",
    "test_influence.py",
    "test_wrapped.py",
    "test_modes.py",
)


# In a fresh environment nothing is compiled to bytecode yet. Processes that import the same files in the same order
# would each compile all of them: every other process begins with other libraries, and with the last file of tests.
OTHER_END = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[-1] in "13579"


def pytest_configure(config: pytest.Config) -> None:
    if OTHER_END and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        for name in ("scipy.signal", "matplotlib.figure", "sympy"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        config.args = sorted(map(str, Path(__file__).parent.rglob("test_*.py")), reverse=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files, not the tests in them: in every process alike, whatever it began with."""
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(item.path.name, len(FIRST)), item.path))


frozen_modules = 0


def pytest_collection_finish() -> None:
    """Keep what five thousand tests and their libraries are made of out of every garbage collection.

    Planning a conversion ends with one, which then takes a fraction of the time of the conversion, not half of it.
    """
    global frozen_modules
    gc.collect()
    gc.freeze()
    gc.enable()
    frozen_modules = len(sys.modules)


def pytest_runtest_setup() -> None:
    """The same random numbers whatever ran before; libraries loaded since then are kept out of collections, too."""
    import torch  # not in the process that only hands tests out

    torch.manual_seed(0)
    if len(sys.modules) > frozen_modules + 100:
        pytest_collection_finish()


@pytest.fixture
def all_in_sight() -> Iterator[None]:
    """For tests of what finds objects by the garbage collector, which :func:`pytest_collection_finish` hides."""
    gc.unfreeze()
    yield
    pytest_collection_finish()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what plugins still import looks for what holds its objects


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a screen, which notes every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    binary = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip(
            "no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--window-size=1100,1400", f"--user-data-dir={profile}"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()
