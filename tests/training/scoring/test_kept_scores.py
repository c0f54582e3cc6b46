"""What a version has said of images is kept, and read again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import load_version
from training.score import score_dataset
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


def test_embeddings_are_read_again(tmp_path: Path, normals: Dataset, model: ScoringModel) -> None:
    output = str(tmp_path)
    first = score_dataset(normals.url, model, output, top_heatmaps=0)
    again = score_dataset(normals.url, model, output, top_heatmaps=0)
    assert again.new_count == 0
    assert 0 < first.drift.whole.embedding_distance == again.drift.whole.embedding_distance


def test_other_pixels_of_every_image_are_scored_anew(
    tmp_path: Path, normals: Dataset, model: ScoringModel
) -> None:
    output = str(tmp_path / "out")
    first = score_dataset(normals.url, model, output, top_heatmaps=0)
    other = make_dataset(str(tmp_path / "other"), validation=48, contrast=0.5)
    again = score_dataset(other.url, model, output, top_heatmaps=0)
    assert again.new_count == first.new_count == again.scored_count > 0
