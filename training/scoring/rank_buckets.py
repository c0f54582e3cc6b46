"""Texts of ranked rows, brought from the order of the dataset to the order of rank on disk.

A dataset is read part by part, its ranking is written from the most anomalous image down. In
between lie temporary files, a bucket of neighbouring ranks in each: one pass over the parts
appends the texts of each row to the bucket of its rank. Held in memory are a few parts, or one
bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.store.dataset import Dataset
from training.data.part_columns import divide_by_part, map_parts, read_column

Rows = NDArray[np.int64]

BUCKET_ROWS = 65_536  # some 15 MB of names and digests
PLACE: Final = "place"


@dataclass(frozen=True)
class RankBuckets:
    """Columns of ranked rows in a local folder, a file for each bucket of ranks.

    Args:
        folder: Local folder of the files, empty at first.
        edges: int64 (buckets + 1,), first rank of each bucket, from 0, and the number of rows.
    """

    folder: Path
    edges: Rows

    def fill(self, dataset: Dataset, rows: Rows, names: Sequence[str]) -> None:
        """Append columns of all ranked rows, read part by part, to their buckets.

        Args:
            dataset: Dataset that holds the rows.
            rows: int64 (n,), rows of the dataset in the order of rank.
            names: Names of the columns.
        """
        order = np.argsort(rows, kind="stable")
        spans = divide_by_part(dataset, rows[order])

        def read(index: int) -> pa.Table:
            number, span = spans[index]
            places = np.sort(order[span])  # by rank, so that buckets are slices
            opened, within = dataset.open_part(number), rows[places] - dataset.starts[number]
            columns: dict[str, Any] = {
                name: read_column(opened, name)[within].tolist() for name in names
            }
            return pa.table({PLACE: places, **columns})

        for table in map_parts(read, range(len(spans))):
            self._append(table)

    def read(self) -> Iterator[tuple[slice, pa.Table]]:
        """Read and remove the buckets: the ranks of each, and its columns with the rank as well."""
        for number, (start, stop) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            tables = []
            with pa.OSFile(str(self._path(number))) as file:
                while file.tell() < file.size():
                    tables.append(pa.ipc.open_stream(file).read_all())
            self._path(number).unlink()
            yield slice(int(start), int(stop)), pa.concat_tables(tables).combine_chunks()

    def _append(self, table: pa.Table) -> None:
        cuts = np.searchsorted(table[PLACE].to_numpy(), self.edges)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            piece = table.slice(cuts[number], cuts[number + 1] - cuts[number])
            with (
                self._path(number).open("ab") as file,
                pa.ipc.new_stream(file, table.schema) as stream,
            ):
                stream.write_table(piece)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.arrows"


def cut_ranks(ranked: NDArray[np.float32]) -> Rows:
    """Cut a ranking into buckets of about `BUCKET_ROWS`; equal scores lie in one, however many.

    Args:
        ranked: float32 (n,), scores, the highest first.

    Returns:
        int64 (buckets + 1,), edges as `RankBuckets` takes them.
    """
    last = np.arange(BUCKET_ROWS, len(ranked), BUCKET_ROWS) - 1
    ends = np.searchsorted(-ranked, -ranked[last], side="right")
    return np.unique(np.concatenate([[0], ends, [len(ranked)]])).astype(np.int64)
