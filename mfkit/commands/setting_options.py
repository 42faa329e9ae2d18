"""From a setting to an option of the command line, whose help says what each preset has in its default's place.

Only the standard library and typer are imported here, so that help answers at once.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import Field
from typing import Annotated, Any, Literal, get_args

import typer

from mfkit.config.presets import PRESETS
from mfkit.flow.objectives import Objective, Stage
from mfkit.setting import Settings


def setting_option(item: Field[Any], hint: Any, kind: type[Settings], command: str) -> Any:
    """A setting as an optional typer option: None means that the preset decides."""
    rule = item.metadata
    low, high = rule["min"], rule["max"]
    if hint is int:
        low, high = (None if bound is None else int(bound) for bound in (low, high))
    heading = next(
        str(vars(base).get("heading") or kind.heading)
        for base in reversed(kind.__mro__)
        if item.name in inspect.get_annotations(base)
    )
    values = {label: values.get(item.name, item.default) for label, values in _presets(command, kind).items()}
    # A switch that is off unless it is given needs no way to turn it off.
    names = [f"--{item.name.replace('_', '-')}"] if hint is bool and not any([item.default, *values.values()]) else []
    choices = rule["choices"]
    repeatable = get_args(hint)[1:] == (...,)
    metavar = rule["metavar"] or ("|".join(choices) if repeatable and choices else None)
    option = typer.Option(
        *names, help=rule["help"] + ("" if names else _defaults(item.default, values)), metavar=metavar, min=low,
        max=high, rich_help_panel=heading,
    )  # fmt: skip
    if repeatable:  # typer takes no list of choices; the settings check them
        return Annotated[list.__class_getitem__(get_args(hint)[0]) | None, option]
    return Annotated[(choices_of(choices) if choices else hint) | None, option]


def _presets(command: str, kind: type[Settings]) -> dict[str, dict[str, Any]]:
    """What presets set for a command, by preset; where an objective has its own of what others have, by both names."""
    found: dict[str, dict[str, Any]] = {}
    for name, preset in PRESETS.items():
        common = preset.commands.get(command, {})
        if issubclass(kind, Objective):
            found[name] = common | preset.commands.get(f"{command} {kind.name}", {})
            continue
        found[name] = common
        own = [key for key in preset.commands if key.startswith(f"{command} ")]
        found |= {f"{name} {key.split()[1]}": common | preset.commands[key] for key in own}
    return found


def choices_of(names: Collection[str]) -> Any:
    return Literal[*names]


def objective_option(objectives: Mapping[str, type[Any]]) -> Any:
    """``--objective``, of those that a command offers."""
    option = typer.Option(
        help=f"Loss to train by: see Objectives.  [default: {next(iter(objectives))}]", metavar="NAME"
    )
    return Annotated[choices_of(objectives) | None, option]


def about(kind: type[Objective], stage: Stage) -> str:
    """An objective's line on the shelf: paper, data, cost, what it is a case of."""
    objective = kind()
    reads = (kind.reads or "latents once, for their moments") if objective.needs_latents else "no data"
    parts = [
        kind.summary,
        f"reads {reads}{' by class' if objective.class_group else ''}",
        f"{objective.forward_passes(stage):g} forward passes a row",
        *([f"a case of {kind.variant_of}"] if kind.variant_of else []),
        *(["experimental"] if kind.experimental else []),
    ]
    return "; ".join(parts)


def _defaults(default: Any, presets: Mapping[str, Any]) -> str:
    """The default of a setting, and what presets have in its place, or an objective in that of its preset."""
    if default in (None, ()):
        return ""
    others: dict[str, list[str]] = {}
    for name, value in presets.items():
        preset, _, objective = name.partition(" ")
        if value != (presets[preset] if objective else default):
            others.setdefault(_value(value), []).append(f"{preset} ({objective})" if objective else name)
    shown = [f"default: {_value(default)}", *(f"{', '.join(names)}: {value}" for value, names in others.items())]
    return f"  [{'; '.join(shown)}]"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
