"""What another version changes in a ranking: the report that follows a promotion. Pure."""

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
class Move:
    """An image's ranks, from 1, among the images that both versions have scored."""

    image_id: str
    before: int
    after: int


@dataclass(frozen=True)
class RankingChange:
    """What moved between two rankings of the same images.

    Args:
        before: The model version that ranked them first.
        after: The version that ranks them now.
        image_count: Images that both have scored.
        correlation: Spearman's, of the ranks; NaN where there are too few images.
        top: So many count as the top.
        entered: Into the top, the strangest first.
        left: Out of the top, those that were strangest first.
        newly_anomalous: How many lie over the threshold that did not.
        no_longer_anomalous: How many did, and do not.
    """

    before: str
    after: str
    image_count: int
    correlation: float
    top: int
    entered: tuple[Move, ...]
    left: tuple[Move, ...]
    newly_anomalous: int
    no_longer_anomalous: int

    def to_markdown(self) -> str:
        """A page for whoever reads the worklist."""
        lines = [
            f"Version {self.after} in place of version {self.before}, {self.image_count} images "
            f"that both have scored; correlation of the ranks {self.correlation:.3f}.",
            "",
            f"- {self.newly_anomalous} newly over the threshold, {self.no_longer_anomalous} no "
            "longer",
            f"- {len(self.entered)} of the first {self.top} are new there",
            *_list_moves("Entered", self.entered),
            *_list_moves("Left", self.left),
        ]
        return "\n".join(lines)


def compare_rankings(before: pa.Table, after: pa.Table) -> RankingChange | None:
    """Compare two tables of scores, each ranked.

    Args:
        before: As `scores.tabulate` made it with one version.
        after: With another.

    Returns:
        None where the same version made both, or no image is in both.
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
        _name_moves(common, ranks, entered, by=ranks[1]),
        _name_moves(common, ranks, left, by=ranks[0]),
        int((is_ & ~was).sum()),
        int((was & ~is_).sum()),
    )


def _name_moves(
    names: NDArray[np.str_],
    ranks: list[NDArray[np.intp]],
    chosen: NDArray[np.bool_],
    *,
    by: NDArray[np.intp],
) -> tuple[Move, ...]:
    places = np.flatnonzero(chosen)
    return tuple(
        Move(str(names[place]), int(ranks[0][place]), int(ranks[1][place]))
        for place in places[np.argsort(by[places])]
    )


def _list_moves(title: str, moves: tuple[Move, ...]) -> list[str]:
    if not moves:
        return []
    rows = [
        f"| `{re.sub('[`|]', ' ', move.image_id)}` | {move.before} | {move.after} |"
        for move in moves[:_LISTED]
    ]
    more = [f"and {len(moves) - _LISTED} more"] if len(moves) > _LISTED else []
    return ["", f"| {title} | rank before | now |", "|---|---|---|", *rows, *more]
