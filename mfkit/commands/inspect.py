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
    from dataclasses import asdict

    from mfkit.artifacts.artifact import Artifact, open_artifact
    from mfkit.artifacts.inspect import inspect, shell_script
    from mfkit.errors import UsageError

    if path.suffix == ".npz":
        from mfkit.data.npz import read_npz

        if tensors:
            raise UsageError(f"{path}: an .npz has no tensors; leave out --tensors")
        found = read_npz(path)
        described = {"path": str(path), "arrays": sorted(found.names), "conditions": found.conditions}
        described["provenance"] = asdict(found.provenance)
        artifact = Artifact(path, "images", found.conditions, found.provenance)
    else:
        artifact = open_artifact(path)
        described = inspect(artifact, tensors=tensors)
    return shell_script(artifact) if script else json.dumps(described, indent=2)
