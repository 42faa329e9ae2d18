"""Image sets in ADM's .npz layout: ``arr_0`` (N, S, S, 3) uint8 and ``arr_1`` (N,) int64 labels."""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.lib.format import open_memmap, write_array
from torch import Tensor

from mfkit.errors import InputError, OutputError
from mfkit.files.artifact import Artifact, file_digest
from mfkit.files.atomic import whole_file, writing
from mfkit.processes import processes


class NpzWriter:
    """Written by all processes into one file on disk, so that memory does not grow with the number of images."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        self._path, self._state = path, processes()
        self._parts = {name: path.with_name(f".{path.name}.{name}.partial") for name in ("arr_0", "arr_1")}
        if self._state.is_main_process:
            try:
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    open_memmap(self._parts["arr_0"], "w+", np.uint8, (count, size, size, 3))
                    open_memmap(self._parts["arr_1"], "w+", np.int64, (count,))
                    for part in self._parts.values():
                        _reserve(part)
            except OutputError:
                self._remove_parts()
                raise
        self._state.wait_for_everyone()
        self._images, self._labels = (open_memmap(part, "r+") for part in self._parts.values())

    def put(self, rows: range, images: Tensor, labels: Tensor) -> None:
        """Images (B, 3, S, S) uint8 and labels (B,) at these rows."""
        self._images[rows.start : rows.stop] = images.permute(0, 2, 3, 1).numpy()
        self._labels[rows.start : rows.stop] = labels.numpy()

    def finish(self, conditions: Mapping[str, Any]) -> None:
        """Waits for all processes and writes the archive, with a member ``conditions``: how the images were drawn."""
        self._images.flush()
        self._labels.flush()
        self._state.wait_for_everyone()
        if self._state.is_main_process:
            with whole_file(self._path) as partial, zipfile.ZipFile(partial, "w") as archive:
                for name, part in self._parts.items():
                    entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day: the same images, the same bytes
                    with part.open("rb") as data, archive.open(entry, "w", force_zip64=True) as member:
                        shutil.copyfileobj(data, member)
                with archive.open(zipfile.ZipInfo("conditions.npy"), "w") as member:
                    write_array(member, np.array(json.dumps(conditions)), allow_pickle=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._state.is_main_process:
            self._remove_parts()

    def _remove_parts(self) -> None:
        for part in self._parts.values():
            part.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Takes the file's blocks now: a disk that is full later would kill the process as it writes to the map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class NpzImages:
    """Random access to the images of such a file."""

    def __init__(self, path: Path, size: int | None) -> None:
        """:param size: the side that the images must have; None takes any."""
        self._path = path
        try:
            with np.load(path, allow_pickle=False) as archive:
                self._images = archive["arr_0"]
                self._labels = archive["arr_1"] if "arr_1" in archive.files else np.zeros(len(self._images), int)
                self._config = json.loads(str(archive["conditions"])) if "conditions" in archive.files else {}
        except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is no .npz of images (arr_0, uint8, NHWC): {error}") from error
        if not isinstance(self._config, dict):
            raise InputError(f"{path}: its conditions are no JSON object")
        if self._images.ndim != 4 or self._images.shape[3] != 3 or self._images.dtype != np.uint8:
            found = f"{self._images.dtype} {self._images.shape}"
            raise InputError(f"{path}: arr_0 is {found}; expected: uint8 (N, H, W, 3)")
        if size and self._images.shape[1:3] != (size, size):
            raise InputError(f"{path} holds images of {self._images.shape[1:3]} pixels, not {(size, size)}")

    @property
    def artifact(self) -> Artifact:
        return Artifact(self._path, "images", self._config, {}, content_digest=file_digest(self._path))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(self._images[index]).permute(2, 0, 1).contiguous()
        return {"image": image, "label": int(self._labels[index])}
