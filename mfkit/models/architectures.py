"""The table of generator architectures: one file each, and one line here."""

from mfkit.errors import UsageError
from mfkit.models.dit import DIT_DH
from mfkit.models.generator import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        DIT_DH,
    )
}  # fmt: skip
DEFAULT = DIT_DH.name


def architecture_of(model: str) -> tuple[Architecture, str]:
    """The architecture and the size that ``--model`` names: SIZE of the default one, or ARCHITECTURE:SIZE.

    :raises UsageError: there is no such architecture.
    """
    name, separator, size = model.rpartition(":")
    if separator and name not in ARCHITECTURES:
        raise UsageError(f"--model {model}: there is no architecture {name}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name or DEFAULT], size
