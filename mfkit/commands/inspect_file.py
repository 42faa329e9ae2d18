"""``mfkit inspect``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(
        app, "inspect",
        examples="`mfkit inspect teacher.safetensors`, `mfkit inspect latents/`, `mfkit inspect latents/ --verify`",
    )  # fmt: skip
    def inspect(
        path: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="What mfkit wrote.")],
        tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
        verify: Annotated[
            bool,
            typer.Option("--verify", help="Check every digest, decode every member; foreign shards and .npz too."),
        ] = False,
    ) -> str:
        """A file or folder → what it is, its config and where it came from, as JSON."""
        import json

        from mfkit.artifacts.describe import describe

        if verify:
            from mfkit.data.verify import verify as check
            from mfkit.errors import InputError

            found = check(path)
            if found["damaged"]:
                print(json.dumps(found, indent=2))
                raise InputError(f"{path}: {found['damaged']} of {found['checked']} are damaged: {found['first'][0]}")
            return json.dumps(found, indent=2)
        return json.dumps(describe(path, tensors=tensors), indent=2)
