"""A patient or a slide leaves a dataset; killed anywhere, a rerun ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.commands.remove import remove as take_out
from pipeline.errors import NormscopeError, SettingsError
from pipeline.images.ingest import DUPLICATES, ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.progress import ProgressFile
from pipeline.ingest.verify import verify_dataset
from pipeline.io import storage
from pipeline.records import ImageListing, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from tests.support.content import content_of
from tests.support.made.images import make_image
from tests.support.made.slides import ingest_made, list_slide, write_slide
from training.registry.ledger import read_entries


def remove(url: str, **wanted: Any) -> None:
    take_out(url, **{"name": "A. Reader", "reason": "consent withdrawn", **wanted})


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slides `a`, `b`, its copy `c` and a torn `sub/b`, and their dataset `out`."""
    folder = tmp_path_factory.mktemp("slides")
    for name in "ab":
        write_slide(folder, name)
    shutil.copy(folder / "b.tif", folder / "c.tif")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.tif").write_bytes(b"torn")
    ingest_made(folder / "out", list_slides(str(folder)).slides)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of three patients, one torn, two alike, and their dataset `out` of two parts."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        image = make_image(0 if number == 4 else number)
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    (folder / "7.png").write_bytes(b"torn")
    later = (folder / "8.png").rename(folder / "8.later")
    ingest_all(folder / "out", folder)
    later.rename(folder / "8.png")
    ingest_all(folder / "out", folder)  # a part of its own
    return folder


def ingest_all(url: Path, folder: Path) -> None:
    listed = tuple(
        SourceImage(
            path.name, f"p{int(path.stem) % 3}", str(path), storage.describe(str(path)).version
        )
        for path in sorted(folder.glob("*.png"))
    )
    settings = ImageSettings(size_px=16, colour="grey")
    ingest_images(str(url), ImageListing(listed), settings, map_serially, source="made")


def copy(made: Path, tmp_path: Path) -> str:
    shutil.copytree(made / "out", tmp_path / "out")
    return str(tmp_path / "out")


def test_a_slide_goes_and_no_other_object_is_touched(slides: Path, tmp_path: Path) -> None:
    url = copy(slides, tmp_path)
    before, kept = open_dataset(url), content_of(url)
    remove(url, slide="b.tif")
    after, left = open_dataset(url), content_of(url)
    assert [part.name for part in after.parts] == ["a.tif", "c.tif"]
    assert after.parts == tuple(part for part in before.parts if part.name != "b.tif")
    assert not [key for key in left if key.startswith(("parts/b", "review/b"))]
    same = [key for key in left if key.startswith(("parts/", "review/"))]
    assert {key: left[key] for key in same} == {key: kept[key] for key in same}
    assert len([key for key in same if key.startswith("review/")]) == 2
    entries = read_manifest(f"{url}/manifest.json")
    assert not any(f"{slides}/b.tif" in str(entry) for entry in entries)
    assert [entry.item for entry in entries] == [f"{slides}/{n}.tif" for n in ("a", "c", "sub/b")]
    assert verify_dataset(url, map_serially).findings == ()


def test_a_dataset_without_a_slide_is_as_if_it_had_never_been_there(
    slides: Path, tmp_path: Path
) -> None:
    url = copy(slides, tmp_path)
    remove(url, patient="b.tif")  # where no patient is known, the slide is its own group
    listed = [
        each for each in list_slides(str(slides)).slides if each.slide_id in {"a.tif", "c.tif"}
    ]
    report, dataset = ingest_made(tmp_path / "out", listed)
    assert (report.parts_made, report.parts_kept) == (0, 2)
    assert dataset.fingerprint == ingest_made(tmp_path / "anew", listed)[1].fingerprint
    assert (tmp_path / "out" / "ledger" / "00000001.json").exists()


def test_images_of_a_patient_go_and_the_others_keep_their_pixels(
    images: Path, tmp_path: Path
) -> None:
    url = copy(images, tmp_path)
    before = open_dataset(url)
    stays = before.column("group_id") != "p1"
    image_ids = before.column("image_id")[stays].tolist()
    assert "p1" in (tmp_path / "out" / DUPLICATES).read_text()
    remove(url, patient="p1")
    after = open_dataset(url)
    assert after.column("image_id").tolist() == image_ids
    kept = before_images(images)[stays]
    assert (after.read_images(0, after.image_count) == kept).all()
    assert after.read_reasons().keys() == set()  # the torn one was of the patient
    assert json.loads((tmp_path / "out" / DUPLICATES).read_text()) == []
    assert len(read_manifest(f"{url}/manifest.json")) == 6
    assert verify_dataset(url, map_serially).findings == ()
    assert [part.place for part in after.parts[1:]] == [part.place for part in before.parts[1:]]
    (tmp_path / "in").mkdir()  # from then on the source is without them
    for path in images.glob("*.png"):
        if int(path.stem) % 3 != 1:
            shutil.copy2(path, tmp_path / "in")
    fingerprint = after.fingerprint
    ingest_all(tmp_path / "out", tmp_path / "in")
    assert open_dataset(url).fingerprint == fingerprint


def before_images(images: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    dataset = open_dataset(str(images / "out"))
    return dataset.read_images(0, dataset.image_count)


def test_the_ledger_says_who_removed_what_and_why(slides: Path, tmp_path: Path) -> None:
    url = copy(slides, tmp_path)
    before = open_dataset(url)
    remove(url, slide="b.tif")
    first, last = read_entries(f"{url}/ledger")
    assert (first.kind, last.kind) == ("removing", "removed")
    count_b = next(part.image_count for part in before.parts if part.name == "b.tif")
    assert last.summary == f"slide b.tif, {count_b} images, by A. Reader: consent withdrawn"
    assert last.content["fingerprint_before"] == before.fingerprint
    assert last.content["fingerprint_after"] == open_dataset(url).fingerprint


def test_a_dry_run_changes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = copy(images, tmp_path)
    before = content_of(url)
    remove(url, patient="p1", dry_run=True)
    assert "3 go, 6 stay" in capsys.readouterr().out
    assert content_of(url) == before


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"slide": "nobody"}, "no slide 'nobody' in this dataset"),
        ({}, "takes one patient or one slide"),
        ({"slide": "a", "patient": "a"}, "takes one patient or one slide"),
        ({"patient": ""}, "its id is empty"),  # of slides whose patient is unknown
        ({"slide": ""}, "its id is empty"),
        ({"slide": "a.tif", "name": " "}, "--name: is empty"),
        ({"slide": "a.tif", "reason": ""}, "--reason: is empty"),
    ],
)
def test_what_is_not_there_is_refused(
    slides: Path, tmp_path: Path, wanted: dict[str, str], said: str
) -> None:
    url = copy(slides, tmp_path)
    before = content_of(url)
    with pytest.raises(SettingsError, match=said):
        remove(url, **wanted)
    assert content_of(url) == before


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_last_slide_and_a_running_ingest_are_refused_before_anything_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, dry_run: bool
) -> None:
    url = str(tmp_path / "out")
    ingest_made(url, [list_slide(write_slide(tmp_path, "a"))])
    with pytest.raises(SettingsError, match="Delete the dataset as a whole"):
        remove(url, slide="a", dry_run=dry_run)
    with ProgressFile.begin(url, 1), pytest.raises(SettingsError, match="an ingest is running"):
        remove(url, slide="a", dry_run=dry_run)
    assert read_entries(f"{url}/ledger") == ()
    assert capsys.readouterr().out == ""


def test_who_removes_after_a_failed_removal_is_recorded_with_their_own_reason(
    images: Path, tmp_path: Path
) -> None:
    url = copy(images, tmp_path)
    (shard,) = (tmp_path / "out").glob("parts/000000-*/image/c/0/0/0/0")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(NormscopeError):
        remove(url, patient="p1")
    shard.write_bytes(whole)
    remove(url, patient="p1", name="B. Reader", reason="wrong patient")
    entries = read_entries(f"{url}/ledger")
    assert [entry.kind for entry in entries] == ["removing", "removing", "removed"]
    assert entries[-1].summary == "patient p1, 3 images, by B. Reader: wrong patient"


@pytest.mark.parametrize("content", ['{"state": "running"}', "[]", "{", '{"failures": "p1"}'])
def test_a_damaged_progress_blocks_no_removal_and_goes(
    slides: Path, tmp_path: Path, content: str
) -> None:
    url = copy(slides, tmp_path)
    (tmp_path / "out" / "ingest.json").write_text(content)
    remove(url, slide="b.tif")
    assert "b.tif" not in {part.name for part in open_dataset(url).parts}
    assert not (tmp_path / "out" / "ingest.json").exists()


def test_damage_is_not_copied_as_if_it_were_whole(images: Path, tmp_path: Path) -> None:
    url = copy(images, tmp_path)
    (shard,) = (tmp_path / "out").glob("parts/000000-*/image/c/0/0/0/0")
    data = bytearray(shard.read_bytes())
    data[40] ^= 1  # of the first image, stored as it is
    shard.write_bytes(data)
    with pytest.raises(NormscopeError):
        remove(url, patient="p1")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("kind", "wanted"), [("slides", "slide"), ("images", "patient")])
def test_killed_between_any_two_writes_a_rerun_ends_alike(
    kind: str,
    wanted: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Path = request.getfixturevalue(kind)
    name = {wanted: "b.tif" if kind == "slides" else "p1"}
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = copy(made, tmp_path / "whole")
    old = open_dataset(whole).fingerprint
    remove(whole, **name)
    new = open_dataset(whole).fingerprint
    expected, entries = without_ledger(whole), read_manifest(f"{whole}/manifest.json")
    for kills_at in count():
        url = copy(made, tmp_path / "killed")
        with monkeypatch.context() as patch:
            is_over = kill_at(patch, kills_at)
            with suppress(Killed):
                remove(url, **name)
            finished = not is_over()
        if finished:
            break
        dataset = open_dataset(url)
        assert dataset.fingerprint in {old, new}
        assert verify_dataset(url, map_serially).damages == ()
        try:
            remove(url, **name)
        except SettingsError:  # killed after its last write
            assert read_entries(f"{url}/ledger")[-1].kind == "removed"
        assert without_ledger(url) == expected
        assert read_manifest(f"{url}/manifest.json") == entries
        assert [entry.kind for entry in read_entries(f"{url}/ledger")] == ["removing", "removed"]
        shutil.rmtree(url)
    assert kills_at > 6


def without_ledger(url: str) -> dict[str, bytes]:
    return {key: data for key, data in content_of(url).items() if not key.startswith("ledger/")}


def kill_at(patch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Raise before a write or deletion; returns whether it has."""
    done = [0]

    def limit(function: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            done[0] += 1
            if done[0] > number:
                raise Killed
            return function(*args, **kwargs)

        return act

    for name in ("write_bytes", "write_parts", "create_bytes", "delete"):
        patch.setattr(storage, name, limit(getattr(storage, name)))
    return lambda: done[0] > number
