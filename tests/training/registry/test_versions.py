"""Logged, registered, loaded, and loaded elsewhere; on a real MLflow."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from pipeline.errors import RegistryError, SchemaError
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, make_detector, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import versions
from training.registry.fresh_process import score_in_fresh_process
from training.registry.versions import (
    VersionInfo,
    aliases,
    load_champion,
    load_version,
    log_record,
    read_ingest,
    record_files,
    recover_version,
    resolve,
    set_alias,
    tag_version,
    verified_files,
)
from training.scoring.detector import Detector
from training.scoring.loaded_model import IngestRecord


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(str(tmp_path_factory.mktemp("dataset")))


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Iterator[VersionInfo]:
    with own_mlflow(tmp_path_factory.mktemp("mlflow")):
        yield register(dataset)


def test_a_loaded_version_answers_by_the_contract(version: VersionInfo, dataset: Dataset) -> None:
    path_before = list(sys.path)
    model = load_version(NAME, "challenger")
    assert sys.path == path_before
    assert (model.version, model.run_id) == (version.version, version.run_id)
    images = dataset.read_images(40, 47)
    found = model.predict(images, heatmaps=True)
    detector = make_detector(dataset.image_shape)
    assert found.anomaly_score == pytest.approx(detector.detect(images).anomaly_score, rel=1e-5)
    assert found.percentile == pytest.approx(model.calibration.percentile(found.anomaly_score))
    assert (found.is_anomalous == (found.anomaly_score > model.threshold.value)).all()
    assert found.embedding is not None
    np.testing.assert_allclose(found.embedding, detector.detect(images).embedding, atol=1e-6)
    assert found.heatmap is not None
    assert found.heatmap.shape == (7, 40, 34)
    assert model.predict(images).heatmap is None
    assert model.ingest == IngestRecord.of(dataset)
    assert "random feature extractor" in model.notes[0]


def test_a_version_holds_its_code_and_nothing_to_unpickle(version: VersionInfo) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"code/training/scoring/detector.py", "code/pipeline/errors.py", "scorer.py"} <= names
    assert not [name for name in names if "store" in name or "learning" in name]
    assert {
        f"artifacts/{name}"
        for name in (
            "model.json",
            "network.safetensors",
            "features.safetensors",
            "ingest.json",
            "calibration.json",
            "threshold.json",
        )
    } == {name for name in names if name.startswith("artifacts/")}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".pickle"))]


@pytest.mark.parametrize(
    ("file", "edit", "detail"),
    [
        ("model.json", {"settings": {"gone": 1}}, "settings.gone: Extra inputs"),
        ("model.json", {"settings": {"network": {"latent_channels": 7}}}, "loading state_dict"),
        ("threshold.json", None, "threshold.json"),
    ],
)
def test_a_version_of_another_release_is_refused_in_one_line(
    dataset: Dataset, tmp_path: Path, file: str, edit: dict[str, Any] | None, detail: str
) -> None:
    with own_mlflow(tmp_path), pytest.MonkeyPatch.context() as earlier:
        # The files are recorded as such a release had left them.
        earlier.setattr(versions, "record_files", lambda *_, **__: None)
        version = register(dataset)
        earlier.undo()
        (path,) = tmp_path.rglob(f"artifacts/{file}")
        if edit is None:
            path.unlink()
        else:
            path.write_text(json.dumps(merge(json.loads(path.read_text()), edit)))
        record_files(version, ledgers_url=str(tmp_path))
        with pytest.raises(RegistryError, match=rf"another release.*{detail}.*`normscope train`"):
            load_version(NAME, version.version)


def merge(known: dict[str, Any], edit: dict[str, Any]) -> dict[str, Any]:
    """A record with some values replaced, however deep."""
    changed = {
        key: merge(known[key], value) if isinstance(value, dict) else value
        for key, value in edit.items()
    }
    return {**known, **changed}


def test_the_training_images_of_a_version_are_known_without_its_weights(
    version: VersionInfo, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Detector, "load")
    assert read_ingest(version) == IngestRecord.of(dataset)


def test_a_kill_between_version_and_alias_is_mended_by_the_next_run(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers = str(tmp_path / "ledgers")
    with own_mlflow(tmp_path):
        first = register(dataset)
        with monkeypatch.context() as killed:
            killed.delattr(versions, "set_alias")
            with pytest.raises(NameError):
                register(dataset)
        assert aliases(NAME) == {"challenger": "1"}
        run_id = resolve(NAME, "2").run_id
        assert recover_version(NAME, run_id, ledgers_url=ledgers) == resolve(NAME, "2")
        assert resolve(NAME, "2").tags["feature_weights"] == "random"
        assert aliases(NAME) == {"challenger": "2"}
        assert recover_version(NAME, first.run_id, ledgers_url=ledgers) == first
        assert aliases(NAME) == {"challenger": "2"}, "an older run takes nothing back"
        assert recover_version(NAME, "0" * 32, ledgers_url=ledgers) is None


def test_a_fresh_process_gives_the_same_scores(version: VersionInfo, dataset: Dataset) -> None:
    images = dataset.read_images(40, 43)
    with verified_files(version) as folder:
        found = score_in_fresh_process(folder, images)
    wanted = load_version(NAME, version.version).predict(images).anomaly_score
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_version_that_does_not_load_elsewhere_is_refused(tmp_path: Path) -> None:
    images = np.zeros((1, 40, 34, 1), np.uint8)
    with pytest.raises(RegistryError, match="does not load or score in a fresh process"):
        score_in_fresh_process(tmp_path / "empty", images)


def test_images_of_another_shape_or_type_are_refused_by_the_signature(version: VersionInfo) -> None:
    model = mlflow.pyfunc.load_model(version.uri)
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        model.predict(np.zeros((2, 34, 40, 1), np.uint8))
    with pytest.raises(mlflow.exceptions.MlflowException, match="float64"):
        model.predict(np.zeros((2, 40, 34, 1)))


def test_aliases_and_what_is_missing(version: VersionInfo) -> None:
    assert aliases(NAME) == {"challenger": version.version}
    with pytest.raises(RegistryError, match=r"no version has the alias 'champion'.*promote"):
        load_champion(NAME)
    with pytest.raises(RegistryError, match=r"no version has the alias 'x'. It has challenger"):
        resolve(NAME, "x")
    with pytest.raises(RegistryError, match=r"nothing-anomaly.*not found.*train"):
        load_champion("nothing-anomaly")
    with pytest.raises(RegistryError, match="version=99"):
        resolve(NAME, "99")
    set_alias(NAME, "previous", version.version)
    assert resolve(NAME, "previous") == resolve(NAME, version.version)


def test_tags_and_records(version: VersionInfo) -> None:
    tag_version(version, {"note": "a"})
    found = resolve(NAME, version.version)
    assert found.tags["note"] == "a"
    assert found.tags["feature_weights"] == "random"
    log_record(version.run_id, "notes/a.json", {"b": 1})
    uri = f"runs:/{version.run_id}/notes/a.json"
    assert mlflow.artifacts.load_dict(uri) == {"b": 1}


def test_a_dataset_prepared_otherwise_is_refused_with_both_values(dataset: Dataset) -> None:
    record = IngestRecord.of(dataset)
    record.require_alike(dataset, image_shape=dataset.image_shape)
    other = record.model_copy(
        update={"modality": "radiograph", "mpp_um": 0.5, "parameters": {"normals": 41, "seed": 9}}
    )
    with pytest.raises(SchemaError) as error:
        other.require_alike(dataset, image_shape=(34, 40, 1))
    for part in (
        "image shape is (40, 34, 1), the model has (34, 40, 1)",
        "modality is image, the model has radiograph",
        "mpp_um is None, the model has 0.5",
        "parameter normals is 40, the model has 41",
    ):
        assert part in str(error.value)
    assert "seed" not in str(error.value)
