"""A small plan and reader, so that the ingest can be tested without any image format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.ingest.plan import Plan, SourceRead
from pipeline.io.storage import describe, read_bytes
from pipeline.records import Array, ManifestEntry
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec

SHAPE = (5, 3, 2)  # not square, so that a swapped axis fails


@dataclass(frozen=True)
class MadeSource:
    url: str
    version: str


@dataclass(frozen=True)
class MadeReader:
    """Reads files of one byte a row: the byte fills the image; an `x` cannot be read."""

    gain: int = 1

    def read(
        self, source: MadeSource, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        data = read_bytes(source.url)
        if data == b"broken":
            raise SourceError(source.url, "broken", "Mend it")
        origins = rows["origin_yx"]
        images[:] = np.frombuffer(data, np.uint8)[origins[:, 0], None, None, None] * self.gain
        images[:, 1, 2, 0] = 7  # off the diagonal
        reasons = tuple("marked x" if data[row] == ord("x") else None for row in origins[:, 0])
        blur = np.arange(len(origins), dtype=np.float32)
        yield SourceRead(reasons, {"blur": blur}, sha256(data).hexdigest())


def write_sources(folder: Path, contents: Mapping[str, bytes]) -> list[MadeSource]:
    """Write source files and describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name in contents]
    return [MadeSource(path, describe(path).version) for path in paths]


def plan_made(
    sources: list[MadeSource], *, code: str = "1", rejected: tuple[ManifestEntry, ...] = ()
) -> Plan:
    """One row a byte of each source, in shards of four rows."""
    sizes = [describe(source.url).size_bytes for source in sources]
    index = np.repeat(np.arange(len(sources)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    names = [Path(sources[number].url).stem for number in index]
    spec = DatasetSpec(
        modality="image",
        source="made",
        image_shape=SHAPE,
        image_count=len(index),
        shard_images=4,
        chunk_images=2,
        columns={**BASE_COLUMNS, "origin_yx": np.dtype("int64"), "blur": np.dtype("float32")},
        mpp_um=0.5,
        parameters={"side": 3},
        code_version=code,
    )
    groups = np.array(names, object)
    columns = {
        "image_id": np.array([f"{n}-{r}" for n, r in zip(names, row, strict=True)], object),
        "group_id": groups,
        "split": np.full(len(index), "train", object),
        "label": np.zeros(len(index), np.int8),
        "origin_yx": np.stack([row, row * 10], axis=1).astype(np.int64),
    }
    coverage = {
        name: {"tiled": 2.0 * size, "excluded": 1.0}
        for name, size in zip(dict.fromkeys(names), sizes, strict=True)
    }
    return Plan(spec, tuple(sources), index, columns, rejected, coverage, np.full(len(index), 2.0))
