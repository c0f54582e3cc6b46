"""Keeps freed memory in the process, for the next large arrays."""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Parameters of glibc's mallopt, and the largest that it would choose by itself.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_OWN_LARGEST_BYTES: Final = 32 * 2**20


def set_freed_memory(*, is_kept: bool) -> None:
    """Choose whether large freed blocks of arrays or tensors stay with the process.

    By default glibc returns each to the system, which maps and clears pages for the next one: for
    every tile, every feature map. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        largest = 2**30 if is_kept else _OWN_LARGEST_BYTES
        library.mallopt(_MMAP_THRESHOLD, largest)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if is_kept else 2 * largest)


class ReusedMemory(threading.local):
    """Memory for the images that a thread works on, used again for the next ones.

    Fresh memory can cost as much as decoding what is put there, and threads other than the first
    get it afresh for large arrays, whatever `set_freed_memory` says.
    """

    _memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def reserve(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Give a uint8 array that holds old data; the array given before must not be used again."""
        size = math.prod(shape)
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].reshape(shape)
