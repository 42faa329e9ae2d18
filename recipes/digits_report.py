"""Judges a run of recipes/digits.sh: prints its figures as JSON and draws grid.png (real, teacher, student).

python recipes/digits_report.py OUT
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

import mfkit
from mfkit.autoencoders.rae import RAE
from mfkit.data.grid import write_grid
from mfkit.data.images import open_images
from mfkit.data.loader import all_batches
from mfkit.evaluation.features import rae_features
from mfkit.evaluation.metrics.diversity import nearest_distances, within_class_variance
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.moments import Moments


def images(location: str) -> tuple[Tensor, Tensor]:
    """All images (N, 3, 32, 32) uint8 and labels (N,)."""
    (batch,) = all_batches(open_images(location, 32), 1_000_000)
    return batch.columns["image"], batch.columns["label"]


def eight_by_eight(pixels: Tensor) -> np.ndarray:
    """(N, 64) in [0, 16], as scikit-learn has the digits: means over 4 x 4 pixels."""
    grey = pixels.float().mean(1) * (16 / 255)
    return grey.unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4)).flatten(1).numpy()


def report(out: Path) -> dict:
    train, train_labels = images("digits:train")
    held_out, held_out_labels = images("digits:heldout")
    sets = {"student, 1 step": images(str(out / "samples")), "teacher, 50 steps": images(str(out / "teacher-samples"))}
    rae = mfkit.load(out / "rae.safetensors")
    assert isinstance(rae, RAE)
    extractor = rae_features(out / "rae.safetensors")

    def features(pixels: Tensor) -> Tensor:
        return extractor.extract(pixels, ["features"])["features"]

    reference = Moments.of(features(train).numpy())
    decoded = (rae.decode(rae.encode(held_out.float() / 255)) * 255).round().to(torch.uint8)
    sets["reconstruction of held-out"] = (decoded, held_out_labels)
    sets["held-out"] = (held_out, held_out_labels)

    reader = SVC(gamma=0.001, C=10).fit(eight_by_eight(train), train_labels)
    real_variance = within_class_variance(train.float() / 255, train_labels)
    held_out_variance = within_class_variance(held_out.float() / 255, held_out_labels)
    count = min(len(pixels) for pixels, _ in sets.values())
    rows: dict[str, dict[str, Any]] = {}
    for name, (pixels, labels) in sets.items():
        unit, found = pixels.float() / 255, features(pixels).numpy()
        small_sets = [part for part in in_turn(labels).split(count) if len(part) == count]
        nearest = nearest_distances(unit, train.float() / 255).quantile(torch.tensor([0.05, 0.5, 0.95]))
        of_held_out = "held-out" in name
        rows[name] = {
            "images": len(pixels),
            "frechet_distance": frechet_distance(Moments.of(found), reference),
            f"frechet_distance_of_{count}": mean(
                frechet_distance(Moments.of(found[part.numpy()]), reference) for part in small_sets
            ),
            "within_class_variance_ratio": within_class_variance(unit, labels)
            / (held_out_variance if of_held_out else real_variance),
            "nearest_training_image_5_50_95": [round(value, 4) for value in nearest.tolist()],
            "read_as_requested": float((reader.predict(eight_by_eight(pixels)) == labels.numpy()).mean()),
        }
    per_class = [draw_rows(train, train_labels)] + [
        draw_rows(*sets[name]) for name in ("teacher, 50 steps", "student, 1 step")
    ]
    grid = torch.cat([part[digit] for digit in range(10) for part in per_class])
    write_grid(out / "grid.png", grid.float() / 255, 24, gap_every=8)
    student, teacher, real = rows["student, 1 step"], rows["teacher, 50 steps"], rows["held-out"]
    small = f"frechet_distance_of_{count}"
    return {
        "sets": rows,
        "student_over_teacher": student["frechet_distance"] / teacher["frechet_distance"],
        "teacher_over_held_out": teacher[small] / real[small],
    }


def in_turn(labels: Tensor) -> Tensor:
    """The pixels in an order whose every part has the classes alike: the first of each class, the second, …"""
    turn = torch.zeros_like(labels)
    for digit in labels.unique():
        turn[labels == digit] = torch.arange(int((labels == digit).sum()))
    return turn.argsort(stable=True)


def draw_rows(pixels: Tensor, labels: Tensor) -> list[Tensor]:
    """Per digit its first eight pixels."""
    return [pixels[labels == digit][:8] for digit in range(10)]


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1])), indent=2))
