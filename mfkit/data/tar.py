"""Members of tars that anyone may have written: damage is not taken for the end, and sizes are bounded."""

import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Literal, Self

from mfkit.errors import DECODING_ERRORS

BLOCK = 512
_NAMED = re.compile(r"(^|/)[^./][^/]*\.[^/]*$")
"""A name with a key and a suffix."""
MAX_BYTES = 1 << 30
"""Bytes of a member, and of a sample."""
_MAX_PADDING = 1 << 20
"""Bytes of empty blocks after the last member; tars that are joined go on after them."""
_MAX_HEADER = 1 << 20
"""Bytes of a header that continues another: a long name, or records of the POSIX format."""
_CONTINUED = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip

TAR_ERRORS = (tarfile.TarError, OSError, *DECODING_ERRORS)
"""What reading a damaged tar raises."""


class _NoHeader(tarfile.HeaderError):
    """An empty block, or none at all; tarfile has no public names for its own."""


class _EmptyBlock(_NoHeader):
    """The mark of a tar's end."""


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf:
            raise _NoHeader("unexpected end of data")
        if len(buf) == BLOCK and not any(buf):
            raise _EmptyBlock("a header that is empty")
        member = super().frombuf(buf, encoding, errors)
        if member.type in _CONTINUED and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def members(
    file: IO[bytes], mode: Literal["r:", "r|*"], *, part: bool = False
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The regular files of a tar, each with the tar, whose own file stands where the content begins.

    Links, devices, folders, and files without a key or a suffix are passed over. Iterating over a TarFile would keep
    all members, and end at a damaged header as at the last. A tar without the empty block at its end was cut off;
    one behind another belongs to it, so that ``cat *.tar`` is read whole.

    :param mode: tarfile's: ``r:`` for a file, ``r|*`` for a stream, perhaps compressed.
    :param part: these are some members of a tar, which has no such block.
    :raises: one of :data:`TAR_ERRORS`.
    """
    # Opening reads the first header; a tar that begins with its end holds nothing.
    with suppress(_EmptyBlock), tarfile.open(fileobj=file, mode=mode, tarinfo=_Member) as tar:
        member = tar.next()
        assert tar.fileobj is not None
        while member is not None:
            if member.size < 0 or tar.offset <= member.offset:
                raise tarfile.ReadError(f"{member.name!r} is of {member.size} bytes")
            if member.isreg() and _NAMED.search(member.name):
                if member.issparse() or member.size > MAX_BYTES:
                    raise tarfile.ReadError(f"{member.name!r} is sparse or too large: {member.size} bytes")
                tar.fileobj.seek(member.offset_data)
                yield member, tar
            tar.fileobj.seek(tar.offset)
            member = _next(tar, part)


def content(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    """The bytes of the member at which the tar's file stands."""
    assert tar.fileobj is not None
    data = tar.fileobj.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _next(tar: tarfile.TarFile, part: bool) -> tarfile.TarInfo | None:
    ended = part
    for _ in range(_MAX_PADDING // BLOCK):
        try:
            return _Member.fromtarfile(tar)
        except _EmptyBlock:
            ended = True
        except _NoHeader:
            if ended:
                return None
            raise
    return None


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member, as WebDataset has them: the suffix begins at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()
