"""``mfkit inspect``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands.subcommand import command


@command(
    "Inspect",
    examples="""
    mfkit inspect teacher.safetensors
    mfkit inspect latents/
    mfkit inspect drift.safetensors --script > chain.sh
    """,
)  # fmt: skip
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="What mfkit wrote; an .npz.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    script: Annotated[
        bool, typer.Option("--script", help="Print the commands that led to it, as a shell script, and no JSON.")
    ] = False,
) -> str:
    """Show what a file is and how it was made.

    Prints kind, config and the commands that led to it, as JSON. No weights are read.
    """
    import json

    from mfkit.artifacts.artifact import open_artifact
    from mfkit.artifacts.inspect import inspect, shell_script
    from mfkit.errors import UsageError

    if path.suffix == ".npz":
        from mfkit.data.npz import read_npz

        if script or tensors:
            raise UsageError(f"{path}: an .npz says its conditions alone; leave out --tensors and --script")
        found = read_npz(path)
        return json.dumps({"path": str(path), "arrays": sorted(found.names), "conditions": found.conditions}, indent=2)
    if script:
        return shell_script(open_artifact(path))
    return json.dumps(inspect(open_artifact(path), tensors=tensors), indent=2)
