"""Images that are written while others are still being read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import SourceError, StorageError
from pipeline.ingest import shards
from pipeline.ingest.plan import SourceRead, read_all
from pipeline.ingest.run import ingest
from pipeline.records import Array
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
from pipeline.store.sharding import encode_shard
from tests.support.made.datasets import MadeReader, MadeSource, plan_made, write_sources


@dataclass(frozen=True)
class PiecewiseReader(MadeReader):
    """Reads as `MadeReader`, row by row; before the fourth row of a shard something may happen.

    With `failing`, the error comes when the source of that name is opened.
    """

    error: Exception | None = None
    failing: str | None = None
    awaited: Event | None = field(default=None, repr=False)

    def read(
        self, source: MadeSource, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        if self.failing == Path(source.url).name and self.error is not None:
            raise self.error
        whole, read = read_all(MadeReader(), source, rows, images.shape)
        for row in range(len(images)):
            if row == 3 and self.error is not None and self.failing is None:
                raise self.error
            if row == 3 and self.awaited is not None:
                assert self.awaited.wait(30)
            piece = slice(row, row + 1)
            images[piece] = whole[piece]
            columns = {name: values[piece] for name, values in read.columns.items()}
            yield SourceRead(read.reasons[piece], columns, read.digest)


def test_pieces_make_the_same_dataset_as_whole_reads(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"012", "b": b"broken", "c": b"8x9"}))
    whole = ingest(str(tmp_path / "whole"), plan, MadeReader(), map_serially)
    pieces = ingest(str(tmp_path / "pieces"), plan, PiecewiseReader(), map_serially)
    assert pieces.fingerprint == whole.fingerprint
    assert pieces.manifest == whole.manifest
    for shard in range(3):
        name = f"image/c/{shard}/0/0/0"
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_first_chunk_is_written_before_the_last_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Event()

    def tell_and_encode(chunks: Iterable[NDArray[np.uint8]], **sizes: int) -> Iterator[Any]:
        for part in encode_shard(chunks, **sizes):
            begun.set()
            yield part

    monkeypatch.setattr(shards, "encode_shard", tell_and_encode)
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"0123"}))
    ingest(str(tmp_path / "out"), plan, PiecewiseReader(awaited=begun), map_serially)
    images = open_dataset(str(tmp_path / "out")).read_images(0, 4)
    assert images[:, 4, 0, 1].tolist() == list(b"0123")


def test_a_source_that_breaks_off_keeps_what_was_read(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"01234567"}))
    reader = PiecewiseReader(error=SourceError("a", "torn", "Mend it"))
    report = ingest(str(tmp_path / "out"), plan, reader, map_serially)
    dataset = open_dataset(report.url)
    assert dataset.column("readable").tolist() == [True, True, True, False] * 2
    assert dataset.read_images(4, 8)[:, 4, 0, 1].tolist() == [*b"456", 0]
    assert dataset.column("source_digest")[3] == ""
    assert "2 of 8" in str(report.manifest[0].reason)


def test_what_a_reader_should_not_raise_fails_its_source_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"012", "b": b"34567"}))
    reader = PiecewiseReader(error=TypeError("MUSTERFRAU is no number"), failing="b")
    report = ingest(str(tmp_path / "out"), plan, reader, map_serially)
    readable = open_dataset(report.url).column("readable").tolist()
    assert readable == [True] * 3 + [False] * 5
    assert [entry.state for entry in report.manifest] == ["done", "failed"]
    assert "b: the reader raised TypeError" in report.manifest[1].reason
    assert "the reader raised TypeError" in caplog.text
    assert "in read" in caplog.text
    assert "MUSTERFRAU" not in caplog.text + report.manifest[1].reason
    # The fault may have been the machine's: both shards that hold rows of b are tried again.
    assert ingest(str(tmp_path / "out"), plan, reader, map_serially).shards_made == 2


def test_a_shard_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"0123"}))
    reader = PiecewiseReader(error=StorageError("a", "the server is away", "Try again"))
    with pytest.raises(StorageError, match="the server is away"):
        ingest(str(tmp_path / "out"), plan, reader, map_serially)
    assert not [
        path
        for path in (tmp_path / "out" / "image").rglob("*")
        if path.name != "zarr.json" and path.is_file()
    ]
