"""The list of subcommands. A module is imported when its command is asked for, and torch when it runs."""

import json
import os
import sys
from importlib import import_module
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from mfkit.commands.subcommand import HELP_OPTIONS, Group, Subcommand

COMMANDS = {
    "new": "new",
    "train-rae": "train_rae",
    "encode": "encode",
    "decode": "decode",
    "train-teacher": "train_teacher",
    "trajectories": "trajectories",
    "midtrain": "midtrain",
    "distill": "distill",
    "bootstrap": "bootstrap",
    "train-mean-flow": "train_mean_flow",
    "sample": "sample",
    "times": "times",
    "fid": "fid",
    "flops": "flops",
    "plan": "plan",
    "bench": "bench",
    "import": "import_weights",
    "export": "export",
    "inspect": "inspect",
    "verify": "verify",
    "plot": "plot",
    "report": "report",
    "demo": "demo",
}
"""Module, and function in it, by the name of the command, in the order of the help."""


def subcommand(name: str) -> Subcommand:
    """:raises KeyError: there is none of this name."""
    found = getattr(import_module(f"mfkit.commands.{COMMANDS[name]}"), COMMANDS[name])
    assert isinstance(found, Subcommand)
    return found


class _Root(TyperGroup):
    """The subcommands, each built when it is asked for; their list is plain text, by group."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # what a misspelt name is compared with

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # None would have typer import what takes longer than all the rest
        return option

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return subcommand(cmd_name).build(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = {name: subcommand(name) for name in COMMANDS}
        for group in get_args(Group):
            with formatter.section(group):
                formatter.write_dl([(name, one.summary) for name, one in commands.items() if one.group == group])


app = typer.Typer(
    name="mfkit",
    cls=_Root,
    # With completion, too, typer would import it for any help.
    add_completion="_MFKIT_COMPLETE" in os.environ
    or sys.argv[1:2] in (["--install-completion"], ["--show-completion"]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)


def _version(wanted: bool) -> None:
    if wanted:
        from mfkit import __version__
        from mfkit.artifacts.artifact import library_versions

        print(json.dumps({"mfkit": __version__, **library_versions()}))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions, as JSON.")
    ] = False,
) -> None:
    """One-step image generation by mean flow on representation autoencoders.

    The chain: train-rae, encode, train-teacher, trajectories, midtrain, distill, bootstrap, sample, fid. Every file
    describes itself, so each command finds what the one before it made.

    Completion of words in your shell: mfkit --install-completion.
    """


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["flops"] and "--plan" in sys.argv:  # as the plan was called before it was a command
        sys.argv[1:] = ["plan", *(argument for argument in sys.argv[2:] if argument != "--plan")]
    app()
