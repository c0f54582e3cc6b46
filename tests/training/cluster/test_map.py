"""Scoring on two Ray workers: as here, and no worker's death is noticed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SchemaError
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.cluster.map import ray_engine
from training.registry.versions import load_version
from training.score import score_dataset
from training.scoring import kept_scores as row_scores

pytestmark = pytest.mark.slow


def die_once(path: str) -> str:
    marker = Path(path)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def refuse(item: int) -> int:
    raise SchemaError("dataset", f"item {item} is none", "Take another")


def test_two_workers_score_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_scores, "PIECE_IMAGES", 10)
    dataset = make_dataset(str(tmp_path / "dataset"))
    with own_mlflow(tmp_path):
        register(dataset)
        model = load_version(NAME, "challenger")
    score_dataset(dataset.url, model, str(tmp_path / "here"), top_heatmaps=0)
    with ray_engine(None, workers=2) as map_work:
        report = score_dataset(
            dataset.url, model, str(tmp_path / "there"), top_heatmaps=0, map_work=map_work
        )
        names = [str(tmp_path / "first"), str(tmp_path / "second")]
        assert sorted(map_work(die_once, names)) == names
        with pytest.raises(SchemaError, match="item 4 is none"):
            list(map_work(refuse, [4]))
    assert report.new_count == 51
    here, there = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("here", "there"))
    assert there["image_id"].to_pylist() == here["image_id"].to_pylist()
    np.testing.assert_allclose(there["anomaly_score"], here["anomaly_score"], rtol=1e-5)
