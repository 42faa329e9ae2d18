"""Members of a sample to tensors and back. Nothing is ever unpickled."""

import io
import warnings
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mfkit.errors import InputError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
STORED = {"float16": torch.float16, "float32": torch.float32}
"""Number formats of arrays in shards."""

Sample = dict[str, Any]
"""A raw sample: ``__key__``, ``__url__`` and the bytes of each member by suffix."""


def array_bytes(array: np.ndarray) -> bytes:
    """An array in the .npy format."""
    buffer = io.BytesIO()
    npy.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def array_member(sample: Sample, suffix: str) -> Tensor:
    """The .npy member of a sample: float16 as it is stored, anything else as float32."""
    try:
        array = npy.read_array(io.BytesIO(member(sample, suffix)), allow_pickle=False)
        return torch.from_numpy(array.astype(np.float16 if array.dtype == np.float16 else np.float32))
    except (ValueError, TypeError, EOFError, TokenError) as error:
        raise broken(sample, f"{suffix} is no array: {error}") from error


def label_member(sample: Sample) -> int:
    """The class index in the .cls member, or 0 where there is none."""
    if "cls" not in sample:
        return 0
    try:
        label = int(sample["cls"])
    except ValueError as error:
        raise broken(sample, "cls is no class index") from error
    if label < 0:
        raise broken(sample, f"cls is {label}, not a class index")
    return label


def image_member(sample: Sample, size: int | None) -> Tensor:
    """The image of a sample, see :func:`decode_image`."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in sample:
            return decode_image(sample[suffix], size, f"{sample['__key__']}.{suffix} in {sample['__url__']}")
    raise broken(sample, f"no image (.{', .'.join(IMAGE_SUFFIXES)})")


def decode_image(data: bytes, size: int | None, name: str) -> Tensor:
    """Bytes to (3, size, size) uint8: RGB, the shorter side resized to ``size`` (bicubic, reduced by boxes first
    where it is far larger, as ADM does), the centre cut out. With ``size`` None the image is left as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data)).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{name} does not decode: it is no image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name} does not decode: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is too large: {error}") from error
    if size is not None:
        image = _centre(image, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _centre(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.reduce(2)
    if min(image.size) != size:
        scale = size / min(image.size)
        shape = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def png_bytes(image: Tensor) -> bytes:
    """(3, H, W) uint8 to a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] to bytes, rounded to the nearest."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def member(sample: Sample, suffix: str) -> bytes:
    if suffix not in sample:
        raise broken(sample, f"no member {suffix}")
    return sample[suffix]


def broken(sample: Sample, what: str) -> InputError:
    return InputError(f"{sample['__url__']}: sample {sample['__key__']}: {what}")
