"""The table of encoder libraries, and what ``--encoder`` names: a model of one, a file, an RAE's, or ``tiny``."""

from pathlib import Path

from mfkit.autoencoders.encoder import Encoder, EncoderLibrary
from mfkit.autoencoders.timm_encoder import HUB_CONFIG, TIMM, has_hub_config, read_hub_config
from mfkit.config.presets import TINY_ENCODER
from mfkit.errors import InputError, UsageError
from mfkit.formats.hub import local_copy, resolve

LIBRARIES: dict[str, EncoderLibrary] = {
    library.name: library
    for library in (
        TIMM,
    )
}  # fmt: skip
DEFAULT = TIMM.name
TINY = "tiny"
"""A small ViT that train-rae pre-trains on the images."""
_TINY_MODEL = "vit_tiny_patch16_224"


def open_encoder(encoder: str, side: int, *, size: int = 0, weights: str | None = None) -> Encoder:
    """An encoder that makes ``side`` patches a side of its input.

    :param encoder: ``NAME`` of timm or ``LIBRARY:NAME``; a file, an RAE's or timm's with its ``config.json``; or
        ``tiny``, not trained.
    :param size: side of its input in pixels; 0 is what makes ``side`` patches, and an RAE's own.
    :param weights: a local copy of a library's weights; of timm also as transformers writes those of DINOv2, SigLIP
        and ViT-MAE.
    """
    path = Path(encoder)
    if weights and (encoder == TINY or path.suffix == ".safetensors"):
        raise UsageError(f"--encoder-weights is for the models of a library; --encoder {encoder} is none")
    if encoder == TINY:
        size = size or side * int(TINY_ENCODER["patch_size"])
        return Encoder(TIMM, _TINY_MODEL, TINY_ENCODER, size, TIMM.build(_TINY_MODEL, TINY_ENCODER, size))
    if path.suffix != ".safetensors":
        library, name = _library(encoder)
        size = size or side * library.patch_size(name, {})
        return library.open(name, size, resolve(weights) if weights else None)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if has_hub_config(path):
        config = read_hub_config(path)
        return TIMM.open_hub_file(path, size or side * TIMM.patch_size(config.architecture, config.model_args.given()))
    from mfkit.autoencoders.rae import RAEFile

    file = RAEFile.open(path)
    return file.encoder(size or file.network_config.encoder_size)


def fetched(encoder: str) -> str:
    """What :func:`open_encoder` and :func:`open_trunk` take, of a file on the hub; any other name as it is."""
    return local_copy(encoder, beside=HUB_CONFIG)


def is_rae(encoder: str) -> bool:
    """Whether :func:`open_encoder` takes it for an RAE's file."""
    path = Path(encoder)
    return path.suffix == ".safetensors" and path.is_file() and not has_hub_config(path)


def open_trunk(name: str) -> Encoder:
    """A pre-trained encoder at the size that it was made for.

    :param name: ``NAME`` of timm or ``LIBRARY:NAME``, or a file in the layout of timm's hub, here or on the hub.
    """
    path = Path(fetched(name))
    if path.suffix == ".safetensors":
        if not path.is_file() or not has_hub_config(path):
            raise InputError(f"{path}: no file of a timm model with its config.json beside it")
        config = read_hub_config(path)
        return TIMM.open_hub_file(path, TIMM.image_size(config.architecture))
    library, model = _library(name)
    return library.open(model, library.image_size(model), None)


def _library(encoder: str) -> tuple[EncoderLibrary, str]:
    name, separator, model = encoder.partition(":")
    if not separator:
        return LIBRARIES[DEFAULT], encoder
    if name not in LIBRARIES:
        raise UsageError(f"--encoder {encoder}: there is no library {name}; known: {', '.join(LIBRARIES)}")
    return LIBRARIES[name], model
