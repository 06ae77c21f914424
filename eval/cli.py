"""The command line: ``tlsc`` and ``python -m tlsc.eval``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tlsc.errors import TLSCError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, or 1 with one line on standard error, or 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="tlsc", description="Local statistics at test time for image restorers.")
    parser.add_argument("--version", action="version", version=f"tlsc {version('tlsc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_inspect(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        return _fail(f"this command needs {error.name}: pip install 'tlsc[eval]'")
    except (TLSCError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


_EXTRA = ("matplotlib", "skimage", "tqdm")


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
    from tlsc.eval.demo import run

    return run(args.out, args.seed)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what converting would do to a network",
        description="Print the plan of a network: every site, its window, and what is done about it.",
    )
    parser.add_argument("network", help="name of a demo network; 'list' prints them")
    parser.add_argument(
        "--base-size",
        type=_size,
        help="window at the network's input, in pixels: N or HEIGHTxWIDTH (default: the training crop)",
    )
    parser.add_argument("--stride", type=int, default=1, help="grid of the strided path; 1 is exact (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    import json

    import tlsc
    from tlsc.adapters import DEMO_NETWORKS, load_demo_network

    if args.network == "list":
        for name, network in DEMO_NETWORKS.items():
            print(f"{name}: {network.description}")
        return 0
    model = load_demo_network(args.network)
    plan = tlsc.plan(model, args.base_size or DEMO_NETWORKS[args.network].crop, stride=args.stride)
    print(json.dumps(plan.as_dict(), indent=2) if args.json else plan)
    return 0


def _size(text: str) -> int | tuple[int, int]:
    """``384`` or ``384x512``."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be N or HEIGHTxWIDTH, in pixels, got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
