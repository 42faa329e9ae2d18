"""``mfkit flops``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(
        app, "flops",
        examples="`mfkit flops mft.safetensors`, `mfkit flops --preset imagenet256`",
    )  # fmt: skip
    def flops(
        model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Student or teacher.")] = None,
        preset: options.Preset = None,
        rae: options.Rae = None,
    ) -> str:
        """Generator and decoder → 10⁹ operations per image, by counting rule, as JSON. Needs no weights."""
        import json

        from mfkit.errors import UsageError
        from mfkit.stages.work import preset_work, work

        if model is not None and preset is not None or model is None and rae is not None:
            raise UsageError("give a MODEL, with --rae where it is not the recorded one, or --preset alone")
        if model is None:
            return json.dumps(preset_work(preset), indent=2)
        return json.dumps(work(model, rae), indent=2)
