"""A setting: a dataclass field that knows its help, unit, range and choices. The command line makes an option of each.

Only the standard library is imported here, so that help answers at once.
"""

from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar


def setting(
    default: Any,
    help: str,
    *,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
    choices: Collection[str] | None = None,
    only: tuple[str, str] | None = None,
    unless: tuple[str, Any] | None = None,
) -> Any:
    """A field of a :class:`Settings` class.

    :param metavar: its unit, as the help shows it. :param choices: the values it may have, such as a table's names.
    :param only: another setting and the value with which alone this one means something.
    :param unless: another, where the class has it, and the value with which this one means nothing.
    """
    rules = {"help": help, "metavar": metavar, "min": min, "max": max, "choices": choices}
    rules |= {"only": only, "unless": unless}
    return field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that belong together; they stand under one heading in the help."""

    heading: ClassVar[str]

    def __post_init__(self) -> None:
        """:raises ValueError: a value is out of range or none of the choices."""
        for item in settings_of(type(self)):
            value, rule = getattr(self, item.name), item.metadata
            if value is None:
                continue
            for one in value if isinstance(value, tuple) else (value,):
                if rule["choices"] is not None and one not in rule["choices"]:
                    raise ValueError(f"{item.name} is {one}; choose from {', '.join(rule['choices'])}")
                if rule["min"] is not None and not one >= rule["min"]:
                    raise ValueError(f"{item.name} is {one}; the least is {rule['min']}")
                if rule["max"] is not None and not one <= rule["max"]:
                    raise ValueError(f"{item.name} is {one}; the most is {rule['max']}")


def settings_of(kind: type[Settings]) -> list[Field]:
    """The fields of a class that are settings."""
    return [item for item in fields(kind) if item.metadata]


def own_defaults(kind: type[Settings]) -> set[str]:
    """The settings that a class inherits and has another default for."""
    bases = [base for base in kind.__mro__[1:] if is_dataclass(base)]
    inherited = [(item.name, item.default) for base in bases for item in fields(base)]
    own = {item.name: item.default for item in settings_of(kind)}
    return {name for name, default in inherited if name in own and own[name] != default}


def idle(item: Field, values: Mapping[str, Any]) -> str:
    """Why a setting says nothing among the values of the others, as an error tells it; empty where it does."""
    if item.metadata["only"]:
        other, value = item.metadata["only"]
        if values.get(other) != value:
            return f"{_option(item.name)} is of {_option(other)} {value}, not of {values.get(other)}"
    if item.metadata["unless"]:
        other, value = item.metadata["unless"]
        if values.get(other) == value:
            return f"{_option(item.name)} means nothing beside {_option(other)}" + (
                "" if value is True else f" {value}"
            )
    return ""


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The settings that are not the same in both, with both values; empty where all are."""
    names = sorted(name for name in stored.keys() | given.keys() if stored.get(name) != given.get(name))
    return "; ".join(f"{name} was {stored.get(name)}, is {given.get(name)}" for name in names)
