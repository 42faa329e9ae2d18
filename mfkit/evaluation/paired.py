"""Reconstructions beside the images that they are of: PSNR, SSIM, LPIPS, means over the images."""

from collections.abc import Callable, Mapping

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mfkit.data.dataset import MapDataset
from mfkit.data.images import open_images
from mfkit.data.loader import shared_batches
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.image_set import size_beside, subset
from mfkit.runtime.distributed import processes
from mfkit.runtime.progress import progress

Measure = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (B, 3, S, S) in [0, 1] to a figure of each pair, (B,)."""


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels; of images without an error, infinite."""
    return -10 * (images - originals).square().mean((1, 2, 3)).log10()


def _ssim() -> Measure:
    """Structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, deviation 1.5, inside the picture."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity
    except ImportError as error:
        raise UsageError("--paired ssim needs torchmetrics: pip install torchmetrics") from error

    def measure(images: Tensor, originals: Tensor) -> Tensor:
        _, of_windows = similarity(images, originals, data_range=1.0, reduction="none", return_full_image=True)
        return of_windows[:, :, 5:-5, 5:-5].mean((1, 2, 3))

    return measure


def _lpips() -> Measure:
    from mfkit.autoencoders.perceptual import lpips

    return lpips(processes().device)


MEASURES: dict[str, Callable[[], Measure]] = {"psnr": lambda: psnr, "ssim": _ssim, "lpips": _lpips}
"""By the names of ``--paired``."""


def compare_pairs(
    samples: str, originals: str, measures: Mapping[str, Measure], *, count: int | None, batch_size: int, workers: int
) -> dict[str, float | int | None]:
    """Means over the pairs, and ``identical``, how many of them have no error: their PSNR is infinite and left out.

    All processes call it, and share the images.

    :param count: pairs to take, spread evenly; None is all.
    :returns: figures by name; a PSNR of identical pairs alone is None.
    :raises InputError: the two sets are not of the same images, as far as number and labels tell.
    """
    ours = _open(samples, None)
    if not len(ours):
        raise InputError(f"{samples} holds no images")
    theirs = _open(originals, size_beside(originals, int(ours[0]["image"].shape[-1])))
    if len(ours) != len(theirs):
        raise InputError(f"--paired: {samples} holds {len(ours)} images, {originals} {len(theirs)}")
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in measures}  # and how many are finite
    pairs, identical = 0, 0
    device = processes().device
    both = zip(*(shared_batches(subset(one, count), batch_size, workers) for one in (ours, theirs)), strict=True)
    total = -(-(count or len(ours)) // (batch_size * processes().num_processes))
    for one, other in progress(both, unit="batch", total=total):
        if not torch.equal(one.columns["label"], other.columns["label"]):
            raise InputError(
                f"--paired: {samples} and {originals} are not in the same order; a folder is sorted by class, where "
                "--format tar or an .npz keep the order"
            )
        images, real = (batch.columns["image"].to(device).float() / 255 for batch in (one, other))
        if images.shape != real.shape:
            raise InputError(f"--paired: images of {images.shape[-1]} and of {real.shape[-1]} pixels")
        with torch.no_grad():
            for name, measure in measures.items():
                found = measure(images, real).double().cpu()
                finite = found[found.isfinite()]
                sums[name] += torch.stack([finite.sum(), finite.new_tensor(len(finite))])
        pairs += len(images)
        identical += int((images == real).flatten(1).all(1).sum())
    shared = gather_object([(sums, pairs, identical)])
    if not sum(one for _, one, _ in shared):
        raise InputError(f"--paired: none of {samples} can be read")
    totals = {name: sum(part[name] for part, _, _ in shared).tolist() for name in measures}
    means = {name: total / number if number else None for name, (total, number) in totals.items()}
    return means | {"identical": sum(one for _, _, one in shared)}


def _open(location: str, size: int | None) -> MapDataset:
    dataset = open_images(location, size)
    if isinstance(dataset, StreamDataset):
        raise UsageError(f"--paired reads two sets at once, and {location} is a stream: give a folder, shards or .npz")
    return dataset
