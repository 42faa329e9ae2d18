"""The table of generator architectures: one file each, and one line here."""

from mfkit.models.dit import DIT_DH
from mfkit.models.generator import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        DIT_DH,
    )
}  # fmt: skip
DEFAULT = DIT_DH.name
