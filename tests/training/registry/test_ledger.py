"""The ledger: one winner for each place on every store, and every tampering is found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.errors import RegistryError
from pipeline.io import storage
from training.registry import ledger
from training.registry.ledger import (
    NO_DIGEST,
    Entry,
    append,
    append_after,
    read_entries,
    read_head,
    require_known,
)

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
WRITERS, EACH = 6, 4


def fill(url: str, count: int = 4) -> tuple[Entry, ...]:
    return tuple(append(url, "scored", {"number": number}) for number in range(count))


def test_writers_race_and_none_is_lost(store_url: str) -> None:
    url = f"{store_url}/ledger"
    start = Barrier(WRITERS)

    def write(writer: int) -> list[str]:
        start.wait()
        return [append(url, "scored", {"by": f"{writer}/{n}"}).digest for n in range(EACH)]

    with ThreadPoolExecutor(WRITERS) as pool:
        digests = [digest for made in pool.map(write, range(WRITERS)) for digest in made]
    entries = read_entries(url)
    assert [entry.sequence for entry in entries] == list(range(1, WRITERS * EACH + 1))
    assert sorted(entry.digest for entry in entries) == sorted(digests)
    assert len({str(entry.content["by"]) for entry in entries}) == WRITERS * EACH


def test_of_many_that_follow_one_entry_one_wins(store_url: str) -> None:
    url = f"{store_url}/ledger"
    head = fill(url, 2)[-1]
    start = Barrier(WRITERS)

    def move(writer: int) -> Entry | None:
        start.wait()
        return append_after(url, head, "promoted", {"champion": str(writer)})

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [entry for entry in pool.map(move, range(WRITERS)) if entry]
    assert len(won) == 1
    assert read_head(url) == won[0]
    assert len(read_entries(url)) == 3


def test_entries_are_chained_and_dated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return AT.astimezone(tz)

    monkeypatch.setattr(ledger, "datetime", Clock)
    url = str(tmp_path / "ledger")
    assert read_entries(url) == ()
    assert read_head(url) is None
    first, second = fill(url, 2)
    assert (first.before, second.before) == (NO_DIGEST, first.digest)
    assert second.at == "2026-05-04T03:02:01+00:00"
    assert read_entries(url) == (first, second)
    require_known(url, (first, second), first.reference)


def change(url: str) -> None:
    text = storage.read_bytes(f"{url}/00000002.json").replace(b'"number": 1', b'"number": 9')
    storage.write_bytes(f"{url}/00000002.json", text)


def remove(url: str) -> None:
    storage.delete(f"{url}/00000003.json")


def swap(url: str) -> None:
    names = [f"{url}/0000000{place}.json" for place in (2, 3)]
    for name, data in zip(names, [storage.read_bytes(n) for n in reversed(names)], strict=True):
        storage.write_bytes(name, data)


def empty(url: str) -> None:
    storage.write_bytes(f"{url}/00000001.json", b"{}\n")


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (change, "entry 2 is not the one that entry 3 follows"),
        (remove, "entry 3 is missing"),
        (swap, "says that it is entry 3"),
        (empty, "is not an entry of a ledger"),
    ],
)
def test_tampering_is_found(tmp_path: Path, tamper: object, found: str) -> None:
    url = str(tmp_path / "ledger")
    fill(url)
    assert callable(tamper)
    tamper(url)
    with pytest.raises(RegistryError, match=found):
        read_entries(url)


def test_an_end_that_was_cut_off_is_found_by_what_points_at_it(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    last = fill(url)[-1]
    storage.delete(last.url)
    entries = read_entries(url)  # the chain by itself is whole
    with pytest.raises(RegistryError, match=r"refers to .*00000004\.json"):
        require_known(url, entries, last.reference)


def test_a_lost_answer_is_no_second_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "ledger")
    create = storage.create_bytes

    def lose_the_answer(target: str, data: bytes) -> bool:
        create(target, data)
        return False

    monkeypatch.setattr(storage, "create_bytes", lose_the_answer)
    made = append(url, "held", {"why": "Müller"})
    assert read_entries(url) == (made,)
    raw = json.loads(Path(made.url).read_text())
    assert raw["content"] == {"why": "Müller"}


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append(str(tmp_path / "ledger"), "scored", {"auroc": float("nan")})
