"""Files on disk that appear complete or not at all, and only once the disk has stored them."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, TypeAlias

Part: TypeAlias = bytes | memoryview

_BUFFER_BYTES: Final = 2 << 20  # a multiple of every page's size
# Not every system has it, nor every file system.
_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)


@contextmanager
def written_beside(
    target: Path, parts: Iterable[Part], *, is_large: bool = False
) -> Iterator[Path]:
    """Write a temporary file in the target's folder, so that a rename is atomic.

    Args:
        target: Path that the block renames or links the file to; its folder is made.
        parts: Parts of the content, in order.
        is_large: Write past the page cache, for many megabytes that nobody reads again soon:
            filling the cache can take as long as decoding the images did.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{token_hex(4)}")
    # The process's umask decides who may read it, as for every file.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb", buffering=0 if is_large else -1) as file:
            if is_large:
                parts = [_write_past_cache(file.fileno(), parts)]
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str, target: str) -> bool:
    """Whether a file is a temporary one for the target, e.g. left by a killed writer."""
    return re.fullmatch(rf"\.{re.escape(target)}\.\w{{8}}", name) is not None


def _write_past_cache(descriptor: int, parts: Iterable[Part]) -> bytes:
    """Write all whole pages straight to the disk, and return what is left at the end."""
    filled = 0
    pages = memoryview(mmap.mmap(-1, _BUFFER_BYTES))  # begins with a page, as the disk wants it
    with _past_cache(descriptor):
        for part in parts:
            rest = memoryview(part)
            while rest:
                size = min(len(rest), _BUFFER_BYTES - filled)
                pages[filled : filled + size] = rest[:size]
                rest, filled = rest[size:], filled + size
                if filled == _BUFFER_BYTES:
                    _write_all(descriptor, pages)
                    filled = 0
        whole = filled - filled % mmap.PAGESIZE
        _write_all(descriptor, pages[:whole])
        return bytes(pages[whole:filled])


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def _past_cache(descriptor: int) -> Iterator[None]:
    """Write past the page cache, where the file system knows how."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
