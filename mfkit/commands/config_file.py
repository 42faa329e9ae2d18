"""Options of a command from a TOML file, and back: ``--config FILE``.

A key is an option without its dashes, or an argument. Those at the top are of every command that is given the file;
those of a table are of the command that it is named after. Only the standard library and typer are imported here, so
that help answers at once.
"""

import difflib
import json
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from mfkit.errors import UsageError
from mfkit.setting import Settings, idle, settings_of

_FILES = re.compile(r"--config(=.*)?|--preset(=.*\.toml)?")


def with_config(command: Any, ctx: Any, arguments: list[str], commands: Collection[str]) -> list[str]:
    """The arguments with those of the files that they name, where they do not say otherwise.

    The record of the command has them too, as if they had been typed.

    :param commands: names that tables may have. :raises UsageError: a file is not TOML, or has a key or value that the
        command does not take.
    """
    files, typed = _files(arguments)
    if not files:
        return arguments
    parameters = {_name(parameter): parameter for parameter in command.get_params(ctx)}
    known, _, _ = command.make_parser(ctx).parse_args(args=list(typed))
    given = {name for name, value in known.items() if value not in (None, ())}
    options: list[str] = []
    positional: list[str] = []
    for file in reversed(files):
        for key, value, place in _entries(file, ctx.info_name, commands):
            parameter = parameters.get(key.replace("_", "-"))
            if parameter is None or key in ("config", "help"):
                close = difflib.get_close_matches(key.replace("_", "-"), parameters, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"{place}: {ctx.info_name} has no option {key}{hint}")
            if parameter.name not in given:
                given.add(parameter.name)
                into = positional if parameter.param_type_name == "argument" else options
                into += _typed(parameter, ctx, value, f"{place}: {key}")
    whole = [*options, *typed, *positional]
    sys.argv[1:] = [ctx.info_name, *whole]
    return whole


def resolved_as_toml(
    command: str, described: str, typed: Mapping[str, Any], flags: Collection[str], kinds: Collection[type[Settings]]
) -> str:
    """What a dry run described, as a file for ``--config``: what was typed, and every setting that it resolved."""
    settings = {name: value for name, value in json.loads(described)["settings"].items() if name in flags}
    known = {item.name: item for kind in kinds for item in settings_of(kind)}
    settings = {name: value for name, value in settings.items() if name not in known or not idle(known[name], settings)}
    plain = {name: value for name, value in typed.items() if name not in ("dry_run", "format")}
    whole = {name: str(value) if isinstance(value, Path) else value for name, value in (plain | settings).items()}
    return as_toml(command, {name: value for name, value in whole.items() if value not in (None, [], ())})


def as_toml(command: str, values: Mapping[str, Any]) -> str:
    """A table of options that :func:`with_config` reads."""
    lines = [f"{name.replace('_', '-')} = {_literal(value)}" for name, value in values.items()]
    return "\n".join([f"[{command}]", *lines])


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files that are named, and the other arguments."""
    files, others = [], []
    rest = iter(enumerate(arguments, 1))
    for following, argument in rest:
        match = _FILES.fullmatch(argument)
        if match is None or (argument == "--preset" and not "".join(arguments[following:][:1]).endswith(".toml")):
            others.append(argument)
        else:
            files.append(Path(argument.partition("=")[2] or next(rest, (0, ""))[1]))
    return files, others


def _entries(file: Path, command: str, commands: Collection[str]) -> Iterator[tuple[str, Any, str]]:
    """Keys, values and places of what a file says to a command; what its own table says goes first."""
    try:
        text = file.read_text()
        document = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {error}") from error
    lines = text.splitlines()
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    if unknown := tables.keys() - commands:
        name = min(unknown)
        raise UsageError(f"{file}:{_line(lines, _table(name))}: there is no command {name}")
    begin = _line(lines, _table(command))
    for key, value in tables.get(command, {}).items():
        yield key, value, f"{file}:{_line(lines, _assignment(key), begin)}"
    for key, value in document.items():
        if key not in tables:
            yield key, value, f"{file}:{_line(lines, _assignment(key))}"


def _table(name: str) -> str:
    return rf"\[\s*[\"']?{re.escape(name)}"


def _assignment(key: str) -> str:
    return rf"[\"']?{re.escape(key)}[\"']?\s*="


def _line(lines: list[str], pattern: str, begin: int = 1) -> int:
    """The first from ``begin`` on that begins so, counted from 1."""
    found = (number for number in range(begin, len(lines) + 1) if re.match(rf"\s*{pattern}", lines[number - 1]))
    return next(found, begin)


def _name(parameter: Any) -> str:
    return parameter.name if parameter.param_type_name == "argument" else max(parameter.opts, key=len).lstrip("-")


def _typed(parameter: Any, ctx: Any, value: Any, place: str) -> list[str]:
    """A value as one types it."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise UsageError(f"{place} is {_shown(value)}; it is true or false")
        return [parameter.opts[0]] if value else parameter.secondary_opts[:1]
    if getattr(parameter, "multiple", False) and not isinstance(value, list):
        value = [value]
    many = getattr(parameter, "multiple", False) or parameter.nargs != 1
    if many != isinstance(value, list):
        raise UsageError(f"{place} is {_shown(value)}; it takes {'a list' if many else 'one value'}")
    several = value if isinstance(value, list) else [value]
    for one in several:
        if not isinstance(one, str | int | float) or isinstance(one, bool):
            raise UsageError(f"{place} is {_shown(one)}")
    words = [str(one) for one in several]
    try:
        parameter.process_value(ctx, tuple(words) if many else words[0])
    except typer.BadParameter as error:
        raise UsageError(f"{place}: {error.message}") from error
    if parameter.param_type_name == "argument":
        return words
    option = max(parameter.opts, key=len)
    if getattr(parameter, "multiple", False):
        return [word for one in words for word in (option, one)]
    return [option, *words] if many or not words[0].startswith("-") else [f"{option}={words[0]}"]


def _shown(value: Any) -> str:
    return repr(value)[:60]
