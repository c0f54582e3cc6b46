"""What another version moves in a ranking."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.scoring.ranking_change import compare_rankings


def ranked(version: str, names: list[str], anomalous: int) -> pq.ParquetFile:
    """A ranking in row groups of seven."""
    table = pa.table(
        {
            "image_id": names,
            "is_anomalous": np.arange(len(names)) < anomalous,
            "model_name": ["toys"] * len(names),
            "model_version": [version] * len(names),
        }
    )
    file = BytesIO()
    pq.write_table(table, file, row_group_size=7)
    return pq.ParquetFile(file)


def test_moves_are_told_among_the_images_that_both_have() -> None:
    before = [f"i{place:02d}" for place in range(20)]
    after = ["new", "i19", *before[:19]]  # the last becomes the first; one is new
    found = compare_rankings(ranked("3", before, 5), ranked("4", after, 4))
    assert found is not None
    assert (found.before, found.after, found.image_count, found.top) == ("3", "4", 20, 2)
    assert [(move.image_id, move.before, move.after) for move in found.entered] == [("i19", 20, 1)]
    assert [(move.image_id, move.before, move.after) for move in found.left] == [("i01", 2, 3)]
    assert (found.newly_anomalous, found.no_longer_anomalous) == (1, 3)
    assert 0.6 < found.correlation < 0.8
    assert "| `i19` | 20 | 1 |" in found.to_markdown()


def test_a_name_cannot_break_the_table() -> None:
    names = ["a|b`c", *(f"i{place}" for place in range(9))]
    found = compare_rankings(ranked("1", names, 1), ranked("2", names[::-1], 1))
    assert found is not None
    assert "| `a b c` | 1 | 10 |" in found.to_markdown()


def test_the_same_version_or_other_images_move_nothing() -> None:
    names = ["a", "b", "c"]
    assert compare_rankings(ranked("1", names, 1), ranked("1", names[::-1], 1)) is None
    assert compare_rankings(ranked("1", names, 1), ranked("2", ["d"], 1)) is None
