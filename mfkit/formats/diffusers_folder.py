"""Folders of models that diffusers saved: ``config.json`` and one file of weights."""

import hashlib
from pathlib import Path
from typing import Any

from mfkit.artifacts.json_files import read_json
from mfkit.artifacts.pipeline_folder import WEIGHTS
from mfkit.errors import InputError

_CONFIG = "config.json"
FILES = (_CONFIG, WEIGHTS)


def class_name(folder: Path) -> str | None:
    """The class of the model in a folder; None where diffusers did not save one there."""
    return _config(folder).get("_class_name")


def open_folder(folder: Path, kind: str) -> tuple[dict[str, Any], Path]:
    """The config and the file of weights of a model of class ``kind``."""
    found = class_name(folder)
    if found != kind:
        held = f"a diffusers {found}" if found else "no diffusers model"
        raise InputError(f"{folder} holds {held}; expected: {kind}")
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}")
    return _config(folder), file


def folder_digest(folder: Path) -> str:
    """SHA-256 of the config and the weights together."""
    both = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            both.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + both.hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        return {}
    document = read_json(path)
    return document if isinstance(document, dict) else {}
