"""Images inside tar archives, which shards read in any order.

gzip can only be read from its beginning. So the first reader on each machine unpacks a `.tar.gz`
to a plain `.tar` in the scratch folder, and the others read their members from there by offset,
until the room is needed. PNGs hardly shrink: the twelve archives of ChestX-ray14 need 45 GB; with
less room than that they are unpacked again when they are needed. A plain `.tar` is read in place,
by range.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal

from pipeline.errors import SourceError
from pipeline.io.ranges import open_by_range
from pipeline.io.scratch import Copy, Scratch
from pipeline.io.storage import ObjectInfo, describe, read_range

_ZIPPED: Final = (".tar.gz", ".tgz")
_BLOCK_BYTES: Final = 8 * 2**20
# Images are compressed already; what grows more than this is no archive of images.
_MAX_EXPANSION: Final = 20
_MODULUS: Final = 2**32
_REMEDY: Final = "Fetch the archive again"
# The last three come from numbers and texts in headers.
_DAMAGED: Final = (
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive.

    Args:
        name: Path of the file inside the archive.
        span_bytes: Start and stop of its content in the unpacked archive.
    """

    name: str
    span_bytes: tuple[int, int]


def is_archive(url: str) -> bool:
    """Whether a file's name is that of a tar archive."""
    return url.lower().endswith((".tar", *_ZIPPED))


def list_members(info: ObjectInfo, scratch: Scratch | None = None) -> tuple[Member, ...]:
    """List the files inside an archive, in its order; a `.tar.gz` is unpacked first.

    Args:
        info: The archive, as listed.
        scratch: Folder for unpacked archives; None for `scratch.DEFAULT_FOLDER`.

    Raises:
        SourceError: It is not a complete tar archive.
        SettingsError: It is larger than the scratch folder may be.
        StorageError: It cannot be read, or the scratch folder has no room for it.
    """
    with (
        _open_tar(info, scratch or Scratch()) as file,
        reading_tar(info.url, file) as archive,
    ):
        return tuple(
            Member(member.name, (member.offset_data, member.offset_data + member.size))
            for member in archive
            if member.isreg() and not member.issparse()
        )


def read_member(
    url: str, version: str, span_bytes: tuple[int, int], scratch: Scratch | None = None
) -> bytes:
    """Read one file inside an archive.

    Args:
        url: Path or URL of the archive.
        version: Version when listed; an archive that has changed since is refused.
        span_bytes: Start and stop of the member's content in the unpacked archive.
        scratch: Folder for unpacked archives; None for `scratch.DEFAULT_FOLDER`.

    Raises:
        SourceError: The archive has changed, or is damaged.
        SettingsError: It is larger than the scratch folder may be.
        StorageError: It cannot be read, or the scratch folder has no room for it.
    """
    if not _is_zipped(url):
        data = read_range(url, *span_bytes)
        _describe_unchanged(url, version)
        return data
    with _unpacked(url, version, scratch or Scratch()) as path:
        return read_range(str(path), *span_bytes)


class _CheckedInfo(tarfile.TarInfo):
    """A header whose size is not negative: older Pythons would read it for ever (CVE-2025-8194)."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a member of a negative size")
        return super()._block(count)  # type: ignore[misc,no-any-return]  # tarfile's own


@contextmanager
def reading_tar(
    url: str, file: IO[bytes], mode: Literal["r:", "r:*"] = "r:", *, remedy: str = _REMEDY
) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, and refuse one that proves damaged when the block has read all of it.

    Args:
        url: URL of the archive, for errors.
        file: Content of the archive.
        mode: `r:` for a plain archive, `r:*` for one that may be compressed.
        remedy: Remedy that the error gives.

    Raises:
        SourceError: It is not a complete tar archive.
    """
    with (
        _refusing(url, remedy),
        tarfile.open(fileobj=file, mode=mode, tarinfo=_CheckedInfo) as archive,
    ):
        yield archive
        # tarfile takes a damaged header behind the first member for the end.
        if (content := archive.fileobj) is not None:
            content.seek(archive.offset)
            if content.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("a damaged header")


@contextmanager
def _open_tar(info: ObjectInfo, scratch: Scratch) -> Iterator[BinaryIO]:
    if not _is_zipped(info.url):
        with open_by_range(info) as file:
            yield file
        return
    with _unpacked(info.url, info.version, scratch) as path, path.open("rb") as file:
        yield file


@contextmanager
def _unpacked(url: str, version: str, scratch: Scratch) -> Iterator[Path]:
    """An archive unpacked in the scratch folder."""
    key = sha256(f"unpacked\n{url}\n{version}".encode()).hexdigest()[:24]
    copy = Copy("archive.tar", _measure(url, version), partial(_inflate, url, version))
    with scratch.hold(url, key, copy) as path:
        yield path


@lru_cache(maxsize=64)
def _measure(url: str, version: str) -> int:
    """How large an archive is unpacked, by its last four bytes (RFC 1952, 2.3.1).

    They give the size modulo 4 GiB. Images hardly shrink and nothing grows, so it is the first of
    these sizes that is about the packed one or more.
    """
    packed = _describe_unchanged(url, version).size_bytes
    stated = int.from_bytes(read_range(url, max(packed - 4, 0), packed), "little")
    least = int(0.999 * packed) - 1024
    size = stated + -(-max(least - stated, 0) // _MODULUS) * _MODULUS
    if size > _MAX_EXPANSION * packed + _BLOCK_BYTES:
        problem = f"not a whole tar archive, or it unpacks to over {_MAX_EXPANSION} times its size"
        raise SourceError(url, problem, _REMEDY)
    return size


def _inflate(url: str, version: str, path: Path) -> None:
    """Fill a file of the size measured, and no more, with the archive unpacked."""
    info, size = _describe_unchanged(url, version), path.stat().st_size
    with (
        _refusing(url),
        path.open("r+b") as target,
        open_by_range(info, block_bytes=_BLOCK_BYTES) as packed,
        gzip.open(packed) as file,
    ):
        while block := file.read(min(_BLOCK_BYTES, size - target.tell() + 1)):
            if target.tell() + len(block) > size:
                break
            target.write(block)
        else:
            if target.tell() == size:
                _describe_unchanged(url, version)
                return
    raise SourceError(
        url, f"it does not unpack to the {size} bytes that its end states", "Unpack it yourself"
    )


@contextmanager
def _refusing(url: str, remedy: str = _REMEDY) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise SourceError(url, f"not a whole tar archive ({error})", remedy) from error


def _describe_unchanged(url: str, version: str) -> ObjectInfo:
    info = describe(url)
    if info.version != version:
        raise SourceError(url, "the archive has changed since it was listed", "Run again")
    return info


def _is_zipped(url: str) -> bool:
    return url.lower().endswith(_ZIPPED)
