from __future__ import annotations

import ctypes

import pytest

from pipeline.runtime.malloc import set_freed_memory


def test_the_c_library_is_asked_to_keep_what_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> None:
            asked[parameter] = value

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    set_freed_memory(is_kept=True)
    feature_map = 128 * 64 * 64 * 64 * 4  # the largest of a step at 64 px
    assert asked[-3] > feature_map  # M_MMAP_THRESHOLD
    assert asked[-1] > 8 * feature_map  # M_TRIM_THRESHOLD
    set_freed_memory(is_kept=False)
    assert max(asked.values()) < feature_map
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    set_freed_memory(is_kept=True)  # another C library: nothing to ask
