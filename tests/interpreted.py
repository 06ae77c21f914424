"""Triton's interpreter with less to do, for processes that import this after setting ``TRITON_INTERPRET``.

Each call of a device function looks through all of Triton's language for what the interpreter is to replace, though
the start of the kernel has replaced it: for a third of the time.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def _patch_once() -> None:
    try:
        from triton.runtime import interpreter

        patch, scope, tl = interpreter._patch_lang, interpreter._LangPatchScope, interpreter.tl
    except (ImportError, AttributeError):
        return  # another version's, as slow as it is

    own = tl.core.range

    def patch_what_is_not(fn: Any) -> Any:
        languages = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        return scope() if languages and all(value.range is not own for value in languages) else patch(fn)

    interpreter._patch_lang = patch_what_is_not


_patch_once()
