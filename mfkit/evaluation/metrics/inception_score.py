"""Inception Score (arXiv 1606.03498)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from mfkit.evaluation.image_set import ImageSet


class InceptionScore(Metric):
    name = "inception-score"
    help = "Inception Score too, over 10 splits."
    needs: ClassVar = {"probabilities": "splits"}
    samples_alone = True

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        from mfkit.evaluation.reducers import SplitScores

        splits = samples.seen["probabilities", "splits"]
        assert isinstance(splits, SplitScores)
        scores = splits.scores()
        return {"inception_score": {"mean": float(scores.mean()), "std": float(scores.std(correction=0))}}
