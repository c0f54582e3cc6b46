"""Pieces that are scored elsewhere: the same scores, each image once, in bounded steps."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.io import storage
from pipeline.runtime.engines import MapWork
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import load_version
from training.score import score_dataset
from training.scoring import kept_scores as row_scores

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
T = TypeVar("T")
R = TypeVar("R")


def map_far_away(function: Callable[[T], R], items: Sequence[T], **_: object) -> Iterator[R]:
    """As workers do: each gets bytes, and whoever is ready first answers first."""
    sent = pickle.dumps(function)
    return (pickle.loads(sent)(item) for item in reversed(items))  # noqa: S301 -- our own bytes


def read_kept(output: Path, *, pieces: int) -> dict[str, list[float]]:
    """Embeddings that were kept, by image."""
    kept = storage.list_objects(str(output / "scored"))
    assert len(kept) == pieces
    tables = [pq.read_table(BytesIO(storage.read_bytes(info.url))) for info in kept]
    return {
        name: embedding
        for table in tables
        for name, embedding in zip(
            *(table[key].to_pylist() for key in ("image_id", "embedding")), strict=True
        )
    }


@pytest.mark.parametrize("is_reduced", [False, True])
def test_workers_give_the_same_scores_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_reduced: bool
) -> None:
    monkeypatch.setattr(row_scores, "PIECE_IMAGES", 10)
    dataset = make_dataset(str(tmp_path / "dataset"))
    with own_mlflow(tmp_path):
        register(dataset)
        model = load_version(NAME, "challenger")
        model = model.reduce_precision() if is_reduced else model
        done: list[int] = []
        workers: MapWork = map_far_away
        engines = {"here": None, "there": workers}
        for name, engine in engines.items():
            report = score_dataset(
                dataset.url,
                model,
                str(tmp_path / name),
                scored_at=AT,
                batch_images=4,
                top_heatmaps=0,
                map_work=engine,
                on_progress=lambda so_far, _: done.append(so_far),
            )
            assert (report.new_count, done[-1]) == (51, 51)
    here, there = (
        pq.read_table(BytesIO(storage.read_bytes(str(tmp_path / name / "scores.parquet"))))
        for name in ("here", "there")
    )
    assert sorted(there["image_id"].to_pylist()) == sorted(here["image_id"].to_pylist())
    np.testing.assert_allclose(there["anomaly_score"], here["anomaly_score"], rtol=1e-5)
    kept_here, kept_there = (read_kept(tmp_path / name, pieces=6) for name in ("here", "there"))
    assert kept_here.keys() == kept_there.keys() == set(here["image_id"].to_pylist())
    for name, embedding in kept_here.items():
        assert len(embedding) == 6
        np.testing.assert_allclose(kept_there[name], embedding, atol=1e-5)
