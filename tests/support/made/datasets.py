"""A small ingest of its own, so that it can be tested without any image format.

A source is a file of one byte a row, and becomes one part: its byte fills a row's image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.ingest.manifest import describe_rows
from pipeline.ingest.parts import Draft, find_part, make_part, read_source
from pipeline.ingest.run import IngestReport, Outcome, Work, ingest, read_known_parts
from pipeline.ingest.sources import SourceRead
from pipeline.io import storage
from pipeline.records import JSON, Array, ManifestEntry, Scalar
from pipeline.runtime.engines import MapWork, map_serially
from pipeline.store.part import Part
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec

SHAPE = (5, 3, 2)  # not square, so that a swapped axis fails
SPEC = DatasetSpec(
    modality="image",
    source="made",
    image_shape=SHAPE,
    shard_images=4,
    chunk_images=2,
    columns={**BASE_COLUMNS, "origin_yx": np.dtype("int64"), "blur": np.dtype("float32")},
    mpp_um=0.5,
    parameters={"side": 3},
    stamp={"made format": "1"},
)


@dataclass(frozen=True)
class MadeSource:
    url: str
    version: str
    size: int

    @property
    def name(self) -> str:
        """Name of its part and of its group."""
        return Path(self.url).stem


class ReadsRows(Protocol):
    """Reads rows of a source, as `MadeReader` does."""

    def read(
        self, source: MadeSource, rows: range, images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]: ...


@dataclass(frozen=True)
class MadeReader:
    """Fills images with a row's byte; an `x` cannot be read."""

    gain: int = 1

    def read(
        self, source: MadeSource, rows: range, images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        data = storage.read_bytes(source.url)
        if data == b"broken":
            raise SourceError(source.url, "broken", "Mend it")
        found = np.frombuffer(data, np.uint8)[rows.start : rows.stop]
        images[:] = found[:, None, None, None] * self.gain
        images[:, 1, 2, 0] = 7  # off the diagonal
        reasons = tuple("marked x" if byte == ord("x") else None for byte in found)
        yield SourceRead(reasons, {"blur": np.arange(rows.start, rows.stop, dtype=np.float32)})


class MadeItem(NamedTuple):
    """A source to visit, and its part in the dataset as it is."""

    source: MadeSource
    known: Part | None


@dataclass(frozen=True)
class MadeVisit:
    """Keeps or makes the part of a source."""

    url: str
    spec: DatasetSpec
    reader: ReadsRows

    def __call__(self, item: MadeItem) -> Outcome:
        source = item.source
        key = self._make_key(source)
        place, found = find_part(self.url, item.known, source.name, key, source.version)
        if found is not None:
            return Outcome(found, (self._describe(source, found),), is_kept=True)

        def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
            rows = range(start, stop)
            begin: Callable[[], Iterator[SourceRead]] = lambda: self.reader.read(  # noqa: E731
                source, rows, images
            )
            return read_source(source, begin, len(rows))

        draft = Draft(
            name=source.name,
            place=place,
            key=key,
            columns=_make_columns(source),
            source_version=source.version,
            facts={"made_of": source.name},
            conclude=_conclude(source),
        )
        part = make_part(self.url, self.spec, draft, read)
        return Outcome(part, (self._describe(source, part),))

    def _make_key(self, source: MadeSource) -> str:
        facts: list[JSON] = [repr(self.reader), source.version, dict(self.spec.stamp)]
        return sha256(json.dumps(facts).encode()).hexdigest()

    def _describe(self, source: MadeSource, part: Part) -> ManifestEntry:
        remark = str(part.facts["remark"])
        if part.unreadable_count == part.image_count:
            return ManifestEntry(source.url, "failed", remark)
        return ManifestEntry(source.url, "done", remark)


def _make_columns(source: MadeSource) -> dict[str, Array]:
    row = np.arange(source.size)
    return {
        "image_id": np.array([f"{source.name}-{number}" for number in row], object),
        "label": np.zeros(source.size, np.int8),
        "origin_yx": np.stack([row, row * 10], axis=1).astype(np.int64),
    }


def _conclude(source: MadeSource) -> Callable[[Sequence[str | None]], Mapping[str, Scalar]]:
    def conclude(reasons: Sequence[str | None]) -> dict[str, Scalar]:
        lost = sum(reason is not None for reason in reasons)
        return {
            "remark": describe_rows(source.url, reasons).reason,
            "tiled_um2": 2.0 * (len(reasons) - lost),
            "unreadable_um2": 2.0 * lost,
        }

    return conclude


def write_sources(folder: Path, contents: Mapping[str, bytes]) -> list[MadeSource]:
    """Write source files and describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name in contents]
    return [
        MadeSource(path, storage.describe(path).version, len(data))
        for path, data in zip(paths, contents.values(), strict=True)
    ]


@dataclass(frozen=True)
class MadePlan:
    """Sources, and how they are to be read."""

    sources: Sequence[MadeSource]
    reader: ReadsRows = field(default_factory=MadeReader)
    spec: DatasetSpec = SPEC
    rejected: tuple[ManifestEntry, ...] = ()

    def work_at(self, url: str) -> Work[MadeItem]:
        """The work of an ingest into a URL, whose parts it keeps."""
        url = storage.plain_url(url)
        known = read_known_parts(url)
        items = [MadeItem(source, known.get(source.name)) for source in self.sources]
        return Work(
            spec=self.spec,
            items=items,
            visit=MadeVisit(url, self.spec, self.reader),
            give_up=_fail,
            arrange=_arrange,
            weigh=_weigh,
            rejected=self.rejected,
        )


def ingest_made(
    url: str,
    sources: Sequence[MadeSource],
    map_work: MapWork = map_serially,
    **plan: Any,
) -> IngestReport:
    """Ingest sources; the other arguments are those of `MadePlan`."""
    return ingest(url, MadePlan(sources, **plan).work_at(url), map_work)


def _fail(item: MadeItem) -> Outcome:
    return Outcome(None, (ManifestEntry(item.source.url, "failed", "it kills"),))


def _weigh(item: MadeItem) -> int:
    return item.source.size


def _arrange(parts: Sequence[Part]) -> tuple[list[Part], dict[str, str]]:
    ordered = sorted(parts, key=lambda part: part.name)
    return [replace(part, group_id=part.name, split="train") for part in ordered], {}
