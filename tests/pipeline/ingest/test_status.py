"""The status of a dataset: while it is made, sealed, refused, and after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.errors import NormscopeError, SchemaError, SourceError
from pipeline.ingest import progress
from pipeline.ingest.progress import ProgressFile, read_progress
from pipeline.ingest.status import DatasetStatus, read_status
from pipeline.records import ManifestEntry
from pipeline.store.dataset import MissingDatasetError
from pipeline.store.part import mark_damaged
from tests.support.made.slides import ingest_made, list_slide, write_slide

T = TypeVar("T")
R = TypeVar("R")


def test_a_sealed_dataset_tells_what_became_of_its_items(store_url: str, tmp_path: Path) -> None:
    good, bad = write_slide(tmp_path, "a"), tmp_path / "b.tif"
    bad.write_bytes(b"no slide at all")
    report, dataset = ingest_made(f"{store_url}/out", [list_slide(good), list_slide(bad)])
    status = read_status(f"{store_url}/out")
    assert (status.state, status.is_sealed, status.reason) == ("sealed", True, "")
    assert status.counts == {"items": 2, "done": 1, "skipped": 0, "failed": 1}
    assert [entry.item for entry in status.failures] == [str(bad)]
    assert status.failures[0].reason
    assert status.image_count == dataset.image_count
    assert (status.part_count, status.fingerprint) == (1, report.fingerprint)
    assert status.source_identity == "bytes"
    assert status.read_bytes == good.stat().st_size
    assert status.stored_bytes == dataset.parts[0].stored_bytes < status.disk_bytes


def test_time_left_follows_from_the_rate(tmp_path: Path) -> None:
    seen: list[DatasetStatus] = []
    url = str(tmp_path / "out")

    def look_before_the_last(
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        give_up: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        for number, item in enumerate(items):
            if number == 2:
                age_progress(url, began_s=60, updated_s=20)
                seen.append(read_status(url))
            yield function(item)

    slides = [list_slide(write_slide(tmp_path, name)) for name in "abc"]
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(progress, "_INTERVAL_S", -1.0)
        ingest_made(url, slides, map_work=look_before_the_last)
    status = seen[0]
    assert (status.state, status.is_sealed) == ("running", False)
    assert status.counts == {"items": 3, "made": 2, "kept": 0, "skipped": 0, "failed": 0}
    assert status.elapsed_s == 40
    assert status.items_per_s == 2 / 40
    assert status.left_s == pytest.approx(0, abs=2)  # one item takes 20 s, 20 s ago
    assert read_status(url).left_s is None


def age_progress(url: str, *, began_s: float, updated_s: float) -> None:
    """Let the progress have been written some time ago."""
    path, now = Path(url) / "ingest.json", datetime.now(UTC)
    known = json.loads(path.read_text())
    known["began_at"] = (now - timedelta(seconds=began_s)).isoformat(timespec="seconds")
    updated_at = datetime.fromisoformat(known["began_at"]) + timedelta(seconds=began_s - updated_s)
    known["updated_at"] = updated_at.isoformat(timespec="seconds")
    path.write_text(json.dumps(known))


def test_a_killed_ingest_is_told_from_a_slow_one(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    with ProgressFile.begin(url, 4) as file:
        file.count("made", failures=[], read_bytes=7, stored_bytes=5)
        file._write()
        age_progress(url, began_s=900, updated_s=100)
        assert read_status(url).state == "running"
        age_progress(url, began_s=900, updated_s=130)
        status = read_status(url)
        assert (status.state, status.left_s) == ("stalled", None)
        assert (status.read_bytes, status.stored_bytes) == (7, 5)
    assert read_status(url).state == "sealed"


def test_a_long_item_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "out")
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.01)
    with ProgressFile.begin(url, 1):
        path = tmp_path / "out" / "ingest.json"
        path.unlink()
        while not path.exists():  # written again, though no item has been counted
            pass
    assert read_status(url).state == "sealed"


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted"),
        (ValueError("Jane Doe"), "failed", "ValueError"),
        (SourceError("/scans/Jane Doe.dcm", "gone", "Look"), "refused", "SourceError: Look"),
    ],
)
def test_an_end_is_recorded_without_the_names_of_files(
    tmp_path: Path, error: BaseException, state: str, reason: str
) -> None:
    url = str(tmp_path / "out")
    with pytest.raises(type(error)), ProgressFile.begin(url, 1):
        raise error
    status = read_status(url)
    assert (status.state, status.reason, status.is_sealed) == (state, reason, False)


def test_a_refusal_says_its_reason_and_keeps_the_dataset(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, "a")
    ingest_made(tmp_path / "out", [list_slide(slide)])
    slide.write_bytes(b"no slide any more")
    with pytest.raises(NormscopeError):
        ingest_made(tmp_path / "out", [list_slide(slide)])
    status = read_status(str(tmp_path / "out"))
    assert (status.state, status.is_sealed, status.part_count) == ("refused", True, 1)
    assert "none of 1 items gives one" in status.reason
    assert status.counts["failed"] == 1
    assert [entry.item for entry in status.failures] == [str(slide)]
    assert read_progress(status.url) is not None


def test_failures_are_named_up_to_a_hundred(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    with ProgressFile.begin(url, 1) as file:
        failures = [ManifestEntry(f"{n}.png", "failed", "bad") for n in range(120)]
        file.count("made", failures=failures, read_bytes=0, stored_bytes=0)
        file._write()
        status = read_status(url)
    assert (len(status.failures), status.counts["failed"]) == (100, 120)
    assert status.visited_count == 1


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match="no dataset here, and no ingest"):
        read_status(str(tmp_path))


def test_skipped_items_have_their_reasons_and_kept_ones_are_counted(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "ab"]
    url, left_out = tmp_path / "out", ManifestEntry("c.tif", "skipped", "excluded by the errata")
    ingest_made(url, slides[:1])
    ingest_made(url, slides, rejected=(left_out,))
    status = read_status(str(url))
    assert status.counts == {"items": 3, "done": 2, "skipped": 1, "failed": 0}
    assert (status.skips, status.failures, status.kept_count) == ((left_out,), (), 1)


def test_parts_are_marked_until_an_ingest_has_made_them_again(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "abc"]
    url = tmp_path / "out"
    _, dataset = ingest_made(url, slides)
    assert read_status(str(url)).marked == ()
    for part, keeps_rows in zip(dataset.parts[:2], (True, False), strict=True):
        mark_damaged(f"{url}/{part.place}", keeps_rows=keeps_rows)
    assert read_status(str(url)).marked == ("a", "b")
    ingest_made(url, slides)
    assert read_status(str(url)).marked == ()


@pytest.mark.parametrize(
    "change",
    [
        {"updated_at": "yesterday"},
        {"updated_at": "2026-01-01T00:00:00"},  # no time zone
        {"began_at": 5},
        {"items": "many"},
        {"kept": -1},
        {"state": "walking"},
        {"failures": ["a.tif"]},
        {"failures": None},
        {"reason": ["no"]},
        {"pid": None},
    ],
)
def test_a_damaged_progress_is_left_out(tmp_path: Path, change: dict[str, object]) -> None:
    url = str(tmp_path / "out")
    ingest_made(url, [list_slide(write_slide(tmp_path, "a"))])
    path = tmp_path / "out" / "ingest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    status = read_status(url)
    assert (status.state, status.is_sealed, status.is_damaged) == ("sealed", True, True)
    assert status.counts["done"] == 1
    (tmp_path / "out" / "manifest.json").unlink()
    assert read_status(url).counts["items"] == 0


@pytest.mark.parametrize("content", ['{"state": "running"}', "{}", "[1]", "{", "\xff"])
def test_what_is_no_progress_is_damaged_and_an_ingest_writes_it_anew(
    tmp_path: Path, content: str
) -> None:
    url, slides = str(tmp_path / "out"), [list_slide(write_slide(tmp_path, "a"))]
    ingest_made(url, slides)
    (tmp_path / "out" / "ingest.json").write_text(content, encoding="latin-1")
    assert read_status(url).is_damaged
    ingest_made(url, slides)
    assert not read_status(url).is_damaged


def test_a_damaged_progress_without_a_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "ingest.json").write_text('{"state": "running"}')
    with pytest.raises(SchemaError, match=r"ingest\.json: is damaged, .*Run the ingest again"):
        read_status(str(tmp_path))


def test_a_sign_of_life_from_the_future_is_none(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    with ProgressFile.begin(url, 4):
        age_progress(url, began_s=0, updated_s=-100)
        assert read_status(url).state == "running"  # clocks differ
        age_progress(url, began_s=0, updated_s=-1000)
        status = read_status(url)
    assert (status.state, status.silent_s) == ("stalled", 0)
