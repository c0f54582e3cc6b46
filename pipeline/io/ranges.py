"""A remote file of which only the parts that are read are fetched.

docs/adr/0003-own-range-file.md says why this is not `obstore.open_reader`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from pipeline.io.storage import ObjectInfo, read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# One request; the header of a radiograph is a few KiB, that with a large LUT a few hundred.
BLOCK_BYTES: Final = 256 * 2**10


def open_by_range(info: ObjectInfo, *, block_bytes: int = BLOCK_BYTES) -> io.BufferedReader:
    """Open a file for reading and seeking; each block is fetched when it is first needed.

    Args:
        info: The file, as it was listed.
        block_bytes: Number of bytes that one request fetches.
    """
    return io.BufferedReader(_RangeFile(info), block_bytes)


class _RangeFile(io.RawIOBase):
    """The unbuffered file; errors are those of `storage.read_range`."""

    name = "ranges"  # a buffered file is asked for one, and a URL may name a person

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__()
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size_bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._info.size_bytes)
        if stop <= self._at:
            return 0
        data = read_range(self._info.url, self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
