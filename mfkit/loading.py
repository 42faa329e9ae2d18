"""The network in any file that mfkit wrote, whatever its kind."""

from pathlib import Path

from torch import nn

from mfkit.artifacts.artifact import open_artifact
from mfkit.artifacts.pipeline_folder import component
from mfkit.formats.hub import HUB, WEIGHT_SUFFIXES, resolve
from mfkit.models.files import KINDS, open_generator


def load(path: str | Path) -> nn.Module:
    """The network in a file that mfkit wrote, ready to use: evaluation mode, float32, on the CPU.

    Of the folder of an exported pipeline it is the student. ``hf://owner/repo[@revision][/path]`` is fetched.

    A teacher is called as ``net(z, t, y)`` and gives the velocity; a student as ``net(z, r, t, y)`` and gives the
    average velocity; an RAE has ``encode(images)`` and ``decode(latents)``.

    :raises InputError: the file is missing, damaged or of another kind.
    """
    text = str(path)
    path = resolve(text, folder=not text.endswith(WEIGHT_SUFFIXES)) if text.startswith(HUB) else Path(path)
    if component(path, "transformer") or open_artifact(path).kind in KINDS:
        return open_generator(path).network
    from mfkit.autoencoders.files import open_autoencoder  # timm and diffusers take seconds to import

    return open_autoencoder(path).load()
