"""The table of encoder libraries, and what ``--encoder`` names: a model of one, a file, an RAE's, or ``tiny``."""

from pathlib import Path

from mfkit.autoencoders.encoder import Encoder, EncoderLibrary
from mfkit.autoencoders.timm_encoder import TIMM, has_hub_config, read_hub_config
from mfkit.config.presets import TINY_ENCODER
from mfkit.errors import InputError, UsageError
from mfkit.formats.hub import resolve

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


def open_encoder(encoder: str, size: int, weights: str | None = None) -> Encoder:
    """An encoder for square images of ``size`` pixels.

    :param encoder: ``NAME`` of timm or ``LIBRARY:NAME``; a file, an RAE's or timm's with its ``config.json``; or
        ``tiny``, not trained.
    :param weights: a local copy of a library's weights; of timm also as transformers writes those of DINOv2, SigLIP
        and ViT-MAE.
    """
    path = Path(encoder)
    if weights and (encoder == TINY or path.suffix == ".safetensors"):
        raise UsageError(f"--encoder-weights is for the models of a library; --encoder {encoder} is none")
    if encoder == TINY:
        return Encoder(TIMM, _TINY_MODEL, TINY_ENCODER, size, TIMM.build(_TINY_MODEL, TINY_ENCODER, size))
    if _is_rae(path):
        from mfkit.autoencoders.rae import RAEFile

        return RAEFile.open(path).encoder(size)
    if path.suffix == ".safetensors":
        return TIMM.open_hub_file(path, size)
    library, name = _library(encoder)
    return library.open(name, size, resolve(weights) if weights else None)


def input_size(encoder: str, side: int) -> int:
    """Side in pixels of the input from which an encoder, named as for :func:`open_encoder`, makes ``side`` patches."""
    path = Path(encoder)
    if encoder == TINY:
        return side * int(TINY_ENCODER["patch_size"])
    if _is_rae(path):
        from mfkit.autoencoders.rae import RAEFile

        return RAEFile.open(path).network_config.encoder_size
    if path.suffix == ".safetensors":
        config = read_hub_config(path)
        return side * TIMM.patch_size(config.architecture, config.model_args.given())
    library, name = _library(encoder)
    return side * library.patch_size(name, {})


def _library(encoder: str) -> tuple[EncoderLibrary, str]:
    name, separator, model = encoder.partition(":")
    if not separator:
        return LIBRARIES[DEFAULT], encoder
    if name not in LIBRARIES:
        raise UsageError(f"--encoder {encoder}: there is no library {name}; known: {', '.join(LIBRARIES)}")
    return LIBRARIES[name], model


def _is_rae(path: Path) -> bool:
    """Whether a name is that of a safetensors file without timm's ``config.json``, and so of an RAE."""
    if path.suffix == ".safetensors" and not path.is_file():
        raise InputError(f"{path} does not exist")
    return path.suffix == ".safetensors" and not has_hub_config(path)
