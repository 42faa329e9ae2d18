"""Whether generated images are as varied as real ones, and whether they are copies: what a Fréchet distance hides."""

import torch
from torch import Tensor


def within_class_variance(images: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the pixels' variance, summed over pixels.

    :param images: (N, ...) in [0, 1]. :param labels: (N,); classes of a single image are left out.
    """
    flat = images.flatten(1).double()
    groups = [flat[labels == label] for label in labels.unique()]
    variances = [group.var(0).sum() for group in groups if len(group) > 1]
    return float(torch.stack(variances).mean()) if variances else float("nan")


def nearest_distances(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) the distance of each image to the nearest reference image: root mean square over pixels, in [0, 1]."""
    flat, others = images.flatten(1).float(), reference.flatten(1).float()
    nearest = [torch.cdist(part, others).amin(1) for part in flat.split(256)]
    return torch.cat(nearest) / flat.shape[1] ** 0.5
