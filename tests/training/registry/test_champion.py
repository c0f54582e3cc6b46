"""Who is champion: moves by several at once, by hand, after a kill, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError, SourceError
from pipeline.io import storage
from pipeline.records import JSON
from pipeline.sources.modified_range import ModifiedRange
from pipeline.store.dataset import open_dataset
from pipeline.store.spec import code_version
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import versions as registry
from training.registry.champion import (
    append_change,
    read_ledger,
    reconcile_aliases,
    record_scoring,
    rollback,
    update_aliases,
)
from training.registry.ledger import append
from training.registry.lineage import trace
from training.registry.versions import (
    aliases,
    load_version,
    record_files,
    resolve,
    set_alias,
)
from training.score import score_dataset


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow with four versions of a model."""
    folder = tmp_path_factory.mktemp("home")
    with own_mlflow(folder):
        dataset = make_dataset(str(folder / "dataset"), normals=8)
        for _ in range(4):
            register(dataset)
        yield folder


@pytest.fixture
def ledgers(home: Path, tmp_path: Path) -> str:
    """An empty ledger, and no champion."""
    for alias in ("champion", "previous"):
        registry.delete_alias(NAME, alias)
    registry.tag_model(NAME, "ledger", str(tmp_path / "ledger"))
    for tag in ("ledger_entry", "ledger_head"):
        registry.tag_model(NAME, tag, "")
    return str(tmp_path)


def record_versions(ledgers: str) -> None:
    """Record the files of every version in the test's own ledger, as what loads them asks for."""
    for version in ("1", "2", "3", "4"):
        record_files(resolve(NAME, version), ledgers_url=ledgers)


def promote_to(ledgers: str, version: str) -> None:
    state = reconcile_aliases(NAME, ledgers)
    change = append_change(state, "promoted", version, {})
    update_aliases(NAME, state.ledger_url, change)


def test_a_rollback_goes_back_one_champion_at_a_time(ledgers: str) -> None:
    record_versions(ledgers)
    for version in ("1", "3", "4"):
        promote_to(ledgers, version)
    assert aliases(NAME) | {"challenger": ""} == {
        "champion": "4",
        "previous": "3",
        "challenger": "",
    }
    report = rollback(NAME, ledgers, reason="it ranks pen marks first")
    assert (report.champion, report.withdrawn) == ("3", "4")
    assert (aliases(NAME)["champion"], aliases(NAME)["previous"]) == ("3", "1")
    assert rollback(NAME, ledgers, reason="").champion == "1"
    assert "previous" not in aliases(NAME)
    with pytest.raises(RegistryError, match="no version was champion before"):
        rollback(NAME, ledgers, reason="")
    entries = read_ledger(NAME, ledgers).entries[4:]
    assert [entry.kind for entry in entries] == ["promoted"] * 3 + ["rolled_back"] * 2
    assert entries[3].content["reason"] == "it ranks pen marks first"


def test_of_two_moves_at_once_one_is_refused(ledgers: str) -> None:
    promote_to(ledgers, "1")
    state, start = reconcile_aliases(NAME, ledgers), Barrier(2)

    def move(version: str) -> str:
        start.wait()
        try:
            change = append_change(state, "promoted", version, {})
            update_aliases(NAME, state.ledger_url, change)
        except RegistryError as error:
            return str(error)
        return version

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(move, ("2", "3")))
    winner = aliases(NAME)["champion"]
    assert said[0] == winner
    assert f"version {winner} became champion meanwhile, not version 1" in said[1]
    assert len(read_ledger(NAME, ledgers).entries) == 2


def test_a_scoring_in_between_is_no_reason_to_refuse(ledgers: str) -> None:
    state = reconcile_aliases(NAME, ledgers)
    append(state.ledger_url, "scored", {})
    assert append_change(state, "promoted", "2", {}).sequence == 2


def test_aliases_that_a_killed_promotion_left_behind_follow_later(ledgers: str) -> None:
    promote_to(ledgers, "1")
    state = reconcile_aliases(NAME, ledgers)
    append_change(state, "promoted", "2", {})  # and killed here
    assert aliases(NAME)["champion"] == "1"
    assert reconcile_aliases(NAME, ledgers).champion == "2"
    assert aliases(NAME)["previous"] == "1"
    assert len(read_ledger(NAME, ledgers).entries) == 2


def test_who_wakes_late_does_not_undo_a_later_move(ledgers: str) -> None:
    promote_to(ledgers, "1")
    state = reconcile_aliases(NAME, ledgers)
    late = append_change(state, "promoted", "2", {})
    promote_to(ledgers, "3")
    update_aliases(NAME, state.ledger_url, late)
    assert (aliases(NAME)["champion"], aliases(NAME)["previous"]) == ("3", "2")


def test_an_alias_moved_by_hand_is_written_down(ledgers: str) -> None:
    set_alias(NAME, "champion", "2")
    set_alias(NAME, "previous", "1")
    assert reconcile_aliases(NAME, ledgers).past == ("1",)
    promote_to(ledgers, "3")
    set_alias(NAME, "champion", "2")
    state = reconcile_aliases(NAME, ledgers)
    assert (state.champion, state.past) == ("2", ("1",))
    assert [entry.kind for entry in read_ledger(NAME, ledgers).entries] == [
        "found",
        "promoted",
        "found",
    ]


def test_a_ledger_that_lost_its_end_stops_everything(ledgers: str) -> None:
    promote_to(ledgers, "1")
    storage.delete(f"{ledgers}/ledger/00000001.json")
    with pytest.raises(RegistryError, match="the registry refers to"):
        rollback(NAME, ledgers, reason="")


def test_a_scoring_starts_no_second_ledger_where_the_first_is_lost(ledgers: str) -> None:
    promote_to(ledgers, "1")
    storage.delete(f"{ledgers}/ledger/00000001.json")
    facts: dict[str, JSON] = {"output_url": "scores", "results": "results/1"}
    with pytest.raises(RegistryError, match="the registry refers to"):
        record_scoring(NAME, facts, ledgers_url=ledgers)
    assert not list(Path(ledgers).rglob("*.json"))


def test_reading_the_ledger_changes_neither_store_nor_registry(ledgers: str) -> None:
    promote_to(ledgers, "1")
    append_change(reconcile_aliases(NAME, ledgers), "promoted", "2", {})  # and killed here
    before = (aliases(NAME), registry.model_tags(NAME), sorted(Path(ledgers).rglob("*")))
    report = read_ledger(NAME, ledgers)
    assert (report.champion, report.recorded_champion) == ("1", "2")
    assert (aliases(NAME), registry.model_tags(NAME), sorted(Path(ledgers).rglob("*"))) == before


def test_reading_the_ledger_of_a_model_without_one_makes_none(ledgers: str) -> None:
    MlflowClient().delete_registered_model_tag(NAME, "ledger")
    set_alias(NAME, "champion", "2")
    report = read_ledger(NAME, ledgers)
    assert (report.entries, report.champion, report.recorded_champion) == ((), "2", None)
    assert "ledger" not in registry.model_tags(NAME)
    assert not list(Path(ledgers).iterdir())


def test_a_scoring_is_written_down_once(ledgers: str, home: Path) -> None:
    record_versions(ledgers)
    promote_to(ledgers, "2")
    model = load_version(NAME, "champion")
    for _ in range(2):
        report = score_dataset(
            str(home / "dataset"), model, f"{ledgers}/scores", splits=["validation"], top_heatmaps=0
        )
        record_scoring(NAME, report.to_facts(), ledgers_url=ledgers)
    entries = read_ledger(NAME, ledgers).entries[4:]
    assert [entry.kind for entry in entries] == ["promoted", "scored"]
    assert entries[1].content["results"] == report.results
    assert entries[1].summary == f"version 2, {report.scored_count} images"
    found = trace(f"{ledgers}/scores/scores.parquet", "8")
    assert (found.model["version"], found.gaps) == (f"{NAME} version 2", ())
    assert found.model["run_id"] == model.run_id
    assert found.model["training_dataset"] == model.ingest.fingerprint
    assert found.scored_dataset["fingerprint"] == open_dataset(str(home / "dataset")).fingerprint
    assert found.scored_dataset["source_digest"] == "0" * 64
    assert found.scored_dataset["code_version"] == code_version()
    assert [entry.kind for entry in found.entries] == ["registered", "promoted", "scored"]
    with pytest.raises(SourceError, match="no score of an image 'none'"):
        trace(f"{ledgers}/scores", "none")


def test_the_ledger_says_which_range_was_scored(ledgers: str, home: Path) -> None:
    record_versions(ledgers)
    promote_to(ledgers, "2")
    report = score_dataset(
        str(home / "dataset"), load_version(NAME, "champion"), f"{ledgers}/scores", top_heatmaps=0
    )
    period = ModifiedRange.of(datetime(2026, 3, 1, tzinfo=UTC), None)
    record_scoring(NAME, {**report.to_facts(), **period.to_facts()}, ledgers_url=ledgers)
    summary = read_ledger(NAME, ledgers).entries[-1].summary
    assert summary.endswith(f"{report.scored_count} images, since 2026-03-01T00:00:00+00:00")
