"""Judges a run of recipes/digits.sh: prints its figures as JSON and draws grid.png (real, teacher, the two students).

python recipes/digits_report.py OUT
"""

import json
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

import mfkit
from mfkit.autoencoders.rae import RAE
from mfkit.data.grid import write_grid
from mfkit.data.images import open_images
from mfkit.data.loader import all_batches
from mfkit.evaluation.features import FeatureExtractor, FeatureRequest, open_features
from mfkit.evaluation.metrics.diversity import nearest_distances, within_class_variance
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.moments import Moments

MODELS = {"drift": "student, drifting", "mft": "student, the paper's chain", "teacher": "teacher"}
Images = tuple[Tensor, Tensor]
"""(N, 3, 32, 32) uint8, and labels (N,)."""


def images(location: str) -> Images:
    (batch,) = all_batches(open_images(location, 32), 1_000_000)
    return batch.columns["image"], batch.columns["label"]


class Judge:
    """The real digits, in every way that generated ones are compared with them."""

    def __init__(self, rae: Path) -> None:
        self.train, self.held_out = images("digits:train"), images("digits:heldout")
        spaces = {"rae": str(rae), "pixels": "pixels"}
        self.spaces = {name: open_features(FeatureRequest(features=of)) for name, of in spaces.items()}
        self.moments = {
            (space, name): moments(extractor, pixels)
            for space, extractor in self.spaces.items()
            for name, (pixels, _) in (("train", self.train), ("held_out", self.held_out))
        }
        self.reader = SVC(gamma=0.001, C=10).fit(eight_by_eight(self.train[0]), self.train[1])
        self.variance = variance(self.train)

    def figures(self, of: Images) -> dict[str, float]:
        pixels, labels = of
        own = {space: moments(extractor, pixels) for space, extractor in self.spaces.items()}
        distances = {
            f"{space}_distance_to_{name}": frechet_distance(own[space], reference)
            for (space, name), reference in self.moments.items()
        }
        nearest = nearest_distances(pixels.float() / 255, self.train[0].float() / 255)
        quantiles = nearest.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        return distances | {
            "variance_within_classes": variance(of) / self.variance,
            "read_as_requested": float((self.reader.predict(eight_by_eight(pixels)) == labels.numpy()).mean()),
            **{f"nearest_training_image_{name}": value for name, value in zip((5, 50, 95), quantiles, strict=True)},
        }


def moments(extractor: FeatureExtractor, pixels: Tensor) -> Moments:
    return Moments.of(extractor.extract(pixels, ["features"])["features"].numpy())


def variance(of: Images) -> float:
    return within_class_variance(of[0].float() / 255, of[1])


def eight_by_eight(pixels: Tensor) -> np.ndarray:
    """(N, 64) in [0, 16], as scikit-learn has the digits: means over 4 x 4 pixels."""
    grey = pixels.float().mean(1) * (16 / 255)
    return grey.unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4)).flatten(1).numpy()


def report(out: Path) -> dict:
    judge, rae = Judge(out / "rae.safetensors"), mfkit.load(out / "rae.safetensors")
    assert isinstance(rae, RAE)
    sets = {name: [images(str(folder)) for folder in sorted(out.glob(f"samples/{model}-*"))]
            for model, name in MODELS.items()}  # fmt: skip
    sets["held-out digits"] = [judge.held_out]
    pixels, labels = judge.held_out
    sets["held-out digits, encoded and decoded"] = [
        ((rae.decode(rae.encode(pixels.float() / 255)) * 255).round().to(torch.uint8), labels)
    ]
    figures: dict[str, dict[str, float]] = {}
    for name, several in sets.items():
        found = [judge.figures(one) for one in several]
        figures[name] = {key: mean(one[key] for one in found) for key in found[0]} | {"sets": len(found)}
    draw(out / "grid.png", [judge.train, *(sets[name][0] for name in reversed(MODELS.values()))])
    drift, teacher = figures[MODELS["drift"]], figures[MODELS["teacher"]]
    ratios = {key: drift[key] / teacher[key] for key in drift if "distance" in key}
    return {"figures": figures, "drifting_over_teacher": ratios}


def draw(path: Path, sets: list[Images]) -> None:
    """A row per digit, six images of each set."""
    columns = [[pixels[labels == digit][:6] for pixels, labels in sets] for digit in range(10)]
    write_grid(path, torch.cat([part for row in columns for part in row]).float() / 255, 6 * len(sets), gap_every=6)


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1])), indent=2))
