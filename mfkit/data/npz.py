"""Image sets in ADM's .npz layout: ``arr_0`` (N, S, S, 3) uint8 and ``arr_1`` (N,) int64 labels."""

import json
import math
import os
import shutil
import struct
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.lib.format import read_array, write_array, write_array_header_1_0
from torch import Tensor

from mfkit.artifacts.artifact import Artifact, Provenance
from mfkit.artifacts.atomic import atomic_write, write_errors
from mfkit.artifacts.json_files import parse, parse_json, parse_known
from mfkit.data.codecs import MAX_CLASSES, array_header
from mfkit.data.skip import SkipPolicy
from mfkit.errors import DECODING_ERRORS, InputError, OutputError, is_out_of_memory, reason
from mfkit.runtime.distributed import processes

_ALWAYS_UNPACKED, _MAX_RATIO = 1 << 28, 100
"""An array of more bytes than the first must not be more than so many times as large as it is packed."""
_MAX_TEXT = 1 << 20
"""Bytes of what a file says of itself, each."""


class NpzWriter:
    """Written by all processes into one file on disk, so that memory does not grow with the number of images."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        self._path, self._count, self._state = path, count, processes()
        self._parts = {name: path.with_name(f".{path.name}.{name}.partial") for name in ("arr_0", "arr_1")}
        if self._state.is_main_process:
            try:
                with write_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _create(self._parts["arr_0"], np.uint8, (count, size, size, 3))
                    _create(self._parts["arr_1"], np.int64, (count,))
            except OutputError:
                self._remove_parts()
                raise
        self._state.wait_for_everyone()
        self._files = {name: part.open("r+b") for name, part in self._parts.items()}

    def put(self, indices: range, images: Tensor, labels: Tensor) -> None:
        """Images (B, 3, S, S) uint8 and labels (B,) at these indices."""
        for name, values in (("arr_0", images.permute(0, 2, 3, 1)), ("arr_1", labels)):
            data = values.contiguous().numpy()
            file = self._files[name]
            with write_errors(self._path):
                row = data.nbytes // len(data)
                file.seek((indices.start - self._count) * row, os.SEEK_END)
                file.write(data.data)

    def finish(self, conditions: Mapping[str, Any], provenance: Provenance) -> None:
        """Waits for all processes and writes the archive, with texts of JSON: how the images were drawn, and by which
        command."""
        with write_errors(self._path):
            for file in self._files.values():
                file.flush()
        self._state.wait_for_everyone()
        if self._state.is_main_process:
            with atomic_write(self._path) as partial, zipfile.ZipFile(partial, "w") as archive:
                for name, part in self._parts.items():
                    entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day: the same command, the same bytes
                    with part.open("rb") as data, archive.open(entry, "w", force_zip64=True) as member:
                        shutil.copyfileobj(data, member)
                for name, document in (("conditions", dict(conditions)), ("provenance", asdict(provenance))):
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                        write_array(member, np.array(json.dumps(document)), allow_pickle=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # what could not be written has been said
                file.close()
        if self._state.is_main_process:
            self._remove_parts()

    def _remove_parts(self) -> None:
        for part in self._parts.values():
            part.unlink(missing_ok=True)


def _create(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """A .npy file of zeros, whose blocks are taken now: a disk that is too small is an error at the start."""
    with path.open("wb") as file:
        write_array_header_1_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
        size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


@dataclass(frozen=True)
class Npz:
    """What a ``.npz`` holds of the arrays that were asked for."""

    names: set[str]
    """Of all its arrays, the others included."""
    arrays: dict[str, np.ndarray]
    conditions: dict[str, Any]
    """How they were drawn; empty where it does not say."""
    provenance: Provenance
    """By which command; likewise."""


def read_npz(path: Path, *names: str) -> Npz:
    """The named arrays of numbers, as far as they are there.

    :raises InputError: it is none, or damaged; nothing in it is unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            arrays = {name: _array(archive, f"{name}.npy") for name in names if name in held}
            texts = [_text(archive, f"{name}.npy") if name in held else "{}" for name in ("conditions", "provenance")]
    except (OSError, zipfile.BadZipFile, *DECODING_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} cannot be read as .npz: {reason(error)}") from error
    conditions, provenance = (parse_json(text, f"{path}: what it says of itself") for text in texts)
    return Npz(held, arrays, parse(dict, conditions, path), parse_known(Provenance, provenance, path))


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array whose header says no more than its member holds, nor more than it can have been packed from."""
    entry = archive.getinfo(name)
    with archive.open(name) as member:
        shape, _, dtype = array_header(member)
        size = math.prod(shape) * dtype.itemsize
        if size != entry.file_size - member.tell() or size > max(_ALWAYS_UNPACKED, _MAX_RATIO * entry.compress_size):
            raise ValueError(f"{name} is {shape} of {dtype} in {entry.compress_size} bytes")
    with archive.open(name) as member:
        return read_array(member, allow_pickle=False)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > _MAX_TEXT:
        raise ValueError(f"{name} is of {archive.getinfo(name).file_size} bytes")
    with archive.open(name) as member:
        return str(read_array(member, allow_pickle=False))


class _RowsInPlace:
    """Rows of an array that lies in a file as it is, read one at a time."""

    def __init__(self, path: Path, begin: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self._path, self._begin, self._nbytes = path, begin, math.prod(shape[1:]) * dtype.itemsize
        self._file = path.open("rb")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        data = os.pread(self._file.fileno(), self._nbytes, self._begin + index * self._nbytes)
        if len(data) < self._nbytes:
            raise InputError(f"{self._path} is truncated: image {index} is cut off")
        return np.frombuffer(bytearray(data), self.dtype).reshape(self.shape[1:])


def _in_place(path: Path, name: str) -> _RowsInPlace | None:
    """An array's rows where they are, whatever there are of them; None where they are packed, or not row by row."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        begin = file.tell()
        shape, fortran, dtype = array_header(file)
        head = file.tell() - begin
        if fortran or not shape or head + math.prod(shape) * dtype.itemsize != entry.file_size:
            return None
        return _RowsInPlace(path, file.tell(), shape, dtype)


class NpzImages:
    """Random access to the images of such a file."""

    def __init__(self, path: Path, size: int | None) -> None:
        """:param size: the side that the images must have; None takes any."""
        self.skips = SkipPolicy()
        found = read_npz(path, "arr_1")
        if "arr_0" not in found.names:
            raise InputError(f"{path} is no .npz of images (arr_0, uint8, NHWC)")
        try:
            in_place = _in_place(path, "arr_0")
        except (OSError, zipfile.BadZipFile, *DECODING_ERRORS) as error:
            raise InputError(f"{path} cannot be read as .npz: {reason(error)}") from error
        self._images = in_place or read_npz(path, "arr_0").arrays["arr_0"]
        self.artifact = Artifact(path, "images", found.conditions, found.provenance)
        if self._images.ndim != 4 or self._images.shape[3] != 3 or self._images.dtype != np.uint8:
            held = f"{self._images.dtype} {self._images.shape}"
            raise InputError(f"{path}: arr_0 is {held}; expected: uint8 (N, H, W, 3)")
        labels = found.arrays.get("arr_1", np.zeros(len(self._images), int))
        if labels.shape != self._images.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(f"{path}: arr_1 is {labels.dtype} {labels.shape}; expected: a label per image")
        classes = len(parse(list[str], found.conditions.get("class_names", []), path)) or MAX_CLASSES
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(f"{path}: arr_1 holds labels outside its {classes} classes")
        self.labels: list[int] = labels.tolist()
        if size and self._images.shape[1:3] != (size, size):
            raise InputError(f"{path} holds images of {self._images.shape[1:3]} pixels, not {(size, size)}")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(self._images[index]).permute(2, 0, 1).contiguous()
        return {"image": image, "label": self.labels[index]}
