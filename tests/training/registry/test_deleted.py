"""A version, a run or files that somebody deleted in MLflow: named, and the model goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from training.registry.champion import read_ledger, rollback
from training.registry.promotion import promote
from training.registry.versions import load_champion, load_version, resolve, set_alias


@pytest.fixture
def ledgers(tmp_path: Path, dataset: Dataset) -> Iterator[str]:
    """Ledgers of an MLflow with three versions, of which 1 was champion before 2."""
    with own_mlflow(tmp_path):
        place = str(tmp_path / "ledgers")
        register(dataset)
        promote(NAME, dataset.url, ledgers_url=place)
        register(dataset, seed=5)
        set_alias(NAME, "champion", "2")
        assert read_ledger(NAME, place).champion == "2"
        register(dataset, seed=7)
        yield place


def delete(version: str) -> None:
    MlflowClient().delete_model_version(NAME, version)


def test_a_champion_that_was_deleted_is_named_and_the_one_before_can_return(ledgers: str) -> None:
    rollback(NAME, ledgers, reason="makes the ledger know of both")
    set_alias(NAME, "champion", "2")
    delete("2")
    with pytest.raises(RegistryError, match=r"or the champion was deleted in MLflow\. Run .*rollb"):
        load_champion(NAME)
    assert read_ledger(NAME, ledgers).champion is None
    report = rollback(NAME, ledgers, reason="the champion is gone")
    assert (report.champion, report.withdrawn) == ("1", "")
    assert load_champion(NAME).version == "1"


def test_a_challenger_can_follow_a_champion_that_was_deleted(
    ledgers: str, dataset: Dataset
) -> None:
    delete("1")
    delete("2")
    with pytest.raises(RegistryError, match=r"champion before, .*1.*, were deleted\. Train"):
        rollback(NAME, ledgers, reason="it is gone")
    promote(NAME, dataset.url, ledgers_url=ledgers)
    assert load_champion(NAME).version == "3"
    assert "previous" not in MlflowClient().get_registered_model(NAME).aliases


def test_a_challenger_that_was_deleted_is_missed(ledgers: str, dataset: Dataset) -> None:
    delete("3")
    with pytest.raises(RegistryError, match=r"no version has the alias 'challenger'\. It has"):
        promote(NAME, dataset.url, ledgers_url=ledgers)
    with pytest.raises(RegistryError, match=r"version=3\) not found"):
        load_version(NAME, "3")


def test_a_version_outlives_its_run(ledgers: str) -> None:
    MlflowClient().delete_run(resolve(NAME, "2").run_id)
    assert load_version(NAME, "2").version == "2"
    assert read_ledger(NAME, ledgers).champion == "2"


def test_files_that_were_deleted_are_named(ledgers: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "artifacts")
    with pytest.raises(RegistryError, match=rf"models:/{NAME}/2"):
        load_champion(NAME)
    with pytest.raises(RegistryError, match=rf"models:/{NAME}/"):
        rollback(NAME, ledgers, reason="its files are gone")
