"""Compare the rankings by two model versions, after a promotion.

Of each image 17 bytes are held: a digest of its name, its place and whether it is anomalous.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_BATCH_ROWS: Final = 65_536
_TOP: Final = 100
_LISTED: Final = 10


@dataclass(frozen=True, slots=True)
class MovedImage:
    """An image's ranks, from 1, among the images that both versions have scored."""

    image_id: str
    before: int
    after: int


@dataclass(frozen=True)
class RankingChange:
    """Differences between two rankings of the same images.

    Args:
        before: Model version of the former ranking.
        after: Model version of the present ranking.
        image_count: Number of images that both versions have scored.
        correlation: Spearman's rank correlation; NaN if there are too few images.
        top: Number of images that count as the top of a ranking.
        entered: Images that entered the top, in the order of their present rank.
        left: Images that left the top, in the order of their former rank.
        newly_anomalous: Number of images over the present threshold but not the former.
        no_longer_anomalous: Number of images over the former threshold but not the present.
    """

    before: str
    after: str
    image_count: int
    correlation: float
    top: int
    entered: tuple[MovedImage, ...]
    left: tuple[MovedImage, ...]
    newly_anomalous: int
    no_longer_anomalous: int

    def to_markdown(self) -> str:
        """Format the differences for readers of the worklist."""
        lines = [
            f"Version {self.after} replaces version {self.before}. Both have scored "
            f"{self.image_count} images; the correlation of their ranks is {self.correlation:.3f}.",
            "",
            f"- {self.newly_anomalous} newly over the threshold, {self.no_longer_anomalous} no "
            "longer",
            f"- {len(self.entered)} of the first {self.top} are new there",
            *_list_ranks("Entered", self.entered),
            *_list_ranks("Left", self.left),
        ]
        return "\n".join(lines)


def compare_rankings(before: pq.ParquetFile, after: pq.ParquetFile) -> RankingChange | None:
    """Compare two tables of scores, each ranked.

    Args:
        before: `scores.parquet` of one version.
        after: `scores.parquet` of another version.

    Returns:
        None if the same version made both, or no image is in both.
    """
    versions = [_read_version(file) for file in (before, after)]
    if versions[0] == versions[1]:
        return None
    (first, was), (second, is_) = (_read_places(file) for file in (before, after))
    _, *places = np.intersect1d(first, second, return_indices=True)
    del first, second
    if not len(places[0]):
        return None
    ranks = [_rank(each) for each in places]
    top = min(_TOP, max(1, len(ranks[0]) // 10))
    entered = np.flatnonzero((ranks[1] <= top) & (ranks[0] > top))
    left = np.flatnonzero((ranks[0] <= top) & (ranks[1] > top))
    was, is_ = was[places[0]], is_[places[1]]
    return RankingChange(
        versions[0][1],
        versions[1][1],
        len(ranks[0]),
        _correlate(*ranks),
        top,
        _list_changes(after, places[1], ranks, entered[np.argsort(ranks[1][entered])]),
        _list_changes(before, places[0], ranks, left[np.argsort(ranks[0][left])]),
        int((is_ & ~was).sum()),
        int((was & ~is_).sum()),
    )


def _read_version(file: pq.ParquetFile) -> tuple[str, str]:
    """Name and version of the model that made a table; two empty texts if it has no row."""
    for batch in file.iter_batches(1, columns=["model_name", "model_version"]):
        return batch["model_name"][0].as_py(), batch["model_version"][0].as_py()
    return "", ""


def _read_places(file: pq.ParquetFile) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Digest of each image's name, uint64 (n,), and whether it is anomalous, bool (n,)."""
    digests = np.empty(file.metadata.num_rows, np.uint64)
    is_anomalous = np.empty(len(digests), bool)
    for start, batch in _read_batches(file, ["image_id", "is_anomalous"]):
        inside = slice(start, start + len(batch))
        digests[inside] = [_digest(name) for name in batch["image_id"].to_pylist()]
        is_anomalous[inside] = batch["is_anomalous"].to_numpy(zero_copy_only=False)
    return digests, is_anomalous


def _read_batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
        yield start, batch
        start += len(batch)


def _digest(name: str) -> int:
    """Digest of 64 bits: of ten million names two are equal once in 370,000 comparisons."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


def _rank(places: NDArray[np.intp]) -> NDArray[np.int64]:
    """Ranks, from 1, of images at these places of a table."""
    ranks = np.empty(len(places), np.int64)
    ranks[np.argsort(places)] = np.arange(1, len(places) + 1)
    return ranks


def _correlate(ranks: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Spearman's correlation of ranks without ties; NaN of fewer than three."""
    count = len(ranks)
    if count < 3:
        return float("nan")
    apart = (ranks - others).astype(np.float64)
    return float(1 - 6 * (apart @ apart) / (count * (count**2 - 1)))


def _list_changes(
    file: pq.ParquetFile,
    places: NDArray[np.intp],
    ranks: list[NDArray[np.int64]],
    chosen: NDArray[np.intp],
) -> tuple[MovedImage, ...]:
    """Name the chosen images, which lie at these places of the file's table."""
    names: dict[int, str] = {}
    wanted = np.sort(places[chosen])
    for start, batch in _read_batches(file, ["image_id"]) if len(wanted) else ():
        inside = wanted[(wanted >= start) & (wanted < start + len(batch))]
        found = batch["image_id"].take(pa.array(inside - start)).to_pylist()
        names.update(zip(inside.tolist(), found, strict=True))
    return tuple(
        MovedImage(names[int(places[each])], int(ranks[0][each]), int(ranks[1][each]))
        for each in chosen
    )


def _list_ranks(title: str, changes: tuple[MovedImage, ...]) -> list[str]:
    if not changes:
        return []
    rows = [
        f"| `{re.sub('[`|]', ' ', each.image_id)}` | {each.before} | {each.after} |"
        for each in changes[:_LISTED]
    ]
    more = [f"and {len(changes) - _LISTED} more"] if len(changes) > _LISTED else []
    return ["", f"| {title} | rank before | now |", "|---|---|---|", *rows, *more]
