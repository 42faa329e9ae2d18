"""Options and arguments that several commands share.

Only the standard library and typer are imported here, so that help answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mfkit.config.presets import PRESETS, PresetName
from mfkit.config.settings import OnError, Reading
from mfkit.errors import UsageError
from mfkit.flow.guidance import Guidance

if TYPE_CHECKING:
    from mfkit.training.task import RunOptions

Flags = Mapping[str, Any]
"""The settings that the user gave, by name."""

Output = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]
RequiredOutput = Annotated[Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]
OutputFolderOrStream = Annotated[
    str, typer.Option("-o", "--output", help="Folder, or - for a tar stream.", metavar="DIR|-")
]
ImagesOutput = Annotated[
    str | None, typer.Option("-o", "--output", help="Folder, FILE.npz, or - for a tar stream.", metavar="DIR|FILE|-")
]
ImageFormat = Annotated[Literal["png", "tar"], typer.Option(help="A folder of PNG files by class, or of tar shards.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Preset = Annotated[
    PresetName | None,
    typer.Option(
        help="Hyperparameters to start from: "
        + "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
        + "; or FILE.toml, as --config takes it.  [default: the one that the input was made with]"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Size of the network, or ARCHITECTURE:SIZE.  [default: the preset's]", metavar="SIZE"),
]
Images = Annotated[
    str,
    typer.Argument(metavar="IMAGES", help="Folder, shards, .npz, hf://datasets/owner/name[:split], or `digits`."),
]
Rae = Annotated[Path | None, typer.Option(help="RAE, or VAE folder.  [default: the recorded one]", metavar="FILE|DIR")]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        help="Local copy of a timm encoder's weights (.safetensors or .pt; DINOv2, SigLIP and MAE also as "
        "transformers writes them), or hf://owner/repo/path.",
        metavar="FILE",
    ),
]
Teacher = Annotated[Path, typer.Option(help="Teacher's file.", metavar="FILE")]
Guide = Annotated[
    Path | None,
    typer.Option(
        help="Weaker teacher, of the same latents, that guides in place of the velocity without label (AutoGuidance, "
        "arXiv 2406.02507).",
        metavar="FILE",
        rich_help_panel=Guidance.heading,
    ),
]
Latents = Annotated[str | None, typer.Option(help="Latents.  [default: the recorded ones]", metavar="SHARDS")]
LateR = Annotated[
    bool,
    typer.Option(
        "--late-r",
        help="Let r reach the student's head alone: several r then take one pass of its encoder (Decoupled MeanFlow, "
        "arXiv 2510.24474).",
    ),
]
Classes = Annotated[
    int | None, typer.Option(help="Number of classes, for foreign shards that do not say it.", min=1, metavar="N")
]
OnErrorOption = Annotated[
    OnError, typer.Option("--on-error", help="What an unreadable sample does; at most 1% are skipped.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Keep remote shards in this folder, and read them by random access; else they are a stream.",
        metavar="DIR",
    ),
]
Workers = Annotated[
    int, typer.Option(help="Threads per process that read and decode ahead; 0 reads in line.", min=0, metavar="N")
]


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that several commands take together: a parameter of such a type stands for all of its fields."""


@dataclass(frozen=True, kw_only=True)
class Common(OptionGroup):
    """What every command takes."""

    config: Annotated[
        Path | None,
        typer.Option(help="Options from a TOML file; those on the command line go before them.", metavar="FILE"),
    ] = None  # taken out of the arguments before they are read


@dataclass(frozen=True, kw_only=True)
class Messages(OptionGroup):
    """How much a command says."""

    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.", rich_help_panel="Messages")] = False
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.", rich_help_panel="Messages")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel="Messages")] = False


@dataclass(frozen=True, kw_only=True)
class Run(OptionGroup):
    """How a training runs."""

    preset: Preset = None
    overwrite: Overwrite = False
    restart: Annotated[bool, typer.Option("--restart", help="Start anew although there is a checkpoint.")] = False
    on_error: OnErrorOption = "raise"
    cache: Cache = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print settings and shapes; train nothing.")] = False
    format: Annotated[
        Literal["json", "toml"], typer.Option(help="How --dry-run prints; toml is a file for --config.")
    ] = "json"
    log_with: Annotated[
        list[str] | None,
        typer.Option(help="Log to a tracker of accelerate too, such as tensorboard; repeatable.", metavar="TRACKER"),
    ] = None

    @property
    def reading(self) -> Reading:
        return Reading(self.on_error, self.cache)

    def options(self, output: Path) -> "RunOptions":
        from mfkit.training.task import RunOptions

        if self.format != "json" and not self.dry_run:
            raise UsageError("--format is of --dry-run")
        return RunOptions(
            output=output, overwrite=self.overwrite, restart=self.restart, dry_run=self.dry_run,
            trackers=tuple(self.log_with or ()),
        )  # fmt: skip


def layer_numbers(text: str) -> list[int]:
    """Of ``--layers``: numbers by commas."""
    try:
        return [int(layer) for layer in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"--layers {text}: give numbers separated by commas") from error


def preset_or(given: PresetName | None, recorded: PresetName | None, source: object) -> PresetName:
    """The preset that the user names, else that of the input.

    :raises UsageError: neither names one: a size and a learning rate are not guessed from the look of the data.
    """
    if preset := given or recorded:
        return preset
    raise UsageError(f"{source} names no preset; pass --preset {'|'.join(PRESETS)}")
