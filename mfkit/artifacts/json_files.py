"""JSON that anyone may have written: of bounded size and depth, its values of the kinds that are expected."""

import json
from pathlib import Path
from typing import Any

from mfkit.errors import InputError

_LARGEST = 1 << 28
"""Bytes of a file; the index of 20 million samples."""
_WORDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


def parse_json(text: str | bytes, source: object) -> Any:
    """Any JSON value.

    :raises InputError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{source} is damaged: {reason}") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file")
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is damaged: {path.stat().st_size} bytes of JSON")
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def fields(document: Any, source: object, **kinds: type) -> dict[str, Any]:
    """A JSON object whose fields of these names are of these kinds; others may be of any.

    :raises InputError: it is no object, or a field is missing or of another kind.
    """
    if not isinstance(document, dict):
        raise InputError(f"{source} is damaged: no object")
    for name, kind in kinds.items():
        value = document.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{source} is damaged: its {name} is not {_WORDS[kind]}")
    return document


def texts(values: Any, source: object, name: str) -> list[str]:
    """A JSON list of texts."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{source} is damaged: its {name} are not a list of texts")
    return values
