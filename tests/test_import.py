"""``import tlsc`` costs nothing, its contents torch and numpy, and any of its modules can be the first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tlsc.adapters import DEMO_NETWORKS
from tlsc.eval.commands.list import COME_ALONG

from .marks import slow

SCRIPT = """
import sys
import tlsc
print(*({"torch", "numpy"} & set(sys.modules)))
import numpy, torch
before = {name.partition(".")[0] for name in sys.modules}
tlsc.convert
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith("tlsc.")))
print(*({"tabulate", "matplotlib", "skimage", "scipy", "numba", "safetensors", "triton"} & set(sys.modules)))
from tlsc import *
print(all(globals()[name] is getattr(tlsc, name) for name in tlsc.__all__), {*tlsc.__all__} <= {*dir(tlsc)},
    tlsc.modules.__name__, hasattr(tlsc, "nothing"))
import tlsc.adapters
print(*(name for name in sys.modules if name.startswith(("tlsc.eval", "matplotlib", "skimage"))))
"""


def _python(script: str, *arguments: str) -> list[str]:
    # -I: neither the working directory nor PYTHON* variables; the installed package is what is imported.
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr == "" or arguments
    return done.stdout.splitlines()


def test_importing_tlsc_loads_nothing_and_its_contents_no_package_beyond_torch_and_numpy() -> None:
    """And every public name is there, however it is asked for; the adapters do not load the evaluation."""
    at_once, more, ours, optional, names, by_adapters = _python(SCRIPT)
    assert at_once == ""
    assert more == ""
    assert "tlsc._convert" in ours.split()
    assert not any(name.startswith(("tlsc.adapters", "tlsc.eval")) for name in ours.split())
    assert optional == ""
    assert names == "True True tlsc.modules False"
    assert by_adapters == ""


FIRST = """
import importlib, os, sys
from pathlib import Path
import numpy, torch, torch.fx, torch.onnx
import tlsc
top = Path(tlsc.__file__).parent
names = [".".join(file.relative_to(top.parent).with_suffix("").parts) for file in sorted(top.rglob("*.py"))]
names = [name for name in names
    if not name.startswith(("tlsc.adapters", "tlsc.eval", "tlsc._statistics.triton")) and "__" not in name]
for name in names[::EACH]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            os.write(1, f"{name}: {error!r}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
print(len(names) > 30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("each", [8, slow(1)])
def test_any_module_can_be_imported_first(each: int) -> None:
    """In a process that has PyTorch, but nothing of ours: an order of imports that works by luck fails here.

    Luck takes a circle, which ``test_architecture.py`` sees in the sources: usually every eighth module is tried.
    """
    code = FIRST.replace("EACH", str(each))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("arguments", "status"), [("--help", 0), ("--version", 0), ("list", 0), ("insepct", 2), ("restore --help", 0)]
)
def test_the_command_line_answers_without_pytorch(arguments: str, status: int) -> None:
    loaded = _python(
        "import sys\nfrom tlsc.eval import cli\ntry:\n    status = cli.main(sys.argv[1:])\n"
        "except SystemExit as left:\n    status = left.code\n"
        "print(status or 0, *({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))",
        *arguments.split(),
    )
    assert loaded[-1] == str(status)


def test_the_list_names_what_comes_along() -> None:
    described = {name: network.description for name, network in DEMO_NETWORKS.items()}
    assert {name: COME_ALONG[name] for name in COME_ALONG if name != "ffdnet"} == described
