"""Trainings as MLflow runs, and their pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

import training
from tests.support.toys import make_dataset, make_settings
from training.learning.figures import FURTHER_LOSSES, draw_curves, draw_distribution, draw_gallery
from training.learning.loop import CRITIC, Report
from training.learning.state import ADVERSARIAL, PIXELS
from training.learning.validation import Gallery, ValidationScores
from training.registry.runs import FINGERPRINT, find_run, tracked_run, training_version


@pytest.fixture
def tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    yield f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(before)


def make_gallery() -> Gallery:
    originals = np.zeros((2, 8, 8, 1), np.uint8)
    originals[0, :4] = 200
    heatmaps = np.zeros((2, 8, 8), np.float32)
    heatmaps[1, 1:3, 4:8] = 5.0
    return Gallery(
        resolution=8,
        labels=np.array([0, 1], np.int8),
        scores=np.array([0.1, 0.9], np.float32),
        originals=originals,
        reconstructions=255 - originals,
        heatmaps=heatmaps,
    )


def test_a_gallery_shows_original_reconstruction_and_heatmap_side_by_side() -> None:
    picture = np.asarray(Image.open(BytesIO(draw_gallery(make_gallery()))))
    assert picture.shape == (2 * 128 + 4, 3 * 128 + 8, 3)
    assert (picture[10, 10] == 200).all()
    assert (picture[10, 132 + 10] == 55).all()
    hot, cold = picture[132 + 32, 264 + 96], picture[132 + 100, 264 + 20]
    assert hot.astype(int).sum() > cold.astype(int).sum() + 100
    assert (picture[129, 5] == 255).all()


def test_curves_are_drawn_with_what_there_is() -> None:
    curves = {"train_loss": [(2, 1.0), (4, 0.5)], "resolution": [(2, 8.0), (4, 16.0)]}
    found = draw_curves(curves)
    assert Image.open(BytesIO(found)).size == (700, 600)
    assert draw_curves(curves) == found
    assert draw_curves({**curves, "validation_auroc": [(4, 0.7)]}) != found


def test_curves_of_further_terms_are_drawn_apart() -> None:
    assert set(FURTHER_LOSSES) == {PIXELS, ADVERSARIAL, CRITIC}
    curves = {"train_loss": [(2, 1.0), (4, 0.5)]}
    pictures = [draw_curves({**curves, name: [(2, 0.4), (4, 0.1)]}) for name in FURTHER_LOSSES]
    assert len(set(pictures)) == 3
    assert {Image.open(BytesIO(picture)).size for picture in pictures} == {(700, 900)}


def test_a_distribution_shows_both_kinds() -> None:
    scores, labels = np.array([0.1, 0.2, 0.9], np.float32), np.array([0, 0, 1], np.int8)
    found = draw_distribution(ValidationScores(scores, labels))
    assert Image.open(BytesIO(found)).size == (700, 350)
    assert draw_distribution(ValidationScores(scores, labels)) == found
    assert draw_distribution(ValidationScores(scores, np.array([0, 0, 0], np.int8))) != found


def test_a_run_holds_parameters_inputs_metrics_and_pictures(tracking_uri: str) -> None:
    dataset, settings = make_dataset("memory://tracking/a"), make_settings()
    with tracked_run(
        tracking_uri=tracking_uri,
        experiment="toys-anomaly",
        run_name="first",
        settings=settings,
        dataset=dataset,
    ) as run:
        run.log_report(Report(2, 4, {"train_loss": 1.5, "resolution": 8.0}))
        scores = ValidationScores(np.array([0.2, 0.7], np.float32), np.array([0, 1], np.int8))
        metrics = {"train_loss": 1.0, "resolution": 16.0}
        run.log_report(Report(4, 4, metrics, make_gallery(), scores))
        run.log_curves()
    client = MlflowClient()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["growth.final_resolution"] == "32"
    assert found.data.tags[FINGERPRINT] == dataset.fingerprint
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.digest == dataset.fingerprint[:36]
    history = client.get_metric_history(run.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(2, 1.5), (4, 1.0)]
    artifacts = {item.path for item in client.list_artifacts(run.run_id)}
    assert {"settings.json", "curves.png", "reconstructions", "score-distributions"} <= artifacts
    pictures = client.list_artifacts(run.run_id, "reconstructions")
    assert [item.path for item in pictures] == ["reconstructions/step-00000004-8px.png"]


def test_a_continued_run_is_the_same_and_repeats_no_step(tracking_uri: str) -> None:
    dataset, settings = make_dataset("memory://tracking/b"), make_settings()
    ids = []
    for steps in ((2, 4), (4, 6)):
        with tracked_run(
            tracking_uri=tracking_uri,
            experiment="toys-anomaly",
            run_name="interrupted",
            settings=settings,
            dataset=dataset,
        ) as run:
            for step in steps:
                run.log_report(Report(step, 6, {"train_loss": float(step)}))
            ids.append(run.run_id)
    assert ids[0] == ids[1]
    history = MlflowClient().get_metric_history(ids[0], "train_loss")
    assert [metric.step for metric in history] == [2, 4, 6]
    assert find_run(experiment="toys-anomaly", run_name="another") is None
    assert find_run(experiment="others", run_name="interrupted") is None


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("worklist/page.py", False),
        ("registry/runs.py", False),
        ("cluster/train.py", False),
        ("networks/losses.py", True),
        ("data/batches.py", True),
        ("learning/loop.py", True),
        ("settings.py", True),
    ],
)
def test_the_version_of_the_code_is_of_what_a_training_computes(
    tmp_path: Path, path: str, changes: bool
) -> None:
    package = tmp_path / "training"
    shutil.copytree(Path(training.__file__).parent, package)
    before = training_version(package)
    with (package / path).open("a") as file:
        file.write("# edited\n")
    training_version.cache_clear()
    assert (training_version(package) != before) == changes
