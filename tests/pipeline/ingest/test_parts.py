"""Images of a part that are written while others are still being read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import SourceError, StorageError
from pipeline.ingest import parts
from pipeline.ingest.sources import SourceRead
from pipeline.store.dataset import open_dataset
from pipeline.store.sharding import encode_shard
from tests.support.content import content_of
from tests.support.made.datasets import MadeReader, MadeSource, ingest_made, write_sources


@dataclass(frozen=True)
class PiecewiseReader(MadeReader):
    """Reads as `MadeReader`, row by row; before the fourth row of a shard something may happen.

    With `failing`, the error comes when the source of that name is opened.
    """

    error: Exception | None = field(default=None, repr=False)
    failing: str | None = field(default=None, repr=False)
    awaited: Event | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return repr(MadeReader(self.gain))  # which changes no pixel

    def read(
        self, source: MadeSource, rows: range, images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        if self.failing == source.name and self.error is not None:
            raise self.error
        for row in rows:
            if row - rows.start == 3 and self.error is not None and self.failing is None:
                raise self.error
            if row - rows.start == 3 and self.awaited is not None:
                assert self.awaited.wait(30)
            place = row - rows.start
            yield from super().read(source, range(row, row + 1), images[place : place + 1])


def test_pieces_make_the_same_dataset_as_whole_reads(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"01234", "b": b"broken", "c": b"8x9"})
    whole = ingest_made(str(tmp_path / "whole"), sources)
    pieces = ingest_made(str(tmp_path / "pieces"), sources, reader=PiecewiseReader())
    assert pieces.fingerprint == whole.fingerprint
    assert pieces.manifest == whole.manifest
    assert content_of(pieces.url) == content_of(whole.url)


def test_the_first_chunk_is_written_before_the_last_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Event()

    def tell_and_encode(chunks: Iterable[NDArray[np.uint8]], **sizes: int) -> Iterator[Any]:
        for part in encode_shard(chunks, **sizes):
            begun.set()
            yield part

    monkeypatch.setattr(parts, "encode_shard", tell_and_encode)
    sources = write_sources(tmp_path / "in", {"a": b"0123"})
    ingest_made(str(tmp_path / "out"), sources, reader=PiecewiseReader(awaited=begun))
    images = open_dataset(str(tmp_path / "out")).read_images(0, 4)
    assert images[:, 4, 0, 1].tolist() == list(b"0123")


def test_a_source_that_breaks_off_keeps_what_was_read(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"01234567"})
    reader = PiecewiseReader(error=SourceError("a", "torn", "Mend it"))
    report = ingest_made(str(tmp_path / "out"), sources, reader=reader)
    dataset = open_dataset(report.url)
    assert dataset.column("readable").tolist() == [True, True, True, False] * 2
    assert dataset.read_images(4, 8)[:, 4, 0, 1].tolist() == [*b"456", 0]
    assert dataset.column("pixel_digest")[3] == ""
    assert "2 of 8" in str(report.manifest[0].reason)


def test_what_a_reader_should_not_raise_fails_its_source_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", {"a": b"012", "b": b"34567"})
    reader = PiecewiseReader(error=TypeError("MUSTERFRAU is no number"), failing="b")
    report = ingest_made(url, sources, reader=reader)
    readable = open_dataset(report.url).column("readable").tolist()
    assert readable == [True] * 3 + [False] * 5
    assert [entry.state for entry in report.manifest] == ["done", "failed"]
    assert "b: the reader raised TypeError" in report.manifest[1].reason
    assert "the reader raised TypeError" in caplog.text
    assert "in read" in caplog.text
    assert "MUSTERFRAU" not in caplog.text + report.manifest[1].reason
    # The fault may have been the machine's: the part that holds rows of b is tried again.
    again = ingest_made(url, sources, reader=reader)
    assert (again.parts_made, again.parts_kept) == (1, 1)
    mended = ingest_made(url, sources)
    assert (mended.parts_made, mended.parts_kept) == (1, 1)
    assert open_dataset(url).column("readable").all()


def test_a_part_that_is_tried_again_leaves_the_sealed_one_until_then(tmp_path: Path) -> None:
    """Whoever reads the dataset meanwhile is not disturbed."""
    url = str(tmp_path / "out")
    sources = write_sources(tmp_path / "in", {"a": b"012", "b": b"34567"})
    ingest_made(url, sources, reader=PiecewiseReader(error=TypeError(), failing="b"))
    sealed = content_of(url)
    away = PiecewiseReader(error=StorageError("b", "the server is away", ""), failing="b")
    with pytest.raises(StorageError, match="the server is away"):
        ingest_made(url, sources, reader=away)
    assert content_of(url) == sealed


def test_a_part_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "in", {"a": b"0123"})
    reader = PiecewiseReader(error=StorageError("a", "the server is away", "Try again"))
    with pytest.raises(StorageError, match="the server is away"):
        ingest_made(str(tmp_path / "out"), sources, reader=reader)
    assert not [path for path in (tmp_path / "out" / "parts").rglob("*") if path.is_file()]
