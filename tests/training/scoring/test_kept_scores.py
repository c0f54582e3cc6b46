"""What a version has said of images is kept, and what former versions have kept is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.io import storage
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import load_version
from training.score import score_dataset
from training.scoring import kept_scores as row_scores
from training.scoring.loaded_model import ScoringModel

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """So many that the usual ones among them can be compared with."""
    return make_dataset(str(tmp_path_factory.mktemp("dataset")), validation=48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, normals: Dataset) -> Iterator[ScoringModel]:
    with own_mlflow(tmp_path_factory.mktemp("mlflow")):
        yield load_version(NAME, register(normals).version)


def test_embeddings_are_recalled_and_pieces_without_them_are_read(
    tmp_path: Path, normals: Dataset, model: ScoringModel
) -> None:
    output = str(tmp_path)
    first = score_dataset(normals.url, model, output, top_heatmaps=0)
    again = score_dataset(normals.url, model, output, top_heatmaps=0)
    assert 0 < first.drift.whole.embedding_distance == again.drift.whole.embedding_distance
    for info in storage.list_objects(storage.join(output, "scored")):
        table = pq.read_table(BytesIO(storage.read_bytes(info.url))).drop_columns("embedding")
        storage.write_bytes(info.url, row_scores.encode_parquet(table))
    without = score_dataset(normals.url, model, output, top_heatmaps=0)
    assert (without.new_count, without.scored_count) == (0, first.scored_count)
    assert without.drift.whole.distance == first.drift.whole.distance
    assert np.isnan(without.drift.whole.embedding_distance)


def test_a_version_that_gives_no_embeddings_scores_as_before(
    tmp_path: Path, normals: Dataset, model: ScoringModel
) -> None:
    class Former:
        def predict(self, images: np.ndarray, params: dict[str, bool]) -> dict[str, np.ndarray]:
            found = model.pyfunc.predict(images, params=params)
            return {name: value for name, value in found.items() if name != "embedding"}

    calibration = model.calibration.model_copy(update={"normals": None})
    former = replace(model, pyfunc=Former(), calibration=calibration)
    for name, each in (("now", model), ("then", former)):
        score_dataset(normals.url, each, str(tmp_path / name), scored_at=AT, top_heatmaps=0)
    now, then = (tmp_path / name / "scores.parquet" for name in ("now", "then"))
    assert now.read_bytes() == then.read_bytes()
