"""From the signature of a function to a subcommand: settings become options, help is plain text.

Only the standard library and typer are imported here, so that help answers at once.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from mfkit.commands.config_file import resolved_as_toml, with_config
from mfkit.commands.console import is_main_process, leave_process_group, one_line_errors, set_verbosity
from mfkit.commands.options import Common, Messages, OptionGroup
from mfkit.commands.setting_options import about, objective_option, setting_option
from mfkit.flow.objectives import Stage, objectives_of
from mfkit.setting import Settings, settings_of

Group = Literal["Prepare", "Train", "Sample and evaluate", "Cost", "Weights", "Inspect"]
"""Under which the list of commands shows one."""

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Subcommand:
    """A function of the command line."""

    function: Callable[..., str | None]
    group: Group
    settings: tuple[type[Settings], ...]
    examples: str
    stage: Stage | None

    @property
    def summary(self) -> str:
        return str(inspect.getdoc(self.function)).partition("\n")[0]

    def build(self, name: str) -> typer.core.TyperCommand:
        """The command that typer makes of it."""
        function, objectives = self.function, objectives_of(self.stage) if self.stage else {}
        own = inspect.signature(function, eval_str=True).parameters
        groups = {item.name: item.annotation for item in own.values() if _is_group(item.annotation)}
        parameters = [
            _parameter(item.name, item.annotation, item.default)
            for item in own.values()
            if item.name not in {*groups, "flags"}
        ]
        for kind in (*groups.values(), Common, Messages):
            hints = get_type_hints(kind, include_extras=True)
            parameters += [_parameter(item.name, hints[item.name], item.default) for item in fields(kind)]
        flags = {"objective": objective_option(objectives)} if objectives else {}
        lists = set()
        for kind in (*objectives.values(), *self.settings):
            hints = get_type_hints(kind)
            for item in settings_of(kind):
                flags.setdefault(item.name, setting_option(item, hints[item.name], kind, name))
                if hints[item.name] in (tuple[float, ...], tuple[int, ...]):
                    lists.add(f"--{item.name.replace('_', '-')}")
        parameters += [_parameter(flag, annotation, None) for flag, annotation in flags.items()]

        def run(**values: Any) -> None:
            typed = {item.name: values[item.name] for item in parameters if values[item.name] != item.default}
            set_verbosity(**{item.name: values.pop(item.name) for item in fields(Messages)})
            del values["config"]
            if flags:
                given = {flag: values.pop(flag) for flag in flags}
                values["flags"] = {flag: value for flag, value in given.items() if value is not None}
            for parameter, kind in groups.items():
                values[parameter] = kind(**{item.name: values.pop(item.name) for item in fields(kind)})
            with one_line_errors([item.name for item in parameters]):  # inside typer, which has its own way with Ctrl-C
                result = function(**{key: _fetched(value) for key, value in values.items()})
                if result is not None and typed.get("dry_run") and typed.get("format") == "toml":
                    result = resolved_as_toml(name, result, typed, flags, (*objectives.values(), *self.settings))
                if result is not None and is_main_process():
                    print(result, flush=True)
                leave_process_group()

        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        shelf = [(kind.name, about(kind, self.stage)) for kind in objectives.values() if self.stage]
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(
            name, cls=_command_class(self.examples, shelf, lists), no_args_is_help=True, context_settings=HELP_OPTIONS
        )(run)
        built = typer.main.get_command(app)
        assert isinstance(built, TyperCommand)
        return built


def command(
    group: Group, *settings: type[Settings], examples: str, stage: Stage | None = None
) -> Callable[[Callable[..., str | None]], Subcommand]:
    """Makes a subcommand of a function.

    It gets every field of the ``settings`` as an option besides its own parameters, and ``--objective`` with the
    settings of all objectives of a ``stage``; those that the user gave arrive in its parameter ``flags``. What it
    returns is printed on standard output, by the main process.
    """
    return lambda function: Subcommand(function, group, settings, examples, stage)


def _fetched(value: Any) -> Any:
    """The local copy of a file or folder that is named as ``hf://owner/repo[@revision][/path]``; else the value."""
    if not isinstance(value, Path) or value.parts[:1] != ("hf:",):
        return value
    from mfkit.formats.hub import HUB, WEIGHT_SUFFIXES, resolve

    return resolve(HUB + "/".join(value.parts[1:]), folder=value.suffix not in WEIGHT_SUFFIXES)


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, OptionGroup)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _one_by_one(arguments: list[str], repeatable: Collection[str]) -> list[str]:
    """Numbers of a repeatable option, ``--ema 0.999,0.99``, as if each had been given by itself."""
    found: list[str] = []
    for word in arguments:
        name, equals, values = word.partition("=")
        if found and found[-1] in repeatable and "," in word:
            name, values = found.pop(), word
        elif not (equals and name in repeatable):
            found.append(word)
            continue
        found += [part for value in values.split(",") for part in (name, value)]
    return found


def _command_class(examples: str, shelf: list[tuple[str, str]], lists: Collection[str]) -> type[TyperCommand]:
    """A command whose help is plain text: a section for each heading, then the objectives, then examples."""

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            from mfkit.commands.main import COMMANDS

            with one_line_errors([]):
                args = _one_by_one(with_config(self, ctx, args, COMMANDS), lists)
            try:
                return super().parse_args(ctx, args)
            except typer.BadParameter as error:
                error.message = error.message.removeprefix("Value error, ")
                raise

        def format_options(self, ctx: Any, formatter: Any) -> None:
            sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is not None:
                    kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                    sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
            for heading in [*(heading for heading in sections if heading != "Messages"), "Messages"]:
                if sections.get(heading):
                    with formatter.section(heading):
                        formatter.write_dl(sections[heading])
            if shelf:
                with formatter.section("Objectives"):
                    formatter.write_dl(shelf)

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Examples"):
                for line in inspect.cleandoc(examples).splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    return Command
