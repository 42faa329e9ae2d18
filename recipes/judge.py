"""How good images are, for report.py and objectives.py: distances, variance, copies, and a reader.

The reader and the pixels know nothing of what is judged.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

import mfkit
from mfkit.autoencoders.rae import RAE
from mfkit.data.codecs import to_uint8
from mfkit.data.images import open_images
from mfkit.data.loader import all_batches
from mfkit.evaluation.features import FeatureExtractor, FeatureRequest, open_features
from mfkit.evaluation.metrics.diversity import nearest_distances, within_class_variance
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.moments import Moments

Images = tuple[Tensor, Tensor]
"""(N, 3, S, S) uint8, and labels (N,)."""
Figures = dict[str, float]

COLUMNS = {
    "rae_distance_to_train": ("RAE", "{:.4f}"),
    "pixels_distance_to_train": ("pixels", "{:.4f}"),
    "rae_distance_to_held_out": ("RAE, held-out", "{:.4f}"),
    "pixels_distance_to_held_out": ("pixels, held-out", "{:.4f}"),
    "variance_within_classes": ("variance", "{:.2f}"),
    "read_as_requested": ("read", "{:.1%}"),
    "nearest_training_image_50": ("nearest", "{:.3f}"),
}
"""Of the tables: heading and format of a figure."""


def images(location: str, size: int) -> Images:
    (batch,) = all_batches(open_images(location, size), 1_000_000)
    return batch.columns["image"], batch.columns["label"]


@dataclass(frozen=True)
class Data:
    """Where the real images are."""

    train: str
    held_out: str
    mirror: bool = False
    """Whether the models were trained on mirror images too, so that these are as real."""


DIGITS = Data("digits:train", "digits:heldout")


class Judge:
    """The real images, in every way that generated ones are compared with them."""

    def __init__(self, rae: Path, data: Data) -> None:
        opened = mfkit.load(rae)
        assert isinstance(opened, RAE)
        self.rae = opened
        self.train, self.held_out = (
            images(location, opened.config.image_size) for location in (data.train, data.held_out)
        )
        spaces = {"rae": str(rae), "pixels": "pixels"}
        self.spaces = {name: open_features(FeatureRequest(features=of)) for name, of in spaces.items()}
        compared = {"train": self.train, "held_out": self.held_out}
        if data.mirror:
            compared = {name: _with_mirror_images(of) for name, of in compared.items()}
        self.moments = {
            (space, name): _moments(extractor, pixels)
            for space, extractor in self.spaces.items()
            for name, (pixels, _) in compared.items()
        }
        pixels, labels = self.known = compared["train"]
        self.reader = SVC(gamma=0.001 / 3, C=10).fit(_small(pixels), labels)
        self.variance = _variance(self.known)

    def figures(self, of: Images) -> Figures:
        pixels, labels = of
        own = {space: _moments(extractor, pixels) for space, extractor in self.spaces.items()}
        distances = {
            f"{space}_distance_to_{name}": frechet_distance(own[space], reference)
            for (space, name), reference in self.moments.items()
        }
        nearest = nearest_distances(pixels.float() / 255, self.known[0].float() / 255)
        quantiles = nearest.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        return distances | {
            "variance_within_classes": _variance(of) / self.variance,
            "read_as_requested": float((self.reader.predict(_small(pixels)) == labels.numpy()).mean()),
            **{f"nearest_training_image_{name}": value for name, value in zip((5, 50, 95), quantiles, strict=True)},
        }

    @torch.no_grad()
    def reconstructed(self, of: Images) -> Images:
        """What is left of images after encoding and decoding."""
        pixels, labels = of
        parts = [to_uint8(self.rae.decode(self.rae.encode(part.float() / 255))) for part in pixels.split(250)]
        return torch.cat(parts), labels


def table(heading: str, rows: dict[str, list[Figures]], extra: dict[str, dict[str, str]] | None = None) -> str:
    """A Markdown table of figures by name, mean and standard deviation over the runs.

    :param extra: columns of text before the figures: by heading, and by name.
    """
    extra = extra or {}
    heads = [heading, *extra, *(shown for shown, _ in COLUMNS.values())]
    lines = [heads, ["---"] * len(heads)]
    for name, runs in rows.items():
        figures = [spread([figures[key] for figures in runs], form) for key, (_, form) in COLUMNS.items()]
        lines.append([name, *(column.get(name, "") for column in extra.values()), *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: list[float], form: str) -> str:
    """Mean and standard deviation as text."""
    shown = form.format(mean(values))
    return f"{shown} ± {form.format(stdev(values))}" if len(values) > 1 else shown


def _with_mirror_images(of: Images) -> Images:
    pixels, labels = of
    return torch.cat([pixels, pixels.flip(-1)]), torch.cat([labels, labels])


def _moments(extractor: FeatureExtractor, pixels: Tensor) -> Moments:
    parts = [extractor.of_images(part)["features"] for part in pixels.split(500)]
    return Moments.of(torch.cat(parts).numpy())


def _variance(of: Images) -> float:
    return within_class_variance(of[0].float() / 255, of[1])


def _small(pixels: Tensor) -> np.ndarray:
    """(N, 192): means over squares, 8 x 8 of them in each colour, in [0, 16] as scikit-learn has the digits."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float() * (16 / 255), 8).flatten(1).numpy()
