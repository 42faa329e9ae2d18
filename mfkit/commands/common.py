"""What the training commands share once their options are read. Imports torch: for use inside commands only."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from mfkit.artifacts.artifact import Artifact
from mfkit.config.settings import PresetName
from mfkit.errors import UsageError
from mfkit.training.plan import Execution


def execution(output: Path, overwrite: bool, restart: bool, dry_run: bool, log_with: Sequence[str] | None) -> Execution:
    """The run's options, checked."""
    from importlib.util import find_spec

    for tracker in log_with or ():
        if tracker not in ("tensorboard", "wandb"):
            raise UsageError(f"--log-with {tracker}: give tensorboard or wandb")
        if find_spec(tracker) is None:
            raise UsageError(f"--log-with {tracker}: not installed; pip install {tracker}")
    return Execution(
        output=output, overwrite=overwrite, restart=restart, dry_run=dry_run, trackers=tuple(log_with or ())
    )


def inherited_preset(given: PresetName | None, source: Artifact) -> PresetName:
    """The preset that the user names, else that of the input.

    UsageError where neither names one: a size and a learning rate are not guessed from the look of the data.
    """
    preset = given or source.config.get("preset")
    if not preset:
        raise UsageError(f"{source.path}: names no preset; give --preset {'|'.join(get_args(PresetName))}")
    return preset
