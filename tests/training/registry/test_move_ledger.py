"""A ledger that is not where the registry says: refused by all, and mended by moving it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from pipeline.errors import RegistryError
from pipeline.records import JSON
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry import versions as registry
from training.registry.champion import (
    append_change,
    move_ledger,
    read_ledger,
    reconcile_aliases,
    record_scoring,
    rollback,
    update_aliases,
)
from training.registry.ledger import append
from training.registry.versions import load_version, record_files, resolve

SCORED: Final[Mapping[str, JSON]] = {
    "output_url": "out",
    "results": "a",
    "model_version": "1",
    "scored_count": 3,
}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow with a version of a model."""
    folder = tmp_path_factory.mktemp("home")
    with own_mlflow(folder):
        register(make_dataset(str(folder / "dataset"), normals=8))
        yield folder


@pytest.fixture
def place(mlflow: Path, tmp_path: Path) -> Path:
    """Folder of ledgers, in which the version was registered, promoted and has scored."""
    assert mlflow
    registry.delete_alias(NAME, "champion")
    ledgers = tmp_path / "old"
    for tag, value in (("ledger", f"{ledgers}/{NAME}"), ("ledger_entry", ""), ("ledger_head", "")):
        registry.tag_model(NAME, tag, value)
    record_files(resolve(NAME, "1"), ledgers_url=str(ledgers))
    state = reconcile_aliases(NAME, str(ledgers))
    update_aliases(NAME, state.ledger_url, append_change(state, "promoted", "1", {}))
    record_scoring(NAME, SCORED, ledgers_url=str(ledgers))
    return ledgers


def read_files(ledgers: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((ledgers / NAME).iterdir())}


def test_a_moved_ledger_goes_on_where_it_is(place: Path, tmp_path: Path) -> None:
    new, before = tmp_path / "new", read_files(place)
    report = move_ledger(NAME, str(new))
    assert report.ledger_url == f"{new}/{NAME}"
    assert report.recorded_champion == report.champion == "1"
    assert read_files(new) == before
    record_scoring(NAME, {**SCORED, "results": "b"}, ledgers_url=str(place))
    assert read_files(place) == before
    assert len(read_files(new)) == len(before) + 1
    # Moved again, nothing changes; and an alias that nobody moved is not taken for moved.
    assert move_ledger(NAME, str(new)).entries == read_ledger(NAME, "").entries
    assert reconcile_aliases(NAME, "").head == read_ledger(NAME, "").entries[-1]


@pytest.mark.parametrize(
    "command",
    [
        lambda place: read_ledger(NAME, place),
        lambda place: reconcile_aliases(NAME, place),
        lambda place: rollback(NAME, place, reason="r"),
        lambda place: record_scoring(NAME, {**SCORED, "results": "c"}, ledgers_url=place),
        lambda place: record_files(resolve(NAME, "1"), ledgers_url=place),
        lambda _: load_version(NAME, "champion"),
    ],
    ids=["ledger", "promote", "rollback", "scoring's entry", "register", "load to score"],
)
def test_a_lost_ledger_is_refused_by_every_command_and_begins_no_second_one(
    place: Path, tmp_path: Path, command: Callable[[str], object]
) -> None:
    shutil.move(place, tmp_path / "moved")
    with pytest.raises(RegistryError, match=r"is not there as it was written\..*--move FOLDER"):
        command(str(tmp_path / "elsewhere"))
    assert not place.exists()
    assert not (tmp_path / "elsewhere").exists()
    move_ledger(NAME, str(tmp_path / "moved"))
    assert load_version(NAME, "champion").version == "1"


def test_a_ledger_of_scorings_alone_is_not_begun_anew_either(place: Path) -> None:
    registry.tag_model(NAME, "ledger_entry", "")
    record_scoring(NAME, {**SCORED, "results": "d"}, ledgers_url=str(place))
    shutil.rmtree(place)
    with pytest.raises(RegistryError, match="is not there as it was written"):
        record_scoring(NAME, {**SCORED, "results": "e"}, ledgers_url=str(place))


def test_a_place_that_lacks_or_changes_an_entry_is_refused(place: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(place, short)
    last = sorted((short / NAME).iterdir())[-2]
    for path in sorted((short / NAME).iterdir())[1:]:
        path.unlink()
    shutil.rmtree(place)
    with pytest.raises(RegistryError, match="is not there as it was written"):
        move_ledger(NAME, str(short))
    assert last.name
    assert registry.model_tags(NAME)["ledger"] == f"{place}/{NAME}"


def test_another_model_s_ledger_is_not_mixed_in(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    append(f"{other}/{NAME}", "scored", SCORED)
    before = read_files(other)
    with pytest.raises(RegistryError, match=r"entry 1 differs from .*Move it to an empty folder"):
        move_ledger(NAME, str(other))
    assert read_files(other) == before
    assert read_ledger(NAME, "").ledger_url == f"{place}/{NAME}"
