"""JSON that anyone may have written: of bounded size, its values of the types that are expected."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mfkit.errors import InputError, reason

T = TypeVar("T")

_MAX_BYTES = 1 << 29
"""Of a file; the index of 20 million samples."""


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
            raise InputError(f"{path} is not a file")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is damaged: {path.stat().st_size} bytes of JSON")
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def parse(kind: type[T], value: Any, source: object) -> T:
    """A JSON value as a type: a dataclass by its fields, lists, dictionaries, literals, numbers and texts.

    :raises InputError: it is of another type, a field is missing or unknown, or the dataclass refuses its values.
    """
    try:
        return cast(T, _parse(kind, value, "it"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} is damaged: {reason(error)}") from error


def parse_known(kind: type[T], document: Mapping[str, Any], source: object) -> T:
    """:func:`parse` of those entries of an object that are fields of the dataclass; the others are passed over."""
    hints, _ = _fields(cast(Any, kind))
    return parse(kind, {name: document[name] for name in hints if name in document}, source)


def _parse(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(argument for argument in arguments if argument is not type(None)), value, name)
    if origin is Literal:
        if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in arguments):
            raise ValueError(f"{name} is not one of {', '.join(map(str, arguments))}")
        return value
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, name)
    if origin is dict and isinstance(value, dict):
        of_keys, of_values = arguments  # JSON has texts as keys alone
        return {of_keys(key): _parse(of_values, item, f"{name}.{key}"[:100]) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], item, name) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_parse(argument, item, name) for argument, item in zip(arguments, value, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool, dict, list) and type(value) is kind:
        return value
    raise ValueError(f"{name} is not {getattr(kind, '__name__', str(kind))}")


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of a dataclass's fields, by name, and those that have no default."""
    hints, known = get_type_hints(kind), [item for item in fields(kind) if item.init]
    required = (item.name for item in known if item.default is MISSING and item.default_factory is MISSING)
    return {item.name: hints[item.name] for item in known}, frozenset(required)


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    hints, required = _fields(kind)
    for wrong, what in ((required - value.keys(), "lacks"), (value.keys() - hints.keys(), "has an unknown")):
        if wrong:
            raise ValueError(f"{name} {what} {sorted(wrong)[0][:100]}")
    return kind(**{key: _parse(hints[key], item, key) for key, item in value.items()})
