"""Images of a dataset of the Hugging Face hub: fetched once into the cache of ``datasets``, then read by random access.

``hf://datasets/owner/name[@revision][:split][?config=NAME&image=COLUMN&label=COLUMN]``; the split is ``train`` where
none is named, the columns are the first of images and that of class labels. Nothing that a dataset brings is run.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from mfkit.artifacts.artifact import LISTING_DIGEST, Artifact
from mfkit.data.codecs import MAX_CLASSES, MAX_IMAGE_BYTES, decode_image
from mfkit.data.skip import SkipPolicy
from mfkit.errors import InputError, UsageError, reason
from mfkit.formats.hub import hub_errors

if TYPE_CHECKING:
    from datasets import Dataset

_LOCATION = re.compile(r"hf:/{1,2}datasets/(?P<repo>[^/@:?]+/[^/@:?]+)(@(?P<revision>[^/:?]+))?(:(?P<split>[^/?]+))?/?")
_LABELS = ("label", "labels", "cls", "class", "fine_label")
"""Columns that are taken for the class where several could be."""


def is_hub_dataset(location: str) -> bool:
    """Also as a path spells it, with one slash. Shards in a repository are not meant: they are named by their files."""
    return _LOCATION.fullmatch(location.partition("?")[0]) is not None


class HubImages:
    """``image`` and ``label`` of each row of a split."""

    def __init__(self, location: str, size: int | None, skips: SkipPolicy) -> None:
        """:raises UsageError: the location is none, or ``datasets`` is not installed.
        :raises InputError: it cannot be fetched, or has no images."""
        head, _, query = location.partition("?")
        found, chosen = _LOCATION.fullmatch(head), dict(parse_qsl(query, keep_blank_values=True))
        if not found or not all(chosen.values()) or chosen.keys() - {"config", "image", "label"}:
            raise UsageError(
                f"{location}: give hf://datasets/owner/name[@revision][:split][?config=NAME&image=COLUMN&label=COLUMN]"
            )
        rows = _load(location, found["repo"], found["revision"], found["split"] or "train", chosen.get("config"))
        self._image = _image_column(location, rows, chosen.get("image"))
        self._label = _label_column(location, rows, chosen.get("label"))
        names = _class_names(location, rows, self._label)
        texts = bool(self._label) and "string" in str(getattr(rows.features[self._label], "dtype", ""))
        self._numbers = {name: number for number, name in enumerate(names)} if texts else None
        self._rows = rows.select_columns([name for name in (self._image, self._label) if name])
        self._location, self._size, self.skips = location, size, skips
        self.artifact = Artifact(
            Path(location), "images", {"class_names": names},
            content_digest=LISTING_DIGEST + _digest(rows, self._image, self._label), is_keyword=True,
        )  # fmt: skip

    @property
    def labels(self) -> list[int]:
        """(N,), class indices; -1 for a row without one."""
        if not self._label:
            return len(self) * [0]
        values, numbers = self._rows[self._label], self._numbers
        found = values if numbers is None else [numbers.get(value, -1) for value in values]
        return [-1 if label is None else int(label) for label in found]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, place = self._rows[index], f"{self._location}: row {index}"
        held = row[self._image] or {}
        data = held.get("bytes")
        if data is None:  # a path beside it may be of any file here, so it is not followed
            raise InputError(f"{place} holds no image")
        if len(data) > MAX_IMAGE_BYTES:
            raise InputError(f"{place}: an image of {len(data)} bytes")
        return {"image": decode_image(data, self._size, place), "label": self._class(row, place)}

    def _class(self, row: dict[str, Any], place: str) -> int:
        if not self._label:
            return 0
        value = row[self._label]
        label = value if self._numbers is None else self._numbers.get(value, -1)
        if label is None or label < 0:
            raise InputError(f"{place} has no label")
        return int(label)


def _load(location: str, repo: str, revision: str | None, split: str, config: str | None) -> "Dataset":
    try:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UsageError(f"{location} needs the library datasets: pip install 'mfkit[datasets]'") from error
    try:
        with hub_errors(f"{location} cannot be read"):  # with the scheme, a folder here of that name is not meant
            rows = load_dataset(f"hf://datasets/{repo}", config, split=split, revision=revision)
    except (DatasetsError, RuntimeError) as error:
        raise InputError(f"{location} cannot be read: {reason(error)}") from error
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def _image_column(location: str, rows: "Dataset", chosen: str | None) -> str:
    from datasets import Image

    columns = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    return _one_of(location, "image", chosen, columns, columns[:1])


def _label_column(location: str, rows: "Dataset", chosen: str | None) -> str | None:
    """None where there is no class."""
    from datasets import ClassLabel, Value

    features = rows.features
    columns = [name for name, one in features.items() if isinstance(one, ClassLabel)]
    others = [
        name for name, one in features.items()
        if isinstance(one, Value) and ("int" in one.dtype or one.dtype in ("string", "large_string"))
    ]  # fmt: skip
    usual = [name for name in _LABELS if name in columns] or columns or [name for name in _LABELS if name in others]
    if not usual and not chosen:
        return None
    return _one_of(location, "label", chosen, columns + others, usual[:1])


def _one_of(location: str, role: str, chosen: str | None, columns: Sequence[str], usual: Sequence[str]) -> str:
    if chosen and chosen not in columns:
        raise InputError(f"{location}: {chosen} is no column of {role}s; there are {', '.join(columns) or 'none'}")
    if not chosen and not usual:
        raise InputError(f"{location} has no column of {role}s")
    return chosen or usual[0]


def _class_names(location: str, rows: "Dataset", label: str | None) -> list[str]:
    """In the order of the class indices: numbers are indices themselves, words are sorted."""
    if label is None:
        return ["0"]
    names = getattr(rows.features[label], "names", None)
    if names:
        return list(names)
    values = [value for value in rows.unique(label) if value is not None]
    numbers = all(isinstance(value, int) for value in values)
    count = max(values, default=-1) + 1 if numbers else len(values)
    if not 0 < count <= MAX_CLASSES:
        raise InputError(f"{location}: {label} has {count} classes; choose another column by ?label=COLUMN")
    return [str(number) for number in range(count)] if numbers else sorted(values)


def _digest(rows: "Dataset", *columns: str | None) -> str:
    """Of the names of the tables in the cache, which have repository, config and commit in them, and of the choice."""
    tables = sorted("/".join(Path(table["filename"]).parts[-5:]) for table in rows.cache_files)
    return hashlib.sha256("\0".join([*tables, str(rows.split), *map(str, columns)]).encode()).hexdigest()
