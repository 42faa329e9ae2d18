"""The table of autoencoders: one file each, and one line here."""

from pathlib import Path

from mfkit.artifacts.artifact import Artifact
from mfkit.artifacts.pipeline_folder import component
from mfkit.autoencoders.autoencoder import AutoencoderFile
from mfkit.autoencoders.decoder_folder import DecoderFile
from mfkit.autoencoders.rae import RAEFile
from mfkit.autoencoders.vae import VAEFile
from mfkit.errors import InputError

AUTOENCODERS: tuple[type[AutoencoderFile], ...] = (
    RAEFile,
    VAEFile,
    DecoderFile,
)
ROLE = "rae"
"""What provenance calls the autoencoder of latents, of generators and of images."""


def open_autoencoder(path: Path) -> AutoencoderFile:
    """Opens a file or folder of an autoencoder, whichever it is.

    :raises InputError: it is none.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    path = component(path, "decoder") or path
    for kind in AUTOENCODERS:
        if kind.matches(path):
            return kind.open(path)
    raise InputError(f"{path} is not an autoencoder; known: {', '.join({kind.kind: kind for kind in AUTOENCODERS})}")


def autoencoder_of(artifact: Artifact, given: Path | None) -> AutoencoderFile:
    """The autoencoder that the user names, else the one that a file records; its latents must be the file's."""
    file = open_autoencoder(given or artifact.input_path(ROLE, "--rae"))
    if given is None:
        artifact.check_input(ROLE, file.artifact, "--rae")
    recorded = artifact.ancestors(ROLE)
    if recorded and not recorded & {file.artifact.digest, file.latents_of}:
        raise InputError(f"{artifact.path} was made from latents of another autoencoder than {file.path}")
    return file
