"""A command that is told to stop leaves whole files, and nothing half written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

VERBS = {
    "restore": (["pictures", "out", "--checkpoint", "hin", "--base-size", "16"], "*.png"),
    "eval": (["hin", "pictures", "--degrade", "noise:5", "--base-size", "16", "--out", "out"], "parts/*.jsonl"),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("verb", VERBS)
def test_sigterm_leaves_no_temporary_file(verb: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for number in range(60):
        PIL.Image.fromarray(pixels).save(tmp_path / f"pictures/{number:02}.png")
    arguments, first = VERBS[verb]
    command = [sys.executable, "-m", "tlsc.eval", verb, *arguments]
    out = tmp_path / "out"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(file.stat().st_size for file in out.glob(first)):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert {name for name in left if name.startswith(".")} <= {".lock"}
    assert not left & {"results.csv", "results.json", "report.html"}
    for path in out.glob("*.png"):
        with PIL.Image.open(path) as image:
            image.load()
            assert image.size == (300, 200)
