"""Mean and covariance of features in ``.npz`` files: ``mu`` and ``sigma``, as ADM's reference batches have them."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfkit.errors import InputError
from mfkit.files.artifact import file_digest
from mfkit.files.atomic import whole_file


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
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            if not {"mu", "sigma"} <= names:
                return None
            mean, covariance = archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
            conditions = json.loads(str(archive["conditions"])) if "conditions" in names else {}
    except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as statistics: {error}") from error
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise InputError(f"{path}: mu is {mean.shape} and sigma {covariance.shape}; expected: (D,) and (D, D)")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all() or not isinstance(conditions, dict):
        raise InputError(f"{path}: mu or sigma is not finite, or its conditions are none")
    return Statistics(mean, covariance, conditions, "arr_0" in names, file_digest(path))


def write_statistics(
    path: Path, mean: NDArray[np.float64], covariance: NDArray[np.float64], conditions: dict[str, Any]
) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, mu=mean, sigma=covariance, conditions=np.array(json.dumps(conditions)))
