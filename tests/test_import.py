"""``import tlsc`` costs torch and numpy, and nothing else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy, torch
before = {name.partition(".")[0] for name in sys.modules}
import tlsc
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith("tlsc.")))
"""


def _python(script: str) -> list[str]:
    # -I: neither the working directory nor PYTHON* variables; the installed package is what is imported.
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_importing_tlsc_loads_no_third_party_package_beyond_torch_and_numpy() -> None:
    loaded, ours = _python(SCRIPT)
    assert loaded == "tlsc"
    assert not any(name.startswith(("tlsc.adapters", "tlsc.eval")) for name in ours.split())


def test_importing_tlsc_loads_no_optional_dependency() -> None:
    (loaded,) = _python(
        "import sys, tlsc; print(*({'tabulate', 'matplotlib', 'skimage', 'scipy', 'numba', 'safetensors', "
        "'triton'} & set(sys.modules)))"
    )
    assert loaded == ""


def test_the_adapters_do_not_load_the_evaluation() -> None:
    (loaded,) = _python(
        "import sys, tlsc.adapters; "
        "print(*(name for name in sys.modules if name.startswith(('tlsc.eval', 'matplotlib', 'skimage'))))"
    )
    assert loaded == ""
