"""Whether memory that large arrays leave stays with the process, for the next ones."""

from __future__ import annotations

import ctypes
from typing import Final

# Parameters of glibc's mallopt, and the largest that it would choose by itself.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_OWN_LARGEST_BYTES: Final = 32 * 2**20


def set_freed_memory(*, is_kept: bool) -> None:
    """Say whether large blocks that arrays or tensors leave stay with the process.

    By itself glibc gives each back to the system, and has the system map and clear pages for the
    next one: for every tile, every feature map. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        largest = 2**30 if is_kept else _OWN_LARGEST_BYTES
        library.mallopt(_MMAP_THRESHOLD, largest)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if is_kept else 2 * largest)
