"""``mfkit inspect``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(app, "inspect", examples="`mfkit inspect teacher.safetensors`, `mfkit inspect latents/`")
    def inspect(
        path: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="What mfkit wrote.")],
        tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    ) -> str:
        """A file or folder → what it is, its config and where it came from, as JSON."""
        import json

        from mfkit.files.describe import describe

        return json.dumps(describe(path, tensors=tensors), indent=2)
