"""Promotion on a real MLflow: first champion, second, refused, and who moved the alias."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline.errors import RegistryError, SchemaError
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import promotion
from training.registry.champion import read_ledger
from training.registry.gate import PromotionSettings
from training.registry.promotion import check_reproduction, promote
from training.registry.versions import aliases, load_version, resolve, set_alias

SETTINGS = PromotionSettings(draws=200)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(str(tmp_path_factory.mktemp("dataset")))


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[str]:
    """Where ledgers go, beside an MLflow of the test's own."""
    with own_mlflow(tmp_path):
        yield str(tmp_path / "ledgers")


def test_champions_follow_one_another(ledgers: str, dataset: Dataset) -> None:
    with pytest.raises(RegistryError, match="not found"):
        promote(NAME, dataset.url, ledgers_url=ledgers)
    first = register(dataset)
    done: list[tuple[int, int]] = []
    report = promote(
        NAME,
        dataset.url,
        ledgers_url=ledgers,
        settings=SETTINGS,
        on_progress=lambda *both: done.append(both),
    )
    assert (report.decision.outcome, report.champion_version) == ("promoted", None)
    assert aliases(NAME) == {"challenger": first.version, "champion": first.version}
    assert done[-1] == (report.image_count, report.image_count)
    assert "random feature extractor" in report.to_markdown()
    tags = resolve(NAME, first.version).tags
    assert tags["promotion_outcome"] == "promoted"
    kept = mlflow.artifacts.load_text(f"runs:/{first.run_id}/{tags['promotion_record']}")
    assert kept == report.to_markdown()
    again = promote(NAME, dataset.url, ledgers_url=ledgers, settings=SETTINGS)
    assert "champion already" in again.decision.reasons[0]

    second = register(dataset)  # the same network: not inferior
    report = promote(NAME, dataset.url, ledgers_url=ledgers, settings=SETTINGS)
    assert (report.decision.outcome, report.champion_version) == ("promoted", first.version)
    assert report.decision.numbers["auroc_difference"] == 0
    assert aliases(NAME) == {
        "challenger": second.version,
        "champion": second.version,
        "previous": first.version,
    }

    register(dataset)  # the same again: not superior
    superior = PromotionSettings(criterion="superiority", draws=200)
    report = promote(NAME, dataset.url, ledgers_url=ledgers, settings=superior)
    assert report.decision.outcome == "refused"
    assert aliases(NAME)["champion"] == second.version
    refused = resolve(NAME, "challenger").tags
    assert refused["promotion_outcome"] == "refused"
    entries = read_ledger(NAME, ledgers).entries
    assert [entry.kind for entry in entries] == [
        *("registered", "promoted", "registered", "promoted", "registered", "refused")
    ]
    entries = tuple(entry for entry in entries if entry.kind != "registered")
    assert [entry.content["champion_version"] for entry in entries] == [None, first.version, "2"]
    assert refused["ledger_entry"] == entries[2].reference
    assert entries[1].content["past"] == [first.version]


def test_a_champion_made_meanwhile_is_not_overwritten(
    ledgers: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(dataset)
    register(dataset)

    def meddle(*_: object) -> float:
        set_alias(NAME, "champion", first.version)
        return 0.0

    monkeypatch.setattr(promotion, "check_reproduction", meddle)
    with pytest.raises(RegistryError, match=f"version {first.version} became champion meanwhile"):
        promote(NAME, dataset.url, ledgers_url=ledgers, settings=SETTINGS)
    assert aliases(NAME)["champion"] == first.version


def test_scores_that_do_not_reproduce_stop_it(ledgers: str, dataset: Dataset) -> None:
    register(dataset)
    model = load_version(NAME, "challenger")
    images = dataset.read_images(40, 42)
    scores = model.predict(images).anomaly_score
    with pytest.raises(RegistryError, match=r"its scores differ by 0\.01 "):
        check_reproduction(model, images, scores / np.float32(1.01))


def test_a_validation_split_without_known_labels_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "dataset"), normals=8, validation=0)
    with pytest.raises(SchemaError, match="no readable image of known label"):
        promotion.choose_labelled_rows(dataset)
