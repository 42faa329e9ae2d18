"""IMAGES arguments: folders, shards, datasets of the hub, ``digits``. Samples are ``image`` and ``label``."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfkit.artifacts.artifact import INDEX_NAME, LISTING_DIGEST, Artifact, digest, open_artifact
from mfkit.artifacts.json_files import parse
from mfkit.config.settings import DEFAULT_READING, Reading
from mfkit.data.codecs import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    decode_image,
    image_member,
    label_member,
)
from mfkit.data.dataset import IndexedTars
from mfkit.data.hub_images import HubImages, is_hub_dataset
from mfkit.data.npz import NpzImages
from mfkit.data.shards import open_shards
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset
from mfkit.data.writer import check_finished
from mfkit.errors import DECODING_ERRORS, InputError

logger = logging.getLogger(__name__)

DIGITS = "digits"
"""The word for the embedded images; ``digits:train`` and ``digits:heldout`` are parts of them."""
DIGITS_SIZE = 32
"""Side of the digits in pixels, where none is asked for."""

_OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "jp2", "tif", "tiff")
"""Formats that a user may expect to be read."""
_SMALLEST, _LARGEST = 32, 128
"""Sides to which images are cut where no one says it."""

HELD_OUT = 297
"""How many of the 1,797 digits ``digits:heldout`` holds; ``digits:train`` holds the other 1,500."""

ImageSample = dict[str, Any]
"""``image``: (3, S, S) uint8; ``label``: int."""


class Digits:
    """The 1,797 handwritten digits that ship with scikit-learn (8x8, UCI), resized to S x S, bicubic.

    ``train`` and ``heldout`` are a fixed split with the same share of each class.
    """

    def __init__(self, part: str, size: int) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        data = load_digits()
        train, held_out = train_test_split(
            np.arange(len(data.target)), test_size=HELD_OUT, stratify=data.target, random_state=0
        )
        parts = {"": np.arange(len(data.target)), "train": train, "heldout": held_out}
        if part not in parts:
            raise InputError(f"digits:{part} is unknown; there are digits, digits:train and digits:heldout")
        self.labels = [int(label) for label in data.target[parts[part]]]
        self._pixels = np.round(data.images[parts[part]] * (255 / 16)).astype(np.uint8)
        self._size, self.skips = size, SkipPolicy()
        name = f"digits:{part}" if part else "digits"
        self.artifact = Artifact(
            Path(name), "images", {"class_names": [str(digit) for digit in range(10)]},
            content_digest=digest(self._pixels.tobytes()), is_keyword=True,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageSample:
        image = Image.fromarray(self._pixels[index]).resize((self._size, self._size), Image.Resampling.BICUBIC)
        return {"image": torch.from_numpy(np.array(image)).expand(3, -1, -1).clone(), "label": self.labels[index]}


class ImageFolder:
    """Images below a folder: one subfolder per class, in the order of their names, or a flat folder of one class.

    A folder that mfkit wrote knows its classes, also those that have no image in it.
    """

    def __init__(self, folder: Path, size: int | None, skips: SkipPolicy) -> None:
        self._size, self.skips = size, skips
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        config: dict[str, Any] = {"class_names": classes or ["0"]}
        if (folder / INDEX_NAME).exists():
            described = open_artifact(folder, kinds=("images",))
            classes, config = folder_names(class_names(described)), described.config
        places = [(folder / name, label) for label, name in enumerate(classes)] or [(folder, 0)]
        found = [
            (file, label)
            for place, label in places
            for file in sorted(place.rglob("*") if classes else place.iterdir())
            if _suffix(file) in (*IMAGE_SUFFIXES, *_OTHER_IMAGES) and file.is_file()
        ]
        self._files = [(file, label) for file, label in found if _suffix(file) in IMAGE_SUFFIXES]
        if not self._files:
            raise InputError(f"{folder} holds no images (.{', .'.join(IMAGE_SUFFIXES)})")
        beside = sum(_suffix(file) in IMAGE_SUFFIXES for file in folder.iterdir()) if classes else 0
        _warn_of_ignored(folder, beside, len(found) - len(self._files))
        self._folder, self._config = folder, config
        self.labels = [label for _, label in self._files]

    @cached_property
    def artifact(self) -> Artifact:
        """Its digest is that of the images' names and sizes: the bytes themselves would take long to read."""
        listing = "".join(f"{file.relative_to(self._folder)}\0{file.stat().st_size}\n" for file, _ in self._files)
        names = LISTING_DIGEST + hashlib.sha256(os.fsencode(listing)).hexdigest()
        return Artifact(self._folder, "images", self._config, content_digest=names)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(width, height) of some images spread over the folder, of those that can be read."""
        for index in _spread(len(self._files), 100):
            try:
                with Image.open(self._files[index][0], formats=IMAGE_FORMATS) as image:
                    yield image.size
            except (OSError, Image.DecompressionBombError, *DECODING_ERRORS):  # said when the image is read
                continue

    def other_sizes(self) -> str:
        """The sizes of some images as text; empty where all are what samples are."""
        found = set(self.sizes())
        if len(found) == 1 and (self._size is None or found == {(self._size, self._size)}):
            return ""
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(found)[:3])
        return shown + (", …" if len(found) > 3 else "")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageSample:
        file, label = self._files[index]
        return {"image": read_image(file, self._size), "label": label}


@cache
def _warn_of_ignored(folder: Path, beside: int, others: int) -> None:
    """Once for a folder, although a command may open it twice."""
    if beside:
        logger.warning(
            "%s: %d images beside its subfolders are ignored: a subfolder is a class; move them into one",
            folder,
            beside,
        )
    if others:
        logger.warning(
            "%s: %d images of other formats are ignored (.%s); read are .%s", folder, others,
            ", .".join(_OTHER_IMAGES), ", .".join(IMAGE_SUFFIXES),
        )  # fmt: skip


def _suffix(file: Path) -> str:
    return file.suffix[1:].lower()


def read_image(file: Path, size: int | None) -> Tensor:
    """The image in a file, as :func:`~mfkit.data.codecs.decode_image` gives it."""
    try:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise InputError(f"{file} is too large: {file.stat().st_size} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return decode_image(data, size, str(file))


def folder_names(classes: list[str]) -> list[str]:
    """The subfolders of the classes: their names, or their indices where the names' order is not that of the indices.

    So too where one of the names is none of a folder, or leads out of it.
    """
    plain = all(re.fullmatch(r"[^\s./\x00-\x1f][^/\x00-\x1f]{0,99}", name) for name in classes)
    named = plain and classes == sorted(set(classes))
    return classes if named else [f"{label:0{len(str(len(classes) - 1))}d}" for label in range(len(classes))]


ImageDataset = Digits | ImageFolder | NpzImages | HubImages | IndexedTars | StreamDataset


def open_images(location: str, size: int | None, reading: Reading = DEFAULT_READING) -> ImageDataset:
    """The images that an IMAGES argument names, cut to squares of ``size`` pixels; as they are where it is None."""
    if reading.cache:
        return _shards(location, size, reading)
    if location.partition(":")[0] == DIGITS:
        return Digits(location.partition(":")[2], size or DIGITS_SIZE)
    if is_hub_dataset(location):
        return HubImages(location, size, SkipPolicy(reading.on_error))
    path = Path(location)
    if path.suffix == ".npz":
        return NpzImages(path, size)
    check_finished(path)
    if path.is_dir() and not any(path.glob("*.tar")):
        return ImageFolder(path, size, SkipPolicy(reading.on_error))
    return _shards(location, size, reading)


def _shards(location: str, size: int | None, reading: Reading) -> IndexedTars | StreamDataset:
    return open_shards(location, ("images",), partial(_decode, size=size), reading)


def recorded_images(artifact: Artifact, size: int | None, option: str) -> ImageDataset:
    """The images that latents were made from, at their recorded place, cut to ``size`` pixels.

    :param option: the option that names them by hand, for the error.
    """
    recorded = artifact.inputs["images"].path if "images" in artifact.inputs else None
    if is_hub_dataset(str(recorded)):  # a file of others says it, and nothing is fetched for that
        raise InputError(f"{artifact.path} is of {recorded}: name it by {option}")
    is_keyword = str(recorded).partition(":")[0] == DIGITS
    found = open_images(str(recorded) if is_keyword else str(artifact.input_path("images", option)), size)
    artifact.check_input("images", found.artifact, option)
    return found


def native_size(location: str, multiple: int, reading: Reading = DEFAULT_READING) -> int:
    """The side to cut images to where no one names it: the median of their shorter sides, from 32 to 128 pixels.

    It is a whole number of ``multiple`` pixels, and logged.
    """
    dataset = open_images(location, None, reading)
    if not isinstance(dataset, StreamDataset) and not len(dataset):
        raise InputError(f"{location} holds no images")
    if isinstance(dataset, StreamDataset):
        sides = [min(dataset.decode(dataset.peek())["image"].shape[1:])]
    elif isinstance(dataset, ImageFolder):
        sides = [min(size) for size in dataset.sizes()]
    else:
        found = (dataset.skips.read(index, partial(dataset.__getitem__, index)) for index in _spread(len(dataset), 20))
        sides = [min(sample["image"].shape[1:]) for sample in found if sample is not None]
    if not sides:
        raise InputError(f"{location}: none of the images that were looked at can be read")
    middle = sorted(sides)[len(sides) // 2]
    size = max(multiple, min(max(middle, _SMALLEST), _LARGEST) // multiple * multiple)
    logger.warning(
        "images are cut to %d x %d pixels: the shorter sides of %d of them are %s; --image-size sets another size",
        size, size, len(sides), f"{min(sides)} to {max(sides)}" if min(sides) < max(sides) else middle,
    )  # fmt: skip
    return size


def _spread(length: int, count: int) -> range:
    """At most ``count`` indices, evenly spread."""
    return range(0, length, -(-length // count))


def _decode(sample: dict[str, Any], size: int | None) -> ImageSample:
    return {"image": image_member(sample, size), "label": label_member(sample)}


def class_names(artifact: Artifact) -> list[str]:
    """Names of the classes of images, in the order of their indices; empty where their description holds none.

    :raises InputError: they are no list of texts.
    """
    return parse(list[str], artifact.config.get("class_names", []), artifact.path)
