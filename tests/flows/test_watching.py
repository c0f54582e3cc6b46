"""Looking at datasets on the command line: what is said, and the exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows.cli import launch
from pipeline.ingest.progress import ProgressFile
from pipeline.records import ManifestEntry
from tests.support.made.slides import ingest_made, list_slide, write_slide


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of the slide `a` and of a file that is none."""
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    (tmp_path / "b.tif").write_text("no slide")
    listed = [list_slide(path) for path in (write_slide(tmp_path, "a"), tmp_path / "b.tif")]
    return ingest_made(tmp_path / "out", listed)[0].url


def test_status_names_failures_and_what_to_do(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("status", url) == 1
    said = capsys.readouterr().out
    assert f"{url}: sealed; the last ingest has finished." in said
    assert "2 in all: 1 done, 0 skipped, 1 failed" in said
    assert "told apart by their bytes" in said
    assert "b.tif: " in said
    assert "Mend the failed items and run the same ingest command again" in said
    assert launch("status", url, "--json") == 1
    assert json.loads(capsys.readouterr().out)["counts"]["failed"] == 1


def test_status_names_what_was_skipped_and_counts_what_was_kept(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skips = tuple(ManifestEntry(f"{n}.tif", "skipped", "excluded") for n in range(23))
    ingest_made(url, [list_slide(tmp_path / "a.tif")], rejected=skips)
    assert launch("status", url) == 0
    said = capsys.readouterr().out
    assert "24 in all: 1 done, 23 skipped, 0 failed; 1 kept as an earlier" in said
    assert "  skipped    19.tif: excluded\n  skipped    and 3 more; see manifest.json" in said


def test_status_says_what_waits_for_repair_and_what_mends_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(next((tmp_path / "out" / "parts").iterdir()) / "label")
    launch("verify", url, "--repair")
    capsys.readouterr()
    launch("status", url)
    said = capsys.readouterr().out
    assert "  to repair  1 part is gone or marked: a\n" in said
    assert "Run the same ingest command again: it makes the parts to repair again." in said


def test_status_and_removal_pass_over_a_damaged_progress(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest_made(url, [list_slide(write_slide(tmp_path, name)) for name in "ac"])
    (tmp_path / "out" / "ingest.json").write_text('{"state": "running"}')
    assert launch("status", url) == 0
    assert f"{url}: sealed; ingest.json is damaged and left out, " in capsys.readouterr().out
    who = ["--name", "A. Reader", "--reason", "consent withdrawn"]
    assert launch("remove", url, "--slide", "a", *who) == 0


def test_status_of_a_running_ingest(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressFile.begin(url, 7):
        assert launch("status", url) == 0
    said = capsys.readouterr().out
    assert "sealed; an ingest is running." in said
    assert "7 in all: 0 made, 0 kept, 0 skipped, 0 failed" in said
    assert "the running ingest replaces it" in said


def test_status_and_verify_of_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("status", str(tmp_path)) == 2
    assert launch("verify", str(tmp_path)) == 2
    assert capsys.readouterr().err.count("no dataset here") == 2


def test_verify_finds_damage_and_the_next_ingest_mends_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("verify", url) == 0
    assert f"{url}: whole." in capsys.readouterr().out
    shutil.rmtree(next((tmp_path / "out" / "parts").iterdir()) / "label")
    assert launch("verify", url, "--repair") == 1
    said = capsys.readouterr().out
    assert f"{url}: damaged." in said
    assert "part a, " in said
    assert "marked     a: the next ingest makes" in said
    ingest_made(url, [list_slide(tmp_path / "a.tif")])
    assert launch("verify", url) == 0


def test_remove_is_refused_without_an_id_and_done_with_one(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = ["--name", "A. Reader", "--reason", "consent withdrawn"]
    assert launch("remove", url, *who) == 2
    assert launch("remove", url, "--slide", "nobody", *who) == 2
    assert "no slide 'nobody' in this dataset" in capsys.readouterr().err
    assert launch("remove", url, "--slide", "a", *who, "--dry-run") == 2
    told = capsys.readouterr()
    assert (told.out, "Delete the dataset as a whole" in told.err) == ("", True)
    ingest_made(url, [list_slide(write_slide(tmp_path, name)) for name in "ac"])
    assert launch("remove", url, "--slide", "a", *who, "--dry-run") == 0
    assert "would remove slide a" in capsys.readouterr().out
