"""Every byte that readers see is verified, and what is damaged can be made again by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import SchemaError
from pipeline.ingest.verify import VerifyReport, verify_dataset
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import Dataset, open_dataset
from tests.support.made.slides import ingest_made, list_slide, write_slide
from tests.support.toys import make_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the slides `a`, `b` and `empty`, and their dataset `out`."""
    folder = tmp_path_factory.mktemp("made")
    write_slide(folder, "a")
    write_slide(folder, "b")
    write_slide(folder, "empty", boxes=[])
    ingest_made(folder / "out", [list_slide(path) for path in sorted(folder.glob("*.tif"))])
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the made folder's dataset, to be damaged."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path


def verify(folder: Path, *, repair: bool = False) -> VerifyReport:
    return verify_dataset(str(folder / "out"), map_serially, repair=repair)


def place_of(folder: Path, name: str) -> Path:
    dataset: Dataset = open_dataset(str(folder / "out"))
    (part,) = (part for part in dataset.parts if part.name == name)
    return folder / "out" / part.place


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x04
    path.write_bytes(data)


def test_a_whole_dataset_gives_no_finding(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_dataset(
        str(folder / "out"), map_serially, on_progress=lambda *pair: seen.append(pair)
    )
    count = open_dataset(str(folder / "out")).image_count
    assert (report.findings, report.part_count, report.image_count) == ((), 3, count)
    assert report.read_bytes == count * 32 * 32 * 3
    assert (seen[0], seen[-1]) == ((0, count), (count, count))


def test_unreadable_images_and_other_sources_verify_too(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "out"), part_images=20)
    report = verify(tmp_path)
    assert (report.findings, report.part_count) == ((), 3)


@pytest.mark.parametrize(
    ("key", "at", "problem"),
    [
        ("image/c/0/0/0/0", 100, "images"),
        ("image/c/0/0/0/0", -3, "the index of the shard is damaged"),
        ("measures/c/0/0", 30, ""),
        ("label/c/0", 12, ""),
        ("origin_yx/c/0/0", 20, ""),
        ("label/zarr.json", 5, "the array's document is gone or damaged"),
        ("zarr.json", 0, "the root document is gone or damaged"),
    ],
)
def test_one_flipped_bit_is_found_and_repaired(
    folder: Path, made: Path, key: str, at: int, problem: str
) -> None:
    before = open_dataset(str(folder / "out"))
    whole = {path: path.stat().st_mtime_ns for path in place_of(folder, "a").rglob("*")}
    flip(place_of(folder, "b") / key, at)
    damages = verify(folder).damages
    assert damages
    assert {finding.part for finding in damages} == {"b"}
    assert any(problem in finding.problem for finding in damages)

    repaired = verify(folder, repair=True)
    assert repaired.repaired == ("b",)
    slides = [list_slide(path) for path in sorted(made.glob("*.tif"))]
    report, dataset = ingest_made(folder / "out", slides)
    assert (report.parts_made, report.parts_kept) == (1, 1)
    assert dataset.fingerprint == before.fingerprint
    assert verify(folder).findings == ()
    assert whole == {path: path.stat().st_mtime_ns for path in place_of(folder, "a").rglob("*")}


@pytest.mark.parametrize("size", [0, 19])
def test_a_shard_shorter_than_its_index_is_one_finding_of_many(
    folder: Path, made: Path, size: int
) -> None:
    before = open_dataset(str(folder / "out"))
    shard = place_of(folder, "a") / "image/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:size])
    flip(place_of(folder, "b") / "label/c/0", 12)
    report = verify(folder, repair=True)
    problems = [each.problem for each in report.damages if each.item == str(shard)]
    assert f"the shard is {size} bytes, fewer than its index" in problems[0]
    assert report.repaired == ("a", "b")
    slides = [list_slide(path) for path in sorted(made.glob("*.tif"))]
    again, dataset = ingest_made(folder / "out", slides)
    assert (again.parts_made, dataset.fingerprint) == (2, before.fingerprint)
    assert verify(folder).findings == ()


@pytest.mark.parametrize("key", ["image/c/1/0/0/0", "readable/c/0", "measure/zarr.json"])
def test_an_object_that_is_gone_is_named(folder: Path, key: str) -> None:
    path = place_of(folder, "a") / key
    path.unlink()
    damages = verify(folder).damages
    assert str(path) in {finding.item for finding in damages}
    assert {finding.part for finding in damages} == {"a"}


def test_a_part_that_is_gone_is_made_again_alone(folder: Path, made: Path) -> None:
    shutil.rmtree(place_of(folder, "a"))
    assert {finding.part for finding in verify(folder).damages} == {"a"}
    slides = [list_slide(path) for path in sorted(made.glob("*.tif"))]
    report, _ = ingest_made(folder / "out", slides)
    assert (report.parts_made, report.parts_kept) == (1, 1)


def test_a_damaged_table_is_written_again_and_parts_are_kept(folder: Path, made: Path) -> None:
    (table,) = (folder / "out").glob("parts-*.parquet")
    flip(table, table.stat().st_size // 2)
    report = verify(folder)
    assert str(table) in {finding.item for finding in report.damages}
    slides = [list_slide(path) for path in sorted(made.glob("*.tif"))]
    again, _ = ingest_made(folder / "out", slides)
    assert again.parts_made == 0
    assert verify(folder).findings == ()


def test_a_root_document_that_disagrees_with_the_table_is_damage(folder: Path) -> None:
    path = folder / "out" / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["parameters"]["seed"] = 7
    path.write_text(json.dumps(root))
    (finding,) = verify(folder).damages
    assert "says fingerprint" in finding.problem
    assert finding.part == ""


@pytest.mark.parametrize(("name", "value"), [("columns", ["a"]), ("parts_table", "parts")])
def test_a_root_document_that_no_ingest_has_written_is_damage(
    folder: Path, name: str, value: object
) -> None:
    path = folder / "out" / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"][name] = value
    path.write_text(json.dumps(root))
    (finding,) = verify(folder).damages
    assert finding.item == str(path)
    assert f"{name} {value!r}" in finding.problem
    assert "Run the same ingest again" in finding.remedy


def test_foreign_objects_are_mentioned_and_left(folder: Path) -> None:
    mine = [folder / "out" / "notes.txt", place_of(folder, "a") / "notes.txt"]
    left = folder / "out" / "parts" / "c-0123456789abcdef"
    left.mkdir()
    (left / "zarr.json").write_text("{}")
    for path in mine:
        path.write_text("mine")
    report = verify(folder, repair=True)
    assert (report.damages, report.repaired) == ((), ())
    assert {finding.item for finding in report.findings} == {str(each) for each in [*mine, left]}
    assert all(path.exists() for path in mine)


def test_a_lost_review_picture_is_mentioned(folder: Path) -> None:
    picture = next((folder / "out" / "review").iterdir())
    picture.unlink()
    report = verify(folder)
    assert report.damages == ()
    assert [finding.item for finding in report.findings] == [str(picture)]


def test_what_is_not_sealed_is_refused(folder: Path) -> None:
    (folder / "out" / "zarr.json").unlink()
    with pytest.raises(SchemaError, match="not sealed"):
        verify(folder)
