"""Inception Score (arXiv 1606.03498)."""

import torch
from torch import Tensor


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over the splits of exp E KL(p(y | x) || p(y)).

    :param probabilities: (N, K), rows of class probabilities, in no order of class.
    """
    scores = []
    for part in probabilities.double().tensor_split(min(splits, len(probabilities))):
        marginal = part.mean(0, keepdim=True)
        divergence = (torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)).sum(1).mean()
        scores.append(divergence.exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(correction=0))
