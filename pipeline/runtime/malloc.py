"""Whether memory that large arrays leave stays with the process, for the next ones."""

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
    """Say whether large blocks that arrays or tensors leave stay with the process.

    By itself glibc gives each back to the system, and has the system map and clear pages for the
    next one: for every tile, every feature map. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        largest = 2**30 if is_kept else _OWN_LARGEST_BYTES
        library.mallopt(_MMAP_THRESHOLD, largest)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1 if is_kept else 2 * largest)


class KeptMemory(threading.local):
    """Memory for the images of a thread's work at hand, the same for one piece after the other.

    Fresh memory can cost as much as the decode of what is put there, and threads other than the
    first get it afresh for whatever is large, whatever `set_freed_memory` says.
    """

    _kept: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of whatever was there before, which ends the use of the one before."""
        size = math.prod(shape)
        if self._kept.size < size:
            self._kept = np.empty(size, np.uint8)
        return self._kept[:size].reshape(shape)
