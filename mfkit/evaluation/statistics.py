"""Mean and covariance of features in ``.npz`` files: ``mu`` and ``sigma``, as ADM's reference batches have them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.atomic import whole_file
from mfkit.data.npz import read_npz
from mfkit.errors import InputError


@dataclass(frozen=True)
class Statistics:
    """What such a file holds."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    conditions: dict[str, Any]
    """What the file says of its features; empty in files of others."""
    has_images: bool
    digest: str


def read_statistics(path: Path) -> Statistics | None:
    """The statistics in a ``.npz``; None where it holds none."""
    found = read_npz(path, "mu", "sigma")
    if found.arrays.keys() != {"mu", "sigma"}:
        return None
    mean, covariance = (found.arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise InputError(f"{path}: mu is {mean.shape} and sigma {covariance.shape}; expected: (D,) and (D, D)")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise InputError(f"{path}: mu or sigma is not finite")
    of = found.conditions.get("of", {})
    if not isinstance(of, dict) or not all(isinstance(of.get(name, 0), int | None) for name in ("images", "size")):
        raise InputError(f"{path}: its conditions do not say of what images it is")
    return Statistics(mean, covariance, found.conditions, "arr_0" in found.names, file_digest(path))


def write_statistics(
    path: Path, mean: NDArray[np.float64], covariance: NDArray[np.float64], conditions: dict[str, Any]
) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, mu=mean, sigma=covariance, conditions=np.array(json.dumps(conditions)))
