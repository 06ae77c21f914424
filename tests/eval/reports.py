"""results.json, held to its schema wherever a test reads it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

__all__ = ["SCHEMA", "properties", "report_of"]

SCHEMA: dict[str, Any] = json.loads(files("tlsc.eval.show").joinpath("results.schema.json").read_text("utf-8"))


def report_of(out: Path) -> Any:
    """A run's results.json, which has no NaN, and nothing that its schema does not name."""
    text = (out / "results.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=pytest.fail)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    return report


def properties(schema: dict[str, Any] = SCHEMA, at: str = "") -> list[tuple[str, str]]:
    """Every property of a schema, by its path, and what it is."""
    found = []
    for name, own in schema.get("properties", {}).items():
        path = f"{at}{name}" + ("[]" if "items" in own and own["items"].get("type") == "object" else "")
        found.append((path, own["description"]))
        found += properties(own.get("items", own), f"{path}.")
    return found
