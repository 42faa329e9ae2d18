"""The options that several commands share, in one table, and what turns settings into flags.

Only the standard library and typer are imported here, so that help answers at once.
"""

import inspect
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mfkit.commands.console import Verbosity, is_main_process, leave, one_line_errors
from mfkit.config.settings import ModelName, OnBad, PresetName, Settings

Output = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]
RequiredOutput = Annotated[Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]
OutputFolderOrStream = Annotated[
    str, typer.Option("-o", "--output", help="Folder, or - for a tar stream.", metavar="DIR|-")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Preset = Annotated[
    PresetName | None,
    typer.Option(help="Published hyperparameters to start from; by default those that the input was made with."),
]
Model = Annotated[ModelName | None, typer.Option(help="Size of the generator; by default that of the preset.")]
Rae = Annotated[
    Path | None, typer.Option(help="RAE, or VAE folder, where it is not the recorded one.", metavar="FILE|DIR")
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        help="Local copy of a timm encoder's weights (.safetensors or .pt; DINOv2, SigLIP and MAE also as "
        "transformers writes them), or hf://owner/repo/path.",
        metavar="FILE",
    ),
]
Teacher = Annotated[Path, typer.Option(help="Teacher's weights.", metavar="FILE")]
Latents = Annotated[str | None, typer.Option(help="Latents, where they are not the recorded ones.", metavar="SHARDS")]
Classes = Annotated[
    int | None, typer.Option(help="Number of classes, for foreign shards that do not say it.", min=1, metavar="N")
]
BadInput = Annotated[
    OnBad, typer.Option("--on-bad", help="What a sample that cannot be read is; those skipped are counted, at most 1%.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Start anew although there is a checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, parameters and shapes; train nothing.")]
LogWith = Annotated[
    list[str] | None,
    typer.Option(help="Log to a tracker too: tensorboard or wandb; may be given twice.", metavar="TRACKER"),
]
Workers = Annotated[
    int, typer.Option(help="Threads per process that read and decode ahead; 0 reads as it goes.", min=0, metavar="N")
]

_VERBOSITY: dict[str, Any] = {
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.", rich_help_panel="Messages")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Say more.", rich_help_panel="Messages")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel="Messages")],
}


def command(
    app: typer.Typer, name: str, *settings: type[Settings], examples: str
) -> Callable[[Callable[..., str | None]], Callable[..., None]]:
    """Registers a function as a subcommand.

    It gets every field of the ``settings`` dataclasses as an option besides its own parameters; those that the user
    gave arrive in its parameter ``flags``. What it returns is printed on standard output, by the main process.
    """

    def register(function: Callable[..., str | None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "flags"]
        taken = {parameter.name for parameter in own}
        added = {
            item.name: _flag(item, kind)
            for kind in settings
            for item in kind.__dataclass_fields__.values()
            if item.metadata and item.name not in taken
        }

        def run(**values: Any) -> None:
            Verbosity(**{option: values.pop(option) for option in _VERBOSITY}).apply()
            flags = {option: value for option in added if (value := values.pop(option)) is not None}
            with one_line_errors():  # inside typer, which has its own way with Ctrl-C and closed pipes
                result = function(**values, flags=flags) if added else function(**values)
                if result is not None and is_main_process():
                    print(result, flush=True)
                leave()

        extra = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for option, annotation in added.items()
        ] + [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for option, annotation in _VERBOSITY.items()
        ]
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__dict__["__signature__"] = inspect.Signature([*keywords, *extra])
        run.__annotations__ = {p.name: p.annotation for p in [*keywords, *extra]}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        app.command(name, epilog=f"Examples: {examples}", no_args_is_help=True)(run)
        return run

    return register


def _flag(item: Field, kind: type[Settings]) -> Any:
    """A settings field as an optional typer option: None means that the preset decides."""
    low, high = item.metadata["low"], item.metadata["high"]
    hint = get_type_hints(kind)[item.name]
    if hint is int:
        low, high = (None if bound is None else int(bound) for bound in (low, high))
    option = typer.Option(
        help=item.metadata["help"], metavar=item.metadata["metavar"], min=low, max=high, show_default=False,
        rich_help_panel=f"{kind.panel} (by default: the preset's)",
    )  # fmt: skip
    return Annotated[hint | None, option]
