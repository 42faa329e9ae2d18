"""The dispatcher: one module per subcommand, none of which imports torch before it runs."""

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mfkit.commands import (
    bench,
    bootstrap,
    distill,
    encode,
    export,
    fid,
    flops,
    import_weights,
    inspect_file,
    midtrain,
    plot,
    sample,
    train_rae,
    train_teacher,
    trajectories,
)


class _Root(TyperGroup):
    """The list of commands in plain text: the library that draws boxes takes as long to import as all the rest."""

    def format_help(self, *arguments: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(*arguments)


app = typer.Typer(
    name="mfkit",
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (
    train_rae, encode, train_teacher, trajectories, midtrain, distill, bootstrap, sample, fid, flops, plot,
    inspect_file, import_weights, export, bench,
):  # fmt: skip
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from mfkit import __version__
        from mfkit.artifacts.artifact import library_versions

        print(json.dumps({"mfkit": __version__, **library_versions()}))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions, as JSON.")
    ] = False,
) -> None:
    """One-step image generation by mean flow on representation autoencoders.

    The chain: train-rae → encode → train-teacher → trajectories → midtrain → distill → bootstrap → sample → fid.
    Every file describes itself, so each command finds what the one before it made.
    """


def main() -> None:
    """The console script."""
    app()
