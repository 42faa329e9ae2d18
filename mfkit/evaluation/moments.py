"""Mean and covariance of features, and the ``.npz`` files that hold them, as ADM's reference batches do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.atomic import atomic_write
from mfkit.artifacts.json_files import parse
from mfkit.data.npz import Npz, read_npz
from mfkit.errors import InputError

INCEPTION_WIDTH = 2048
SUFFIXES = {"features": "", "spatial": "_s"}
"""What stands behind ``mu`` and ``sigma`` in such a file, by the features that they are of."""


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Moments":
        """:param features: (N, D), N >= 2."""
        sums = MomentSums()
        sums.add(features)
        return sums.moments()


class MomentSums:
    """Number, mean and scatter of features that come batch by batch, in float64 (Chan, Golub, LeVeque 1983).

    The scatter is the sum of the outer products of the deviations from the mean: no large sums are subtracted.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._scatter: NDArray[np.float64] = np.zeros((0, 0))

    def add(self, features: NDArray[np.floating]) -> None:
        """:param features: (B, D)."""
        if len(features):
            features = features.astype(np.float64)
            mean = features.mean(0)
            features -= mean
            self._merge(len(features), mean, features.T @ features)

    def merge(self, other: "MomentSums") -> None:
        if other.count:
            self._merge(other.count, other._mean, other._scatter)

    def _merge(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean, scatter.copy()
            return
        total, gap = self.count + count, mean - self._mean
        self._scatter += scatter + np.outer(gap * (self.count * count / total), gap)
        self._mean = self._mean + gap * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Of two or more rows."""
        return Moments(self._mean, self._scatter / (self.count - 1))


@dataclass(frozen=True)
class OfImages:
    """Which images statistics are of."""

    location: str | None = None
    digest: str | None = None
    images: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Statistics:
    """What such a file holds."""

    moments: dict[str, Moments]
    """By the features that they are of."""
    conditions: dict[str, Any]
    """What the file says of its features; empty in files of others."""
    of: OfImages = field(default_factory=OfImages)
    has_images: bool = False
    digest: str = ""

    @property
    def of_inception(self) -> bool:
        """As far as the file says it, or its size."""
        said = str(self.conditions.get("features", ""))
        return said.startswith("Inception") if said else len(self.moments["features"].mean) == INCEPTION_WIDTH


def read_statistics(path: Path) -> Statistics | None:
    """The statistics in an ``.npz``; None where it holds none."""
    found = read_npz(path, *(f"{name}{suffix}" for suffix in SUFFIXES.values() for name in ("mu", "sigma")))
    moments = {
        name: _moments(path, found, suffix)
        for name, suffix in SUFFIXES.items()
        if {f"mu{suffix}", f"sigma{suffix}"} <= found.arrays.keys()
    }
    if "features" not in moments:
        return None
    names = OfImages.__dataclass_fields__
    of = parse(dict, found.conditions.get("of", {}), f"{path}: its conditions")
    known = parse(OfImages, {name: of[name] for name in names if name in of}, f"{path}: its conditions")
    return Statistics(moments, found.conditions, known, "arr_0" in found.names, file_digest(path))


def _moments(path: Path, found: Npz, suffix: str) -> Moments:
    mean, covariance = (found.arrays[f"{name}{suffix}"].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise InputError(f"{path}: mu is {mean.shape} and sigma {covariance.shape}; expected: (D,) and (D, D)")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise InputError(f"{path}: mu or sigma is not finite")
    return Moments(mean, covariance)


def write_statistics(path: Path, moments: Mapping[str, Moments], conditions: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {}
    for name, of in moments.items():
        arrays |= {f"mu{SUFFIXES[name]}": of.mean, f"sigma{SUFFIXES[name]}": of.covariance}
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, conditions=np.array(json.dumps(conditions)))
