"""Who is champion: moves by several at once, by hand, after a kill, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.errors import RegistryError, SourceError
from pipeline.io import storage
from pipeline.sources.modified_range import Period
from pipeline.store.dataset import open_dataset
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import versions as registry
from training.registry.champion import crown, follow, record_scoring, rollback, settle, verify
from training.registry.ledger import append
from training.registry.lineage import trace
from training.registry.versions import aliases, load_version, set_alias
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
    registry.tag_model(NAME, "ledger_entry", "")
    return str(tmp_path)


def promote_to(ledgers: str, version: str) -> None:
    standing = settle(NAME, ledgers)
    follow(standing, crown(standing, "promoted", version, {}))


def test_a_rollback_goes_back_one_champion_at_a_time(ledgers: str) -> None:
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
    entries = verify(NAME, ledgers).entries
    assert [entry.kind for entry in entries] == ["promoted"] * 3 + ["rolled_back"] * 2
    assert entries[3].content["reason"] == "it ranks pen marks first"


def test_of_two_moves_at_once_one_is_refused(ledgers: str) -> None:
    promote_to(ledgers, "1")
    standing, start = settle(NAME, ledgers), Barrier(2)

    def move(version: str) -> str:
        start.wait()
        try:
            follow(standing, crown(standing, "promoted", version, {}))
        except RegistryError as error:
            return str(error)
        return version

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(move, ("2", "3")))
    winner = aliases(NAME)["champion"]
    assert said[0] == winner
    assert f"version {winner} became champion meanwhile, not version 1" in said[1]
    assert len(verify(NAME, ledgers).entries) == 2


def test_a_scoring_in_between_is_no_reason_to_refuse(ledgers: str) -> None:
    standing = settle(NAME, ledgers)
    append(standing.ledger_url, "scored", {})
    assert crown(standing, "promoted", "2", {}).sequence == 2


def test_aliases_that_a_killed_promotion_left_behind_follow_later(ledgers: str) -> None:
    promote_to(ledgers, "1")
    standing = settle(NAME, ledgers)
    crown(standing, "promoted", "2", {})  # and killed here
    assert aliases(NAME)["champion"] == "1"
    assert settle(NAME, ledgers).champion == "2"
    assert aliases(NAME)["previous"] == "1"
    assert len(verify(NAME, ledgers).entries) == 2


def test_who_wakes_late_does_not_undo_a_later_move(ledgers: str) -> None:
    promote_to(ledgers, "1")
    standing = settle(NAME, ledgers)
    late = crown(standing, "promoted", "2", {})
    promote_to(ledgers, "3")
    follow(standing, late)
    assert (aliases(NAME)["champion"], aliases(NAME)["previous"]) == ("3", "2")


def test_an_alias_moved_by_hand_is_written_down(ledgers: str) -> None:
    set_alias(NAME, "champion", "2")
    set_alias(NAME, "previous", "1")
    assert settle(NAME, ledgers).past == ("1",)
    promote_to(ledgers, "3")
    set_alias(NAME, "champion", "2")
    standing = settle(NAME, ledgers)
    assert (standing.champion, standing.past) == ("2", ("1",))
    assert [entry.kind for entry in verify(NAME, ledgers).entries] == ["found", "promoted", "found"]


def test_a_ledger_that_lost_its_end_stops_everything(ledgers: str) -> None:
    promote_to(ledgers, "1")
    storage.delete(f"{ledgers}/ledger/00000001.json")
    with pytest.raises(RegistryError, match="the registry points at"):
        rollback(NAME, ledgers, reason="")


def test_a_scoring_is_written_down_once(ledgers: str, home: Path) -> None:
    promote_to(ledgers, "2")
    model = load_version(NAME, "champion")
    for _ in range(2):
        report = score_dataset(
            str(home / "dataset"), model, f"{ledgers}/scores", splits=["validation"], top_heatmaps=0
        )
        record_scoring(report, ledgers)
    entries = verify(NAME, ledgers).entries
    assert [entry.kind for entry in entries] == ["promoted", "scored"]
    assert entries[1].content["results"] == report.results
    assert entries[1].summary == f"version 2, {report.scored_count} images"
    found = trace(f"{ledgers}/scores/scores.parquet", "8")
    assert (found.model["version"], found.gaps) == (f"{NAME} version 2", ())
    assert found.model["run_id"] == model.run_id
    assert found.model["training_dataset"] == model.ingest.fingerprint
    assert found.scored_dataset["fingerprint"] == open_dataset(str(home / "dataset")).fingerprint
    assert found.scored_dataset["source_digest"] == "0" * 64
    assert found.scored_dataset["code_version"] == "1"
    assert [entry.kind for entry in found.entries] == ["promoted", "scored"]
    with pytest.raises(SourceError, match="no score of an image 'none'"):
        trace(f"{ledgers}/scores", "none")


def test_the_ledger_says_which_range_was_scored(ledgers: str, home: Path) -> None:
    promote_to(ledgers, "2")
    report = score_dataset(
        str(home / "dataset"), load_version(NAME, "champion"), f"{ledgers}/scores", top_heatmaps=0
    )
    record_scoring(report, ledgers, Period.of(datetime(2026, 3, 1, tzinfo=UTC), None))
    summary = verify(NAME, ledgers).entries[-1].summary
    assert summary.endswith(f"{report.scored_count} images, since 2026-03-01T00:00:00+00:00")
