"""The structure of the code in figures: ``uv run python -m benchmarks structure``.

Read off the sources, of which nothing is imported: import circles, arrows that lead up, private imports across
packages, the size of files and the complexity of functions, and how many places define an idea with one home.
``tests/test_architecture.py`` holds the figures to their bounds.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FLOORS", "Import", "circles", "complex_functions", "imports", "main", "modules", "private", "upward"]

ROOT = Path(__file__).parents[1]
FOLDERS = {"tlsc": "tlsc", "adapters": "tlsc.adapters", "eval": "tlsc.eval"}

# From the top. A module imports from its own floor and from those below it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("tlsc.eval",),
    ("tlsc.adapters",),
    ("tlsc", "tlsc._internal"),
    ("tlsc._prediction",),
    ("tlsc._convert",),
    ("tlsc._export", "tlsc._influence", "tlsc._calibration"),
    ("tlsc._surgery",),
    ("tlsc._forwards", "tlsc._sites", "tlsc.modules", "tlsc.attention", "tlsc.sources"),
    ("tlsc.functional", "tlsc._sources"),
    ("tlsc._statistics", "tlsc._models", "tlsc._plan", "tlsc._plan_file"),
    ("tlsc._windows", "tlsc._arguments", "tlsc._files", "tlsc._memory", "tlsc.errors"),
)

# Modules of tlsc that are private to its users, with a promise to adapters and eval.
PROMISED = ("tlsc._arguments", "tlsc._files", "tlsc._internal")


@dataclass(frozen=True)
class Import:
    """``importer`` takes ``name`` (empty: the module itself) from ``module``, on ``line``."""

    importer: str
    module: str
    name: str
    line: int


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The files of the three packages by their import names; what lies behind a link is counted once."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if folder == "tlsc" and parts[0] in ("adapters", "eval"):
                continue  # a link to the folder beside
            name = ".".join((package, *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(files: dict[str, Path]) -> Iterator[Import]:
    """Every import of one of ``files`` by another, also inside functions; not those for type checkers alone."""
    for importer, path in files.items():
        tree = _tree(path)
        unseen = {id(n) for block in _for_types_alone(tree) for n in ast.walk(block)}
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for node in ast.walk(tree):
            if id(node) in unseen:
                continue
            if isinstance(node, ast.Import):
                yield from (Import(importer, a.name, "", node.lineno) for a in node.names if a.name in files)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    if f"{module}.{alias.name}" in files:
                        yield Import(importer, f"{module}.{alias.name}", "", node.lineno)
                    elif module in files:
                        yield Import(importer, module, alias.name, node.lineno)


def _for_types_alone(tree: ast.AST) -> Iterator[ast.If]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and any(
            "TYPE_CHECKING" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(node.test)
        ):
            yield node


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def circles(found: list[Import]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    graph: dict[str, set[str]] = {}
    for one in found:
        if one.importer != one.module and not one.importer.startswith(f"{one.module}."):  # not a package's __init__
            graph.setdefault(one.importer, set()).add(one.module)
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in graph if a in reached[a]}
    return sorted(sorted(group) for group in groups)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        for following in graph.get(left.pop(), ()):
            if following not in seen:
                seen.add(following)
                left.append(following)
    return seen


def floor_of(module: str) -> int:
    """The place of a module among :data:`FLOORS`: that of its longest prefix."""
    matching = [
        (len(name), -place)
        for place, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return -max(matching)[1]


def upward(found: list[Import]) -> list[Import]:
    """Imports from a higher floor."""
    return [one for one in found if floor_of(one.module) < floor_of(one.importer)]


def private(found: list[Import]) -> list[Import]:
    """Imports of another package's names that begin with an underscore, or of its private modules."""
    out = []
    for one in found:
        if _package(one.importer) == _package(one.module):
            continue
        hidden = one.name.startswith("_") and not one.name.endswith("__")
        across = _top(one.importer) != _top(one.module)
        parts = one.module.split(".")
        own = any(part.startswith("_") for part in parts[1:]) and not one.module.startswith(PROMISED)
        # Inside tlsc a folder's name begins with an underscore; its modules are there for the other folders.
        deep = len(parts) > 2 and any(part.startswith("_") for part in parts[2:])
        if hidden or (across and own) or (not across and deep):
            out.append(one)
    return out


def _top(module: str) -> str:
    return next((p for p in ("tlsc.adapters", "tlsc.eval") if module == p or module.startswith(f"{p}.")), "tlsc")


def _package(module: str) -> str:
    """The folder a module belongs to: ``tlsc._forwards`` for ``tlsc._forwards.rules.table``."""
    top = _top(module)
    rest = module.removeprefix(top).lstrip(".").split(".")
    return f"{top}.{rest[0]}" if len(rest) > 1 or f"{top}.{rest[0]}" in _ROOMS else top


_ROOMS = frozenset(name for names in FLOORS for name in names if name.count(".") == 1)


def complex_functions(over: int, files: dict[str, Path]) -> list[tuple[str, int]]:
    """Functions whose cyclomatic complexity is over a bound, with it, the most complex first."""
    found = []
    for module, path in files.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                value = complexity(node)
                if value > over:
                    found.append((f"{module}:{node.name}", value))
    return sorted(found, key=lambda pair: -pair[1])


def complexity(function: ast.AST) -> int:
    """Cyclomatic complexity: one, and one for each decision.

    A decision is an ``if``, a loop, an ``except``, an ``assert``, a ``case``, a conditional expression, each
    ``for`` and ``if`` of a comprehension, and each further operand of ``and`` and ``or``. Inner functions
    count apart.
    """
    total = 1
    left = list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        total += isinstance(node, _DECISIONS)
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        left.extend(ast.iter_child_nodes(node))
    return total


_DECISIONS = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.IfExp),
    ast.match_case,
)


# Ideas that have one home, and how a definition of each is told.
IDEAS = {
    "where a window starts": r"\([^()'\n]*(?:\([^()\n]*\))? - 1\) ?// ?2",
    "the correction's formula": r"\((?:a|scale|rows\[0\]|self\.a) - 1(?:\.0)?\) \*|a1 \*",
    "readers of pictures": r"\b(?:Image\.open|new_from_file|imread|ImageInput\.open|new_from_buffer)\(",
    "tilings": r"def _?ramp\(",  # what fades one tile into the next
    "resolvers of a network's name": r"def (?:network_named|load_network|resolve\w*)\(",
    "sweep engines": r"def (?:run\(job|sweep\(models): ",  # variants × images, not by way of another engine
}


def places(pattern: str, files: dict[str, Path]) -> dict[str, int]:
    """How many lines of each module match."""
    out = {}
    for name, path in files.items():
        count = len(re.findall(pattern, path.read_text(encoding="utf-8")))
        if count:
            out[name] = count
    return out


def main() -> None:
    from tabulate import tabulate

    files = modules()
    found = list(imports(files))
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    largest = max(lengths, key=lambda name: lengths[name])
    hard = complex_functions(20, files)
    inside = sum(1 for path in files.values() for _ in _inside_functions(path, files))
    rows = [
        ("circles of imports, inside functions counted", len(circles(found))),
        ("imports of a higher floor", len(upward(found))),
        ("private imports across packages", len(private(found))),
        ("imports inside functions between own files", inside),
        ("files, lines", f"{len(files)}, {sum(lengths.values())}"),
        ("largest file", f"{lengths[largest]} ({largest})"),
        (
            "files over 450 lines; over 600",
            f"{sum(n > 450 for n in lengths.values())}; {sum(n > 600 for n in lengths.values())}",
        ),
        ("functions over complexity 20; most", f"{len(hard)}; {hard[0][1] if hard else 'none'}"),
        *((f"places: {idea}", sum(places(pattern, files).values())) for idea, pattern in IDEAS.items()),
    ]
    print(tabulate(rows, headers=["sign", "now"]))
    for title, lines in (
        ("circles", [" ↔ ".join(group) for group in circles(found)]),
        ("upward", [f"{one.importer}:{one.line} → {one.module}" for one in upward(found)]),
        (
            "private",
            [f"{one.importer}:{one.line} takes {one.name or 'it'} of {one.module}" for one in private(found)],
        ),
        ("complex", [f"{name} {value}" for name, value in hard]),
        ("long", [f"{name} {n}" for name, n in lengths.items() if n > 450]),
        *((idea, [f"{n} in {name}" for name, n in places(p, files).items()]) for idea, p in IDEAS.items()),
    ):
        print(f"\n{title}:", *(lines or ["none"]), sep="\n  ")


def _inside_functions(path: Path, files: dict[str, Path]) -> Iterator[ast.AST]:
    for outer in ast.walk(_tree(path)):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                own = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("tlsc"))
                if own:
                    yield node


if __name__ == "__main__":
    main()
