"""Inception Score (arXiv 1606.03498)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from mfkit.evaluation.image_set import ImageSet


class InceptionScore(Metric):
    name = "inception-score"
    help = "Inception Score too, over 10 splits."
    outputs = ("probabilities",)
    from_statistics = True
    samples_alone = True

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        import torch

        probabilities = samples.outputs["probabilities"]
        # Images are sorted by class: in this order, always the same, no split is of few of them.
        order = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(0))
        mean, deviation = inception_score(probabilities[order])
        return {"inception_score": {"mean": mean, "std": deviation}}


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over the splits of exp E KL(p(y | x) || p(y)).

    :param probabilities: (N, K), class probabilities, in no order of class.
    """
    import torch

    scores = []
    for part in probabilities.double().tensor_split(min(splits, len(probabilities))):
        marginal = part.mean(0, keepdim=True)
        divergence = (torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)).sum(1).mean()
        scores.append(divergence.exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(correction=0))
