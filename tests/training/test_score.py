"""A dataset scored with a champion: every file that is written, twice, and to a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from pipeline.errors import SchemaError
from pipeline.ingest.manifest import read_manifest
from pipeline.io import storage
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.evaluation.metrics import measure_auroc
from training.registry.versions import load_version
from training.score import ScoreReport, score_dataset
from training.scoring import kept_scores as row_scores
from training.scoring.detector import Detection, Detector
from training.scoring.kept_scores import score_rows
from training.scoring.loaded_model import Prediction, ScoringModel
from training.worklist.cases import heatmap_name

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(str(tmp_path_factory.mktemp("dataset")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Iterator[ScoringModel]:
    with own_mlflow(tmp_path_factory.mktemp("mlflow")):
        version = register(dataset)
        yield load_version(NAME, version.version)


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, model: ScoringModel
) -> ScoreReport:
    output = str(tmp_path_factory.mktemp("output"))
    return score_dataset(dataset.url, model, output, scored_at=AT, batch_images=10, top_heatmaps=9)


def subclass(kind: type[Detector], model: ScoringModel) -> Detector:
    """The model's detector as one of another class."""
    found = model.detector
    return kind(found.description, found.autoencoder, found.features)


def content_of(url: str) -> dict[str, bytes]:
    return {
        info.url[len(url) :]: storage.read_bytes(info.url) for info in storage.list_objects(url)
    }


def test_the_table_is_ranked_and_complete(
    report: ScoreReport, dataset: Dataset, model: ScoringModel
) -> None:
    table = pq.read_table(Path(report.output_url, "scores.parquet"))
    assert table.column_names == [
        "image_id",
        "group_id",
        "source",
        "anomaly_score",
        "percentile",
        "is_anomalous",
        "threshold",
        "model_name",
        "model_version",
        "run_id",
        "scored_at",
        "label",
        "source_digest",
        "pixel_digest",
    ]
    columns = table.to_pydict()
    readable = dataset.column("readable")
    assert len(table) == report.scored_count == readable.sum() < dataset.image_count
    assert columns["anomaly_score"] == sorted(columns["anomaly_score"], reverse=True)
    row = int(columns["image_id"][3])  # toys are named by their row
    assert columns["group_id"][3] == dataset.column("group_id")[row]
    assert columns["label"][3] == dataset.column("label")[row]
    alone = model.predict(dataset.read_images(row, row + 1))
    assert columns["anomaly_score"][3] == pytest.approx(alone.anomaly_score[0], rel=1e-5)
    assert columns["percentile"][3] == pytest.approx(alone.percentile[0], abs=13)
    assert {columns[name][0] for name in ("source", "model_name", "model_version", "run_id")} == {
        "toys",
        NAME,
        model.version,
        model.run_id,
    }
    assert columns["threshold"][0] == model.threshold.value
    assert columns["scored_at"][0] == AT
    assert sum(columns["is_anomalous"]) == report.anomalous_count


def test_the_auroc_is_that_of_the_table(report: ScoreReport) -> None:
    columns = pq.read_table(Path(report.output_url, "scores.parquet")).to_pydict()
    assert report.auroc is not None
    scores, labels = np.array(columns["anomaly_score"]), np.array(columns["label"])
    assert report.auroc.estimate == pytest.approx(measure_auroc(scores, labels))
    assert report.auroc.low <= report.auroc.estimate <= report.auroc.high
    assert report.average_precision is not None


def test_the_strangest_have_heatmaps_and_only_they(
    report: ScoreReport, model: ScoringModel
) -> None:
    columns = pq.read_table(Path(report.output_url, "scores.parquet")).to_pydict()
    pairs = zip(columns["image_id"][:9], columns["pixel_digest"][:9], strict=True)
    names = {heatmap_name(*pair, model.name, model.version) for pair in pairs}
    found = {path.name for path in Path(report.output_url, "heatmaps").iterdir()}
    assert found == names
    picture = Image.open(Path(report.output_url, "heatmaps", min(names))).convert("RGBA")
    assert picture.size == (34, 40)
    assert np.asarray(picture)[0, :, 3].max() == 0  # above the crop nothing was looked at


def test_the_manifest_names_every_image_and_why_some_have_no_score(
    report: ScoreReport, dataset: Dataset
) -> None:
    entries = read_manifest(storage.join(report.output_url, "manifest.json"))
    assert entries == report.manifest
    assert [entry.item for entry in entries] == dataset.column("image_id").tolist()
    failed = {entry.item: entry.reason for entry in report.failures}
    assert failed == {str(row): "unreadable" for row in range(dataset.image_count) if row % 10 == 7}
    raw = json.loads(Path(report.output_url, "manifest.json").read_text())
    assert raw["counts"] == {"done": report.scored_count, "failed": len(failed)}
    assert raw["dataset_fingerprint"] == dataset.fingerprint


def test_scoring_again_writes_the_same_bytes_and_removes_what_is_stale(
    report: ScoreReport, dataset: Dataset, model: ScoringModel
) -> None:
    before = content_of(report.output_url)
    storage.write_bytes(f"{report.output_url}/heatmaps/stale-0123456789.png", b"")
    again = score_dataset(dataset.url, model, report.output_url, batch_images=10, top_heatmaps=9)
    assert (again.new_count, again.results) == (0, report.results)
    storage.delete(storage.join(report.output_url, "manifest.json"))  # killed before the last write
    score_dataset(dataset.url, model, report.output_url, batch_images=10, top_heatmaps=9)
    assert content_of(report.output_url) == before
    assert before.keys() > {
        f"/results/{report.results}/{name}"
        for name in ("scores.parquet", "scores.csv", "worklist.html", "manifest.json")
    }


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


@pytest.mark.parametrize("writes", [0, 1, 3, 6, 11, 12, 14, 17])
def test_killed_anywhere_it_shows_nothing_and_ends_alike(
    writes: int,
    dataset: Dataset,
    model: ScoringModel,
    report: ScoreReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score(batch_images: int = 10) -> ScoreReport:
        return score_dataset(
            dataset.url,
            model,
            str(tmp_path),
            scored_at=AT,
            batch_images=batch_images,
            top_heatmaps=9,
        )

    left = iter(range(writes))
    writers = {
        name: getattr(storage, name) for name in ("write_bytes", "write_parts", "create_bytes")
    }

    def may_write(function: object) -> object:
        def call(url: str, data: object) -> object:
            if next(left, None) is None:
                raise Killed
            assert callable(function)
            return function(url, data)

        return call

    monkeypatch.setattr(row_scores, "PIECE_IMAGES", 20)
    with monkeypatch.context() as patched:
        for name, function in writers.items():
            patched.setattr(storage, name, may_write(function))
        with pytest.raises(Killed):
            score()
    assert not (tmp_path / "manifest.json").exists()
    score()
    names = ("scores.parquet", "scores.csv", "worklist.html")
    ends = {f"/results/{report.results}/{name}" for name in names} | {f"/{n}" for n in names}
    found, expected = content_of(str(tmp_path)), content_of(report.output_url)
    assert {name: found[name] for name in ends} == {name: expected[name] for name in ends}
    images = pq.read_table(tmp_path / "scores.parquet")["image_id"].to_pylist()
    assert len(images) == len(set(images)) == report.scored_count


def test_only_what_is_new_or_rewritten_is_scored(
    dataset: Dataset, model: ScoringModel, tmp_path: Path
) -> None:
    seen: list[int] = []

    class Counting(Detector):
        def detect(self, images: np.ndarray, *, heatmaps: bool = False) -> Detection:
            if len(images):
                seen.append(len(images))
            return super().detect(images, heatmaps=heatmaps)

    counting = replace(model, detector=subclass(Counting, model))
    first = score_dataset(
        dataset.url, counting, str(tmp_path), splits=["train"], scored_at=AT, top_heatmaps=0
    )
    later = AT + timedelta(days=1)
    second = score_dataset(dataset.url, counting, str(tmp_path), scored_at=later, top_heatmaps=0)
    assert (first.new_count, first.scored_count) == (sum(seen[:1]), sum(seen[:1]))
    assert second.new_count == second.scored_count - first.scored_count > 0
    columns = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    times = dict(zip(columns["image_id"], columns["scored_at"], strict=True))
    assert {times["0"], times["40"]} == {AT, later}
    other = replace(counting, version="77")
    assert score_dataset(dataset.url, other, str(tmp_path), top_heatmaps=0).new_count == (
        second.scored_count
    )
    shutil.copytree(dataset.url, tmp_path / "rewritten")
    (part,) = dataset.parts
    digests = zarr.open_group(str(tmp_path / "rewritten" / part.place))["pixel_digest"]
    assert isinstance(digests, zarr.Array)
    digests[3] = "f" * 32
    rewritten = score_dataset(str(tmp_path / "rewritten"), other, str(tmp_path), top_heatmaps=0)
    assert rewritten.new_count == 1
    names = pq.read_table(tmp_path / "scores.parquet")["image_id"].to_pylist()
    assert len(names) == len(set(names)) == second.scored_count


def test_one_split_to_an_object_store(dataset: Dataset, model: ScoringModel) -> None:
    url = "memory://scores/toys"
    done: list[tuple[int, int]] = []
    report = score_dataset(
        dataset.url,
        model,
        url,
        splits=["validation"],
        scored_at=AT,
        top_heatmaps=2,
        notes=["A test."],
        on_progress=lambda *both: done.append(both),
    )
    table = pq.read_table(BytesIO(storage.read_bytes(storage.join(url, "scores.parquet"))))
    assert min(int(name) for name in table["image_id"].to_pylist()) >= 40
    assert done[-1] == (report.scored_count, report.scored_count)
    assert len(storage.list_objects(storage.join(url, "heatmaps") + "/")) == 2
    page = storage.read_bytes(report.worklist_url).decode()
    assert "A test." in page
    assert "random feature extractor" in page


def test_batches_do_not_change_scores(dataset: Dataset, model: ScoringModel) -> None:
    rows = np.flatnonzero(dataset.column("readable"))[::3]
    small = score_rows(model, dataset, rows, 4).anomaly_score
    assert small == pytest.approx(score_rows(model, dataset, rows, 1000).anomaly_score, rel=1e-5)


def test_reduced_precision_is_near_kept_apart_and_said(
    dataset: Dataset, model: ScoringModel, tmp_path: Path
) -> None:
    reduced = model.reduce_precision()
    exact = score_rows(model, dataset, np.arange(40, 47)).anomaly_score
    found = score_rows(reduced, dataset, np.arange(40, 47)).anomaly_score
    assert found == pytest.approx(exact, rel=0.02)
    score_dataset(dataset.url, model, str(tmp_path), splits=["validation"], top_heatmaps=0)
    report = score_dataset(
        dataset.url, reduced, str(tmp_path), splits=["validation"], top_heatmaps=1
    )
    assert report.new_count == report.scored_count
    assert any("reduced precision" in note for note in report.notes)


class Broken(Detector):
    """Gives one image of each batch no finite score."""

    def detect(self, images: np.ndarray, *, heatmaps: bool = False) -> Detection:
        found = super().detect(images, heatmaps=heatmaps)
        found.anomaly_score[:1] = np.nan
        return found


def test_an_image_without_a_finite_score_is_listed_and_not_ranked(
    dataset: Dataset, model: ScoringModel, tmp_path: Path
) -> None:
    broken = replace(model, detector=subclass(Broken, model))
    report = score_dataset(
        dataset.url, broken, str(tmp_path), splits=["validation"], top_heatmaps=0
    )
    lost = [entry for entry in report.failures if "no finite score" in entry.reason]
    assert [entry.item for entry in lost] == ["40"]
    names = pq.read_table(tmp_path / "scores.parquet")["image_id"].to_pylist()
    assert "40" not in names
    assert len(names) == report.scored_count


def test_datasets_that_cannot_be_scored_are_refused(
    dataset: Dataset, model: ScoringModel, tmp_path: Path
) -> None:
    other = make_dataset(str(tmp_path / "colour"), normals=8, validation=2, channels=3)
    with pytest.raises(SchemaError, match=r"shape is \(40, 34, 3\), the model has \(40, 34, 1"):
        score_dataset(other.url, model, str(tmp_path / "out"))
    with pytest.raises(SchemaError, match="no readable image to score"):
        score_dataset(dataset.url, model, str(tmp_path / "out"), splits=["test"])
    assert not (tmp_path / "out" / "scores.parquet").exists()


def test_nothing_scored_is_an_empty_prediction(dataset: Dataset, model: ScoringModel) -> None:
    found = score_rows(model, dataset, np.empty(0, np.int64))
    assert isinstance(found, Prediction)
    assert found.anomaly_score.shape == found.percentile.shape == found.is_anomalous.shape == (0,)
