from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from pipeline.io.ranges import open_by_range
from pipeline.io.storage import ObjectInfo, describe, read_range, write_bytes

CONTENT = bytes(range(256)) * 5


def test_ranges_are_read_from_every_store(store_url: str) -> None:
    url = f"{store_url}/a.bin"
    write_bytes(url, CONTENT)
    assert read_range(url, 3, 7) == CONTENT[3:7]
    assert read_range(url, 1270, 5000) == CONTENT[1270:]


def test_a_file_is_fetched_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://ranges/a.bin"
    write_bytes(url, CONTENT)
    fetched: list[tuple[int, int]] = []

    def read_and_note(url: str, start: int, stop: int) -> bytes:
        fetched.append((start, stop))
        return read_range(url, start, stop)

    monkeypatch.setattr("pipeline.io.ranges.read_range", read_and_note)
    with open_by_range(describe(url), block_bytes=100) as file:
        assert file.read(10) == CONTENT[:10]
        assert file.read(10) == CONTENT[10:20]
        assert fetched == [(0, 100)]
        assert file.seek(-7, io.SEEK_END) == 1273
        assert file.read() == CONTENT[1273:]
        assert file.seek(250) == 250
        file.seek(6, io.SEEK_CUR)
        assert file.read(3) == bytes([0, 1, 2])
        assert file.seek(9999) == 9999
        assert file.read(1) == b""
    assert sum(stop - start for start, stop in fetched) < 400


def test_the_open_file_does_not_tell_where_it_lies() -> None:
    info = ObjectInfo("/films/MUSTERFRAU.dcm", 5, "1", datetime(2026, 3, 4, tzinfo=UTC))
    with open_by_range(info) as file:
        assert "MUSTER" not in f"{file!r} {file.name}"
