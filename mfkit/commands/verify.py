"""``mfkit verify``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands.subcommand import command


@command(
    "Inspect",
    examples="""
    mfkit verify latents/
    mfkit verify teacher.safetensors
    """,
)  # fmt: skip
def verify(
    path: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="What mfkit wrote; shards; an .npz.")],
) -> str:
    """Check every checksum and every member.

    Reads all of it. The exit code is 3 where something is damaged; foreign shards and .npz files are decoded.
    """
    import json

    from mfkit.data.verify import verify
    from mfkit.errors import InputError

    found = verify(path)
    if found["damaged"]:
        print(json.dumps(found, indent=2))
        raise InputError(f"{path}: {found['damaged']} of {found['checked']} are damaged: {found['first'][0]}")
    return json.dumps(found, indent=2)
