"""Datasets of any columns and images, made by the ingest itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.parts import Draft, make_part
from pipeline.ingest.run import Outcome, Work, ingest
from pipeline.ingest.sources import SourceRead
from pipeline.records import ManifestEntry
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.part import Part, name_place
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec

Columns: TypeAlias = Mapping[str, NDArray[Any]]
# Fills the images of rows, whose columns it gets; returns why each is unreadable, or None.
Fill: TypeAlias = Callable[[Columns, NDArray[np.uint8]], Sequence[str | None]]


@dataclass(frozen=True)
class _Visit:
    url: str
    spec: DatasetSpec
    columns: Columns
    fill: Fill

    def __call__(self, rows: range) -> Outcome:
        columns = {name: values[rows.start : rows.stop] for name, values in self.columns.items()}

        def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
            own = {name: values[start:stop] for name, values in columns.items()}
            yield SourceRead(tuple(self.fill(own, images)), {})

        name = f"{rows.start:06d}"
        part = make_part(self.url, self.spec, Draft(name, name_place(name), "made", columns), read)
        return Outcome(part, (ManifestEntry(f"rows-{name}", "done"),))


def write_dataset(
    url: str,
    columns: Columns,
    fill: Fill,
    *,
    image_shape: tuple[int, int, int],
    part_images: int = 1024,
    shard_images: int = 16,
    chunk_images: int = 4,
    modality: str = "image",
    source: str = "made",
    parameters: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write a sealed dataset whose rows have these columns."""
    dtypes = {
        name: BASE_COLUMNS["image_id"] if values.dtype.kind in "TUO" else values.dtype
        for name, values in columns.items()
    }
    spec = DatasetSpec(
        modality=modality,
        source=source,
        image_shape=image_shape,
        shard_images=shard_images,
        chunk_images=chunk_images,
        columns={**dtypes, **BASE_COLUMNS},
        mpp_um=None,
        parameters=parameters or {},
        stamp={"made": "1"},
    )
    count = len(columns["image_id"])
    work = Work(
        spec=spec,
        items=[
            range(start, min(start + part_images, count)) for start in range(0, count, part_images)
        ],
        visit=_Visit(url, spec, columns, fill),
        give_up=_never,
        arrange=_keep_order,
        weigh=len,
    )
    ingest(url, work, map_serially)
    return open_dataset(url)


def _never(rows: range) -> Outcome:
    raise AssertionError(rows)


def _keep_order(parts: Sequence[Part]) -> tuple[Sequence[Part], Mapping[str, str]]:
    return parts, {}
