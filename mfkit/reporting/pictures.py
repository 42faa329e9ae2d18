"""What the networks of a run draw: rows of images, of which a column has one class and one noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfkit.artifacts.artifact import Artifact
from mfkit.autoencoders.files import autoencoder_of
from mfkit.data.images import open_images, recorded_images
from mfkit.data.loader import all_batches
from mfkit.data.stream import StreamDataset
from mfkit.errors import MfkitError
from mfkit.evaluation.image_set import subset
from mfkit.evaluation.metrics.diversity import nearest_indices
from mfkit.inference.painter import Painter
from mfkit.reporting.run import Run
from mfkit.runtime.distributed import processes

COLUMNS = 10
_STEPS = (1, 2, 4)
_READ = 2000
"""Real images among which the nearest is looked for."""


@dataclass(frozen=True)
class Row:
    """Images (N, 3, S, S) in [0, 1], and what they are."""

    title: str
    images: Tensor


@torch.no_grad()
def rows(run: Run, images: str | None = None) -> Iterator[Row | str]:
    """Real images, reconstructions, teachers, students and the real ones nearest to theirs; or why some are missing.

    :param images: the real ones; None is those that the run's latents are recorded to be of.
    """
    try:
        real = _Real.of(run, images)
    except MfkitError as error:
        yield f"Without real images: {error}"
        real = None
    for name, artifact in {**run.of_kind("teacher"), **run.last("student")}.items():
        try:
            painter = Painter.open(artifact.path)
        except MfkitError as error:
            yield f"Without {name}: {error}"
            continue
        fits = real is not None and real.images.shape[-1] == painter.autoencoder.config.image_size
        if real and not fits:
            yield f"Without real images beside {name}: these are of {real.images.shape[-1]} pixels"
        if real and fits and not real.shown:
            yield from real.rows(painter)
        yield from _drawn(name, painter, real if fits else None)


def _drawn(name: str, painter: Painter, real: "_Real | None") -> Iterator[Row]:
    labels = _labels(painter)
    noise = painter.noise(0, len(labels))
    for nfe in (None,) if painter.file.kind == "teacher" else _STEPS:
        images = painter.draw(noise, labels, nfe).cpu()
        evaluations = painter.sampler(nfe).conditions["nfe"]
        yield Row(f"{name}, {evaluations} evaluation{'s' if evaluations > 1 else ''}", images)
        if nfe == 1 and real:
            nearest = nearest_indices(images, real.images)
            yield Row(f"the real image nearest to each of the row above, of {len(real.images):,}", real.images[nearest])


def _labels(painter: Painter) -> Tensor:
    return torch.arange(COLUMNS) % painter.file.num_classes


class _Real:
    """Images that the run was trained on."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self._labels, self.shown = images, labels, False

    @classmethod
    def of(cls, run: Run, location: str | None) -> "_Real | None":
        """:raises MfkitError: they are not where they are said to be."""
        latents: list[Artifact] = list(run.of_kind("latents").values())
        if not latents:
            return None
        size = autoencoder_of(latents[0], None).image_size
        images, labels = [], []
        found = open_images(location, size) if location else recorded_images(latents[0], size, "--images")
        # Of every class, where these come one after the other.
        some = found if isinstance(found, StreamDataset) else subset(found, min(_READ, len(found)))
        for batch in all_batches(some, 500):
            images.append(batch.columns["image"].float() / 255)
            labels.append(batch.columns["label"])
            if sum(map(len, images)) >= _READ:
                break
        return cls(torch.cat(images), torch.cat(labels))

    def rows(self, painter: Painter) -> Iterator[Row]:
        """Of the class of each column another one, as it is and as it is decoded; white where there is none of it."""
        self.shown = True
        found, labels = [], _labels(painter)
        for column, label in enumerate(labels):
            of_class = self.images[self._labels == label]
            turn, turns = (int((some == label).sum()) for some in (labels[:column], labels))
            found.append(of_class[turn * len(of_class) // turns] if len(of_class) else torch.ones_like(self.images[0]))
        chosen = torch.stack(found)
        yield Row("real", chosen)
        again = painter.autoencoder
        yield Row("real, encoded and decoded", again.decode(again.encode(chosen.to(processes().device))).cpu())
