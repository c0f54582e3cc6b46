"""Images inside tar archives, which shards read in any order.

gzip has no way in but from its beginning. So a `.tar.gz` is unpacked to a plain `.tar` in the
scratch folder by its first reader on each machine, and all others there read their members from
it by place. The cost: each machine that works inflates each archive at most once, as a stream,
and holds it unpacked until the scratch folder is emptied; PNGs hardly shrink, so that the twelve
archives of ChestX-ray14 need their 45 GB there. A plain `.tar` is read where it lies, by range.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from pipeline.errors import DeniedError, SourceError
from pipeline.ranges import open_by_range
from pipeline.storage import ObjectInfo, describe, read_range, translated

_ZIPPED: Final = (".tar.gz", ".tgz")
_BLOCK_BYTES: Final = 8 * 2**20
# Images are compressed already; what grows more than this is no archive of images.
_MAX_EXPANSION: Final = 20
_REMEDY: Final = "Fetch the archive again"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive.

    Args:
        name: Its path there.
        span_bytes: Start and stop of its content in the unpacked archive.
    """

    name: str
    span_bytes: tuple[int, int]


def is_archive(url: str) -> bool:
    """Whether a file's name is that of a tar archive."""
    return url.lower().endswith((".tar", *_ZIPPED))


def list_members(info: ObjectInfo) -> tuple[Member, ...]:
    """List the files inside an archive, in its order; a `.tar.gz` is unpacked first.

    Args:
        info: The archive, as listed.

    Raises:
        SourceError: It is no whole tar archive.
        StorageError: It cannot be read, or the scratch folder cannot hold it.
    """
    with (
        _refusing(info.url),
        _open_tar(info) as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        return tuple(
            Member(member.name, (member.offset_data, member.offset_data + member.size))
            for member in archive
            if member.isreg() and not member.issparse()
        )


def read_member(url: str, version: str, span_bytes: tuple[int, int]) -> bytes:
    """Read one file inside an archive.

    Args:
        url: Of the archive.
        version: As listed; an archive that has changed since is refused.
        span_bytes: Of the member.

    Raises:
        SourceError: The archive has changed, or is damaged.
        StorageError: It cannot be read, or the scratch folder cannot hold it.
    """
    if not _is_zipped(url):
        data = read_range(url, *span_bytes)
        _check_version(url, version)
        return data
    path = _scratch_path(url, version)
    if not path.exists():
        _unpack(describe(url), version)
    return read_range(str(path), *span_bytes)


@contextmanager
def _open_tar(info: ObjectInfo) -> Iterator[BinaryIO]:
    if not _is_zipped(info.url):
        with open_by_range(info) as file:
            yield file
        return
    with _unpack(info, info.version).open("rb") as file:
        yield file


def _unpack(info: ObjectInfo, version: str) -> Path:
    """Unpack an archive into the scratch folder, unless that is done; one process at a time."""
    path = _scratch_path(info.url, version)
    with translated(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _check_version(info.url, version)
                _check_space(info, path.parent)
                handle, name = tempfile.mkstemp(dir=path.parent)
                try:
                    with os.fdopen(handle, "wb") as file:
                        _inflate(info, file)
                    _check_version(info.url, version)
                    Path(name).replace(path)
                finally:
                    Path(name).unlink(missing_ok=True)
    return path


def _inflate(info: ObjectInfo, target: BinaryIO) -> None:
    limit = _MAX_EXPANSION * info.size_bytes + _BLOCK_BYTES
    with (
        _refusing(info.url),
        open_by_range(info, block_bytes=_BLOCK_BYTES) as packed,
        gzip.open(packed) as file,
    ):
        while block := file.read(_BLOCK_BYTES):
            if target.write(block) and target.tell() > limit:
                problem = f"unpacks to more than {_MAX_EXPANSION} times its size"
                raise SourceError(info.url, problem, "Give an archive of images")


@contextmanager
def _refusing(url: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(url, f"not a whole tar archive ({error})", _REMEDY) from error


def _check_version(url: str, version: str) -> None:
    if describe(url).version != version:
        raise SourceError(url, "the archive has changed since it was listed", "Run again")


def _check_space(info: ObjectInfo, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < info.size_bytes:
        raise DeniedError(
            info.url,
            f"unpacking takes more than {info.size_bytes} bytes in {folder}, {free} are free",
            "Set TMPDIR to a larger disk, or unpack the archives yourself",
        )


def _is_zipped(url: str) -> bool:
    return url.lower().endswith(_ZIPPED)


def _scratch_path(url: str, version: str) -> Path:
    key = sha256(f"unpacked\n{url}\n{version}".encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir(), "normscope-unpacked", key, "archive.tar")
