"""Compare the rankings by two model versions, after a promotion. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

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


def compare_rankings(before: pa.Table, after: pa.Table) -> RankingChange | None:
    """Compare two tables of scores, each ranked.

    Args:
        before: Table made by `tabulate` from one version's scores.
        after: Table made by `tabulate` from another version's scores.

    Returns:
        None if the same version made both, or no image is in both.
    """
    versions = [
        (table["model_name"][0].as_py(), table["model_version"][0].as_py())
        for table in (before, after)
    ]
    names = [table["image_id"].to_numpy().astype(str) for table in (before, after)]
    common, first, second = np.intersect1d(*names, return_indices=True)
    if versions[0] == versions[1] or not len(common):
        return None
    ranks = [np.argsort(np.argsort(places)) + 1 for places in (first, second)]
    was, is_ = (
        table["is_anomalous"].to_numpy()[places].astype(bool)
        for table, places in ((before, first), (after, second))
    )
    top = min(_TOP, max(1, len(common) // 10))
    entered = (ranks[1] <= top) & (ranks[0] > top)
    left = (ranks[0] <= top) & (ranks[1] > top)
    return RankingChange(
        versions[0][1],
        versions[1][1],
        len(common),
        float(stats.spearmanr(*ranks).statistic) if len(common) > 2 else float("nan"),
        top,
        _list_changes(common, ranks, entered, by=ranks[1]),
        _list_changes(common, ranks, left, by=ranks[0]),
        int((is_ & ~was).sum()),
        int((was & ~is_).sum()),
    )


def _list_changes(
    names: NDArray[np.str_],
    ranks: list[NDArray[np.intp]],
    chosen: NDArray[np.bool_],
    *,
    by: NDArray[np.intp],
) -> tuple[MovedImage, ...]:
    places = np.flatnonzero(chosen)
    return tuple(
        MovedImage(str(names[place]), int(ranks[0][place]), int(ranks[1][place]))
        for place in places[np.argsort(by[places])]
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
