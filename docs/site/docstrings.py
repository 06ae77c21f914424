"""Docstrings as mkdocstrings takes them: roles become code, examples a section, joint arguments one row each."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|exc|data):`(~?)([\w.]+)`")
TOGETHER = re.compile(r"^( {4,})(\w+(?:, \w+)+): ((?:.|\n\1 +|\n(?=\n\1 +))+)", re.MULTILINE)


class House(griffe.Extension):
    """The house's docstrings are Google's, with Sphinx's roles for references."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        if obj.docstring is None:
            return
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = TOGETHER.sub(lambda row: "\n".join(f"{row[1]}{name}: {row[3]}" for name in row[2].split(", ")), text)
        obj.docstring.value = ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)
