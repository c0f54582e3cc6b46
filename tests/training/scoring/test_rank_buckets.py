"""A ranking is written bucket by bucket as it would be at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.evaluation.intervals import bootstrap_auroc
from training.registry.versions import load_version
from training.scoring import rank_buckets
from training.scoring.kept_scores import KeptScores
from training.scoring.loaded_model import ScoringModel
from training.scoring.rank_buckets import cut_ranks
from training.scoring.table import RankedScores, judge_scores, rank_scores


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = make_dataset(str(tmp_path_factory.mktemp("dataset")), validation=30, part_images=16)
    assert len(made.parts) > 5
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Iterator[ScoringModel]:
    with own_mlflow(tmp_path_factory.mktemp("mlflow")):
        yield load_version(NAME, register(dataset).version)


def rank(dataset: Dataset, model: ScoringModel, folder: Path) -> tuple[RankedScores, KeptScores]:
    """Rank rows, of whose scores many are equal, and one is none."""
    rows = np.flatnonzero(dataset.column("readable"))
    scores = (np.arange(len(rows)) * 7 % 31 / 31).astype(np.float32)
    scores[3:14] = 0.5  # names as text are in another order than rows: 10 before 3
    scores[5] = np.nan
    times = np.datetime64("2026-05-04", "us") + np.arange(len(rows)).astype("timedelta64[s]")
    found = KeptScores(scores, times, 0)
    folder.mkdir()
    return rank_scores(dataset, model, rows, found, folder, named_count=9), found


def test_buckets_give_the_ranking_that_one_sort_gives(
    dataset: Dataset, model: ScoringModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = rank(dataset, model, tmp_path / "whole")
    monkeypatch.setattr(rank_buckets, "BUCKET_ROWS", 4)
    cut, _ = rank(dataset, model, tmp_path / "cut")
    rows = np.flatnonzero(dataset.column("readable"))
    names = dataset.column("image_id").astype(str)
    order = np.lexsort((names[rows], -found.anomaly_score))[:-1]  # the last has no score
    for ranked in (whole, cut):
        assert ranked.rows.tolist() == rows[order].tolist()
        assert (ranked.scored_at == found.scored_at[order]).all()
        assert (ranked.label == dataset.column("label")[ranked.rows]).all()
        assert ranked.prediction.anomaly_score.tolist() == found.anomaly_score[order].tolist()
        assert ranked.image_id.tolist() == names[rows[order]][:9].tolist()
    folders = (tmp_path / "whole", tmp_path / "cut")
    first, second = (pq.ParquetFile(folder / "scores.parquet") for folder in folders)
    assert first.num_row_groups == 1
    assert second.num_row_groups > 10
    assert first.read().equals(second.read())
    assert first.read()["image_id"].to_pylist() == names[rows[order]].tolist()
    assert len({(folder / "scores.csv").read_bytes() for folder in folders}) == 1
    assert {path.name for path in folders[1].iterdir()} == {"scores.parquet", "scores.csv"}


def test_equal_scores_lie_in_one_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_buckets, "BUCKET_ROWS", 2)
    scores = np.array([9, 8, 8, 8, 8, 7, 6, 6], np.float32)
    assert cut_ranks(scores).tolist() == [0, 5, 6, 8]
    assert cut_ranks(scores[:0]).tolist() == [0]


def test_intervals_draw_groups_in_the_order_of_their_names(
    dataset: Dataset, model: ScoringModel, tmp_path: Path
) -> None:
    ranked, _ = rank(dataset, model, tmp_path / "ranked")
    groups = dataset.column("group_id")[ranked.rows].astype(str)
    found, _ = judge_scores(dataset, ranked)
    expected = bootstrap_auroc(
        ranked.prediction.anomaly_score, ranked.label, groups=groups, draws=1000
    )
    assert found == expected
    assert expected.low < expected.high
