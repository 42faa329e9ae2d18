"""Members of a sample to tensors and back. Nothing is ever unpickled."""

import io
import logging
import math
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mfkit.errors import DECODING_ERRORS, InputError, is_out_of_memory, reason

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
"""What is decoded, whatever the suffix; of Pillow's other formats some start programs."""
MAX_CLASSES = 1 << 20
MAX_IMAGE_BYTES = 1 << 28
"""Bytes of its file."""
_ORIENTATION = 0x0112
"""Of EXIF."""
_MAX_PIXELS = 1 << 26
"""Of an image, 8,192 x 8,192."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}
"""Number formats of arrays in shards."""

Sample = dict[str, Any]
"""A raw sample: ``__key__``, ``__url__`` and the bytes of each member by suffix."""


def array_bytes(array: np.ndarray) -> bytes:
    """An array in the .npy format."""
    buffer = io.BytesIO()
    npy.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def array_member(sample: Sample, suffix: str) -> Tensor:
    """The .npy member of a sample: float16 as it is stored, other numbers as float32."""
    if suffix not in sample:
        raise unreadable(sample, f"no member {suffix}")
    try:
        return torch.from_numpy(_numbers(sample[suffix]))
    except DECODING_ERRORS as error:
        raise unreadable(sample, f"{suffix} is no array: {reason(error)}") from error


def _numbers(data: bytes) -> np.ndarray:
    """The array in an .npy file, once its header is known to say no more than the file holds."""
    file = io.BytesIO(data)
    shape, _, dtype = array_header(file)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{shape} of {dtype} in {len(data)} bytes")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    return array.astype(np.float16 if dtype == np.float16 else np.float32)


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of an .npy file of numbers; the file then stands at the first of them.

    :raises: one of :data:`~mfkit.errors.DECODING_ERRORS`.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version}")
    shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.kind not in "fiub":
        raise ValueError(f"{dtype} are no numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def label_member(sample: Sample) -> int:
    """The class index in the .cls member, or 0 where there is none."""
    if "cls" not in sample:
        return 0
    try:
        label = int(sample["cls"])
    except ValueError as error:
        raise unreadable(sample, "cls is no class index") from error
    if not 0 <= label < MAX_CLASSES:
        raise unreadable(sample, f"cls is {label}, not a class index")
    return label


def image_member(sample: Sample, size: int | None) -> Tensor:
    """The image of a sample, see :func:`decode_image`."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in sample:
            return decode_image(sample[suffix], size, f"{sample['__key__']}.{suffix} in {sample['__url__']}")
    raise unreadable(sample, f"no image (.{', .'.join(IMAGE_SUFFIXES)})")


def decode_image(data: bytes, size: int | None, name: str) -> Tensor:
    """Bytes to (3, size, size) uint8: RGB as a viewer shows it, turned as its EXIF says and laid on white; the shorter
    side resized to ``size`` (bicubic, reduced by boxes first where it is far larger, as ADM does), the centre cut out.
    With ``size`` None the image has its own size."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > _MAX_PIXELS:
            raise InputError(f"{name} is too large: {image.width} x {image.height} pixels")
        if size and size**2 * max(image.size) / min(image.size) > _MAX_PIXELS:
            raise InputError(f"{name} is too narrow to be cut to a square: {image.width} x {image.height} pixels")
        pixels = _as_seen(image, name)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} does not decode: it is no PNG, JPEG or WebP image") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from error
    except (OSError, *DECODING_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{name} does not decode: {reason(error)}") from error
    if size is not None:
        pixels = _centre(pixels, size)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _as_seen(image: Image.Image, name: str) -> Image.Image:
    """In RGB, as a viewer shows it; what of it is not plain is said once."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        _say("are turned as their EXIF says", name)
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        _say("are transparent, and laid on white", name)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


SAID: set[str] = set()
"""What this process has said of images, each once."""


def _say(what: str, name: str) -> None:
    if what not in SAID:
        SAID.add(what)
        logger.warning("%s, and perhaps others, %s", name, what)


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


def unreadable(sample: Sample, what: str) -> InputError:
    return InputError(f"{sample['__url__']}: sample {sample['__key__']}: {what}")
