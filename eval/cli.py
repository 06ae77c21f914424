"""The command line: ``tlsc`` and ``python -m tlsc.eval``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from tlsc import keep_memory
from tlsc.errors import TLSCError
from tlsc.eval.commands import advise, app, demo, evaluate, export, inspect, list, nlm, restore, shift, tune
from tlsc.eval.commands.parser import Parser
from tlsc.eval.telling import note, telling

__all__ = ["main", "script"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, or 1 with one line on standard error, or 130 when interrupted."""
    parser = Parser(
        prog="tlsc",
        description="Use image restoration networks on whole photographs: compare them as trained and "
        "converted to local statistics, restore pictures, export to ONNX. Start with 'tlsc demo', "
        "or with 'tlsc inspect NETWORK' for your own network.",
    )
    parser.add_argument("--version", action="version", version=f"tlsc {version('tlsc')}")
    parser.add_argument(
        "--print-completion", choices=["bash", "zsh", "tcsh"], action=_Completion, help="completion for that shell"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    # These modules import PyTorch and the rest when their command runs: help and a mistyped command come at once.
    for command in (demo, list, inspect, restore, evaluate, advise, tune, shift, nlm, export, app):
        command.add_command(commands)
    args = parser.parse_args(argv)
    with telling(args.quiet, args.verbose, args.json):
        return _run(args)


class _Completion(argparse.Action):
    """Prints what a shell's start-up file may hold."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        _, shell, *_ = given
        try:
            import shtab
        except ModuleNotFoundError:
            parser.exit(1, "tlsc: this needs shtab: pip install 'tlsc[eval]'\n")
        print(shtab.complete(parser, shell))
        parser.exit()


def _run(args: argparse.Namespace) -> int:
    try:
        _announce(args)
        return int(args.run(args))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in _EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        return _fail(f"this command needs {package}: pip install 'tlsc[{extra}]'")
    except (TLSCError, OSError) as error:
        if args.verbose:
            traceback.print_exc()
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _announce(args: argparse.Namespace) -> None:
    """A sign of life before PyTorch is imported, which may take long; one, whatever the number of processes."""
    if args.run is not list.run and "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        note(f"{version('tlsc')}, starting PyTorch")


def script() -> int:
    """The ``tlsc`` command: :func:`main` in a process of its own."""
    # Where memory is limited, what is freed has to be given back. Options may be abbreviated.
    if not any(word.startswith(("--mem", "--tol")) for word in sys.argv[1:]):
        keep_memory()
    for stream in (sys.stdout, sys.stderr):
        # Names of files may be of bytes that are no text, and a console may know fewer letters than we print.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # An exception, so that files that are being written are removed on the way out.
    signal.signal(signal.SIGTERM, _stop)
    try:
        return main()
    finally:
        # Nothing is being written any more, and exceptions are only printed while Python ends.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


_EXTRAS = {
    "eval": ("OpenEXR", "PIL", "imagecodecs", "matplotlib", "pyvips", "scipy", "skimage", "tifffile", "tqdm"),
    "networks": ("spandrel", "spandrel_extra_arches", "timm", "torchvision"),
    "onnx": ("onnx", "onnx_ir", "onnxruntime", "onnxscript"),
    "basicsr": ("basicsr",),
}


def _fail(message: str, status: int = 1) -> int:
    print(f"tlsc: {message}", file=sys.stderr)
    return status
