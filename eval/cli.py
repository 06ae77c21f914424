"""The command line: ``tlsc`` and ``python -m tlsc.eval``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tlsc.errors import ArgumentTypeError, ArgumentValueError, TLSCError
from tlsc.eval import restore
from tlsc.eval.commands import evaluate as harness
from tlsc.eval.commands import export, nlm
from tlsc.eval.memory import keep_memory

if TYPE_CHECKING:
    from torch import nn

__all__ = ["main", "script"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, or 1 with one line on standard error, or 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="tlsc", description="Local statistics at test time for image restorers.")
    parser.add_argument("--version", action="version", version=f"tlsc {version('tlsc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_inspect(commands)
    harness.add_commands(commands)
    nlm.add_command(commands)
    restore.add_command(commands)
    export.add_command(commands, _size)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        extra = "onnx" if error.name.startswith("onnx") else "eval"
        return _fail(f"this command needs {error.name}: pip install 'tlsc[{extra}]'")
    except (TLSCError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def script() -> int:
    """The ``tlsc`` command: :func:`main` in a process of its own."""
    keep_memory()
    return main()


_EXTRA = (
    "PIL",
    "imagecodecs",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "scipy",
    "skimage",
    "tifffile",
    "tqdm",
)


def _fail(message: str, status: int = 1) -> int:
    print(f"tlsc: {message}", file=sys.stderr)
    return status


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="what converting buys on real photographs, with networks that come along",
        description="Restore photographs that come with scikit-image, in patches of growing size, with four small "
        "networks as trained and converted. Prints a table and writes results.csv, results.json, "
        "psnr.png and comparison.png. Takes about three minutes on two cores.",
    )
    parser.add_argument("--out", type=Path, default=Path("tlsc-demo"), help="folder to write to (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the degradation (%(default)s)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from tlsc.eval.commands.demo import run

    return run(args.out, args.seed)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what converting would do to a network, and how far its pixels reach",
        description="Print the plan of a network: every site, its window, and what is done about it; with "
        "--influence also how far input pixels reach before and after, measured, and the module that lets them.",
    )
    parser.add_argument(
        "network",
        help="a demo network by name ('list' prints them), or module:factory, something importable from here "
        "that returns a torch.nn.Module when called, or the file of a checkpoint",
    )
    parser.add_argument(
        "--base-size",
        type=_size,
        help="window at the network's input, in pixels: N or HEIGHTxWIDTH (default: the demo network's training "
        "crop, or what is recommended for a checkpoint's architecture; a network of your own needs one)",
    )
    parser.add_argument("--stride", type=int, default=1, help="grid of the strided path; 1 is exact (%(default)s)")
    parser.add_argument(
        "--influence",
        type=_size,
        nargs="?",
        const=0,
        metavar="SIZE",
        help="measure the influence on an input of this size: N or HEIGHTxWIDTH (default: three windows)",
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the influence; implies --influence")
    parser.add_argument("--json", action="store_true", help="print it all as JSON")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    import json

    import tlsc
    from tlsc.adapters import DEMO_NETWORKS

    if args.network == "list":
        for name, network in DEMO_NETWORKS.items():
            print(f"{name}: {network.description}")
        return 0
    model, base_size = _network(args.network, args.base_size)
    plan = tlsc.plan(model, base_size, stride=args.stride)
    data = plan.as_dict()
    if not args.json:
        print(plan)
    if args.influence is not None or args.picture is not None:
        size = args.influence or (3 * plan.base_size[0], 3 * plan.base_size[1])
        output = getattr(getattr(model, "tlsc", None), "output", None)
        before, after = tlsc.influence(model, size, output=output), None
        if plan.converted:
            after = tlsc.influence(tlsc.convert(model, base_size, stride=args.stride), size, output=output)
        data["influence"] = {"before": before.as_dict(), "after": after and after.as_dict()}
        if not args.json:
            print(f"\nbefore: {before}\n")
            print(f"after: {after}" if after is not None else "after: the same, as nothing becomes local")
        if args.picture is not None:
            if after is None:
                before.draw(args.picture)
            else:
                after.draw(args.picture, before=before)
    if args.json:
        print(json.dumps(data, indent=2))
    return 0


def _network(name: str, base_size: int | tuple[int, int] | None) -> tuple[nn.Module, int | tuple[int, int]]:
    """A network by its name, and the window for it."""
    model, recommended = network_named(name)
    base_size = base_size or recommended
    if base_size is None:
        raise ArgumentValueError(
            f"{name} needs --base-size: the window in pixels, such as 1.5 times its training crop"
        )
    return model, base_size


def network_named(name: str) -> tuple[nn.Module, int | None]:
    """A demo network, a checkpoint's, or what module:factory makes, and the recommended window."""
    from tlsc.adapters import DEMO_NETWORKS, load, load_demo_ffdnet, load_demo_network

    if name in DEMO_NETWORKS:
        return load_demo_network(name), DEMO_NETWORKS[name].crop
    if name == "ffdnet":
        return load_demo_ffdnet(), None
    if Path(name).is_file():
        model = load(name)
        return model, model.tlsc.base_size  # type: ignore[union-attr, return-value]
    if ":" in name:
        return _imported(name).eval(), None
    raise ArgumentValueError(
        f"no demo network {name!r}; there are {', '.join(DEMO_NETWORKS)} and ffdnet. "
        "Name one of your own as module:factory, or a checkpoint's file"
    )


def _imported(name: str) -> nn.Module:
    """What ``module:factory`` makes, the current directory searched first."""
    import importlib

    from torch import nn

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        made = importlib.import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
    except AttributeError as error:
        raise ArgumentValueError(f"{name}: {_line(error)}") from error
    except Exception as error:
        raise ArgumentValueError(f"{name}: importing {module!r} failed: {_line(error)}") from error
    finally:
        sys.path.remove("")
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise ArgumentTypeError(f"{name} must be callable and return a torch.nn.Module, got {type(made).__name__}")
    try:
        model = made()
    except Exception as error:
        raise ArgumentValueError(f"{name}() failed: {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"{name}() must return a torch.nn.Module, it returned {type(model).__name__}")
    return model


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _size(text: str) -> int | tuple[int, int]:
    """``384`` or ``384x512``."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be N or HEIGHTxWIDTH, in pixels, got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
