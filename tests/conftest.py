"""Settings of the processes that tests run in: pytest-xdist's workers inherit them, and what tests start."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Two worker processes with two OpenMP threads each often share two cores; a thread that waits in a busy loop takes
# the core from the one it waits for. Asleep instead, the tests take a third less time, and the kernels still run in
# parallel. Read when PyTorch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Where Python is told not to write bytecode, each of some fifty processes would compile PyTorch and the rest anew,
# for up to ten seconds. It is written, then, but not beside the sources, and not for long.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="tlsc-bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Keep what five thousand tests and their libraries are made of out of every garbage collection.

    Planning a conversion ends with one, which then takes a fraction of the time of the conversion, not half of it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def all_in_sight() -> Iterator[None]:
    """For tests of what finds objects by the garbage collector, which :func:`pytest_collection_finish` hides."""
    gc.unfreeze()
    yield
    pytest_collection_finish()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what plugins still import looks for what holds its objects
