"""Damaged bytes for tests of parsers, and for how long they look."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

SEED: Final = int(os.environ.get("NORMSCOPE_TEST_FUZZ_SEED", "7"))
_LEAST_BYTES: Final = 16


def read_seconds(usual: float) -> float:
    """Read how long to look at each kind, from `NORMSCOPE_TEST_FUZZ_S`.

    Args:
        usual: Seconds where nobody asks for more.
    """
    return float(os.environ.get("NORMSCOPE_TEST_FUZZ_S", usual))


def damage(whole: Sequence[bytes], *, kept_bytes: int = 0) -> Iterator[bytes]:
    """Yield contents without end, with bytes changed, cut out, doubled or cut off.

    Args:
        whole: Contents that are whole.
        kept_bytes: Bytes at the beginning that stay as they are.
    """
    random = np.random.default_rng(SEED)
    while True:
        data = bytearray(whole[int(random.integers(len(whole)))])
        for _ in range(int(random.integers(1, 6))):
            at, size = int(random.integers(kept_bytes, len(data))), int(random.integers(1, 9))
            kind = random.integers(10)
            if kind < 5:
                data[at] = random.integers(256)
            elif kind < 7:
                data[at] = random.choice((0, 1, 0x22, 0x7F, 0x80, 0xFF))
            elif kind == 7:
                del data[at : at + size]
            elif kind == 8:
                data[at:at] = data[at : at + size]
            elif random.random() < 0.2:
                del data[at:]
            if len(data) < kept_bytes + _LEAST_BYTES:
                break
        yield bytes(data)
