"""The part: the unit of work, of retry and of commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from traceback import format_tb
from typing import Any, Final, Self, TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import AbsentError, SourceError, StorageError
from pipeline.ingest.sources import SourceRead, name_source
from pipeline.io import storage
from pipeline.io.atomic_files import Part as FilePart
from pipeline.records import Array, Label, Scalar
from pipeline.runtime.malloc import ReusedMemory
from pipeline.store.part import (
    Part,
    choose_place,
    clear_part,
    is_there,
    read_whole,
    write_part,
)
from pipeline.store.sharding import encode_shard
from pipeline.store.spec import SCHEMA_VERSION, DatasetSpec, empty_column

Images = NDArray[np.uint8]
# Reads the rows of a part from start to stop into memory, piece by piece.
ReadRows: TypeAlias = Callable[[int, int, Images], Iterator[SourceRead]]
_UNREADABLE: Final = (SourceError, AbsentError)
_DIGEST_BYTES: Final = 16
_memory: Final = ReusedMemory()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A part that is to be made.

    Args:
        name: Name of the part.
        place: Folder of the part below the dataset's URL.
        key: Key of work.
        columns: Columns that are known before images are read, each (image, ...).
        source_version: Version of the source when it was listed.
        source_digest: BLAKE3 of all bytes of the source; empty where rows have their own.
        facts: Facts that hold for all rows.
        require: Function that raises an error if the source is no longer what was listed; called
            when all images are read.
        conclude: Function that gives further facts, from why each row is unreadable or None.
    """

    name: str
    place: str
    key: str
    columns: Mapping[str, Array]
    source_version: str = ""
    source_digest: str = ""
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    require: Callable[[], object] = lambda: None
    conclude: Callable[[Sequence[str | None]], Mapping[str, Scalar]] = lambda _: {}

    def cut(self, rows: range) -> Draft:
        """Keep what a shard of these rows is made from."""
        columns = {name: values[rows.start : rows.stop] for name, values in self.columns.items()}
        return Draft(self.name, self.place, self.key, columns)


def make_part(url: str, spec: DatasetSpec, draft: Draft, read: ReadRows) -> Part:
    """Read and write one whole part, its root document last.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        draft: Name, place, key and known columns of the part.
        read: Reader of the part's rows.

    Raises:
        StorageError: The part cannot be written.
    """
    clear_part(storage.join(url, draft.place))
    shards = []
    for number, rows in enumerate(divide_rows(spec, len(draft.columns["image_id"]))):
        shards.append(
            make_shard(url, spec, draft.cut(rows), number, partial(read, rows.start, rows.stop))
        )
    return commit_part(url, spec, draft, shards)


def divide_rows(spec: DatasetSpec, count: int) -> list[range]:
    """Divide the rows of a part into those of its shards."""
    starts = range(0, count, spec.shard_images)
    return [range(start, min(start + spec.shard_images, count)) for start in starts]


def commit_part(url: str, spec: DatasetSpec, draft: Draft, shards: Sequence[Shard]) -> Part:
    """Write the columns of a part whose shards are written, its root document last.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        draft: Name, place, key and known columns of the part.
        shards: Shards that `make_shard` returned, in the order of the rows.

    Raises:
        StorageError: The part cannot be written.
        NormscopeError: The source is no longer what was listed.
    """
    draft.require()
    place = storage.join(url, draft.place)
    columns = {
        name: np.concatenate([each.columns[name] for each in shards]) for name in spec.columns
    }
    reasons = tuple(reason for each in shards for reason in each.reasons)
    unreadable = [[row, reason] for row, reason in enumerate(reasons) if reason is not None]
    label, readable = columns["label"], columns["readable"]
    has_defect = any(each.has_defect for each in shards)
    part = Part(
        name=draft.name,
        place=draft.place,
        image_count=len(reasons),
        unreadable_count=len(unreadable),
        normal_count=int((readable & (label == Label.NORMAL)).sum()),
        anomalous_count=int((readable & (label == Label.ANOMALOUS)).sum()),
        key="" if has_defect else draft.key,  # no work has an empty key: it is made again
        digest=digest_columns(columns),
        source_version=draft.source_version,
        source_digest=draft.source_digest,
        stored_bytes=sum(each.stored_bytes for each in shards),
        facts={**draft.facts, **draft.conclude(reasons)},
    )
    write_part(place, spec, columns, {**_describe(part), "unreadable": unreadable})
    return part


def _describe(part: Part) -> dict[str, Any]:
    """Describe a part in its own attributes: all but what only the dataset can tell."""
    names = ("name", "key", "digest", "source_version", "source_digest", "stored_bytes")
    counts = ("image_count", "unreadable_count", "normal_count", "anomalous_count")
    known = {name: getattr(part, name) for name in (*names, *counts)}
    return {"normscope_schema": SCHEMA_VERSION, **known, "facts": dict(part.facts)}


def recall_part(place: str, attributes: Mapping[str, Any]) -> Part:
    """Recall the row of a part, as `make_part` returned it, from its attributes.

    Args:
        place: Folder of the part below the dataset's URL.
        attributes: Attributes of its root document.
    """
    known = {
        name: value
        for name, value in attributes.items()
        if name not in {"normscope_schema", "unreadable"}
    }
    return Part(place=place, **known)


def find_part(
    url: str, known: Part | None, name: str, key: str, version: str
) -> tuple[str, Part | None]:
    """Find the part that an earlier ingest has made by a key of work, sealed or not.

    Args:
        url: URL of the dataset.
        known: Part of that name in the dataset as it is; None where there is none.
        name: Name of the part.
        key: Key of work.
        version: Version of the source when it was listed.

    Returns:
        The folder for a part that is to be made, below the dataset's URL; and the part found.
    """
    known = known if known and is_there(url, known) else None
    place = choose_place(known, name, key, version)
    if known and known.key == key:
        return place, known
    attributes = read_whole(storage.join(url, place))
    if attributes is None or attributes.get("key") != key:
        return place, None
    return place, recall_part(place, attributes)


@dataclass(slots=True, eq=False)
class Shard:
    """What has been read of a shard's rows, without their images.

    Args:
        columns: Columns of the shard's rows, each (image, ...).
        reasons: Why each row is unreadable, or None for one that is readable.
        has_defect: Whether a later run is to try again.
        stored_bytes: Size of the encoded images in bytes.
    """

    columns: dict[str, Array]
    reasons: list[str | None] = field(default_factory=list)
    has_defect: bool = False
    stored_bytes: int = 0

    @classmethod
    def of(cls, spec: DatasetSpec, known: Mapping[str, Array]) -> Self:
        """Make one whose rows are still to be read."""
        count = len(known["image_id"])
        columns = {name: empty_column(spec, name, count) for name in spec.columns}
        return cls({**columns, **{name: np.array(values) for name, values in known.items()}})

    def add(self, read: SourceRead, images: Images) -> None:
        """Record the next rows; images of those that are unreadable become zeros."""
        count = len(read.reasons)
        rows = slice(len(self.reasons), len(self.reasons) + count)
        readable = np.array([reason is None for reason in read.reasons])
        if not readable.all():
            images[~readable] = 0
        self.columns["readable"][rows] = readable
        self.columns["pixel_digest"][rows] = [
            digest_image(image) if is_readable else ""
            for image, is_readable in zip(images, readable, strict=True)
        ]
        for name, values in read.columns.items():
            self.columns[name][rows] = values
        self.reasons.extend(read.reasons)
        self.has_defect |= read.is_defect


def make_shard(
    url: str,
    spec: DatasetSpec,
    draft: Draft,
    number: int,
    read: Callable[[Images], Iterator[SourceRead]],
) -> Shard:
    """Read and write one shard's images.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        draft: Draft of the shard's rows, from `Draft.cut`.
        number: Number of the shard in its part.
        read: Reader of the shard's rows.

    Raises:
        StorageError: The shard cannot be written.
    """
    rows = Shard.of(spec, draft.columns)
    target = storage.join(url, draft.place, "image", "c", str(number), "0", "0", "0")
    images = _memory.reserve((len(rows.columns["image_id"]), *spec.image_shape))
    writer, done = _ImageWriter(images, spec.chunk_images), 0
    with ThreadPoolExecutor(1, thread_name_prefix="image-writer") as thread:
        written = thread.submit(writer.write, target, spec.shard_images)
        try:
            for found in read(images):
                count = len(found.reasons)
                rows.add(found, images[done : done + count])
                done += count
                writer.advance(count)
        except BaseException:
            writer.abort()
            raise
        rows.stored_bytes = written.result()
    return rows


def read_source(
    source: Any, reads: Callable[[], Iterator[SourceRead]], count: int
) -> Iterator[SourceRead]:
    """Read rows of one source; whatever its reader raises makes the remaining rows unreadable.

    Args:
        source: The file that is read.
        reads: Begins the reading.
        count: Number of its rows.

    Raises:
        StorageError: The storage is broken, which does not make a source unreadable.
    """
    left = count
    try:
        for found in reads():
            left -= len(found.reasons)
            yield found
    except _UNREADABLE as error:
        yield SourceRead((str(error),) * left, {})
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001 - one file must not stop the batch
        yield SourceRead((report_defect(source, error),) * left, {}, is_defect=True)


def report_defect(source: Any, error: Exception) -> str:
    """Log what a reader should not have raised; its text may name a patient and is withheld."""
    name, kind = name_source(source), type(error).__name__
    logger.error(
        "%s: the reader raised %s\n%s", name, kind, "".join(format_tb(error.__traceback__))
    )
    return f"{name}: the reader raised {kind}. Report the log's traceback, or leave the file out"


def digest_image(image: Images) -> str:
    """Digest the pixels of one image (H, W, C): BLAKE3, 128 bits, hexadecimal."""
    return blake3(np.ascontiguousarray(image).reshape(-1).data).hexdigest(_DIGEST_BYTES)


def digest_columns(columns: Mapping[str, Array]) -> str:
    """Digest columns: BLAKE3, hexadecimal."""
    digest = blake3()
    for name, values in sorted(columns.items()):
        digest.update(name.encode())
        if values.dtype.kind in "TUO":
            digest.update(json.dumps(values.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class _AbortedError(Exception):
    """Reading has failed, and what was written is to be dropped."""


class _ImageWriter:
    """Writes a shard's images in one thread while another still reads the rest of them.

    Reading takes the processor and writing the disk or the network: one after the other, each
    would wait for the other.

    Args:
        images: uint8 (n, H, W, C), which are filled from the first to the last.
        chunk_images: Images in a chunk.
    """

    def __init__(self, images: Images, chunk_images: int) -> None:
        self._images, self._chunk_images = images, chunk_images
        self._read_count = self._stored_bytes = 0
        self._chunks: SimpleQueue[Images | None] = SimpleQueue()

    def advance(self, count: int) -> None:
        """Report that so many more images are final."""
        size, total = self._chunk_images, len(self._images)
        begin = self._read_count // size * size
        self._read_count += count
        end = total if self._read_count == total else self._read_count // size * size
        for start in range(begin, end, size):
            self._chunks.put(self._images[start : start + size])

    def abort(self) -> None:
        """Report that no more images will come."""
        self._chunks.put(None)

    def write(self, url: str, shard_images: int) -> int:
        """Write all images as they become final, or none; returns the size in bytes."""
        chunks = self._wait_for_chunks()
        storage.write_parts(
            url,
            self._count(
                encode_shard(chunks, chunk_images=self._chunk_images, shard_images=shard_images)
            ),
        )
        return self._stored_bytes

    def _count(self, parts: Iterator[FilePart]) -> Iterator[FilePart]:
        for part in parts:
            self._stored_bytes += len(part)
            yield part

    def _wait_for_chunks(self) -> Iterator[Images]:
        for _ in range(0, len(self._images), self._chunk_images):
            chunk = self._chunks.get()
            if chunk is None:
                raise _AbortedError
            yield chunk
