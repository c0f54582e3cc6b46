"""Folders of images: every row and every file ends in exactly one place."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import pytest

from pipeline.errors import SourceError, StorageError
from pipeline.io.storage import describe, plain_url, write_bytes
from pipeline.records import Label, ManifestEntry
from pipeline.sources.images import list_images

PIXELS = b"listing reads no image"


def write_folder(root: Path, table: str, *paths: str, name: str = "manifest.csv") -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXELS)
    if table:
        root.mkdir(exist_ok=True)
        (root / name).write_text(table)
    return str(root)


def test_a_folder_without_a_table_has_unknown_labels(tmp_path: Path) -> None:
    url = write_folder(tmp_path, "", "b/two.JPG", "a.png", ".hidden.png")
    listing = list_images(url)
    assert [image.image_id for image in listing.images] == ["a.png", "b/two.JPG"]
    assert [image.group_id for image in listing.images] == ["a.png", "b/two.JPG"]
    assert {image.label for image in listing.images} == {Label.UNKNOWN}
    assert listing.images[1].url == f"{url}/b/two.JPG"
    assert listing.rejected == ()


@pytest.mark.parametrize("name", ["manifest.csv", "labels.csv"])
def test_a_table_gives_labels_splits_groups_and_columns(tmp_path: Path, name: str) -> None:
    table = (
        "filename,class,split,Patient ID,view,age,sex\n"
        "x/b.png,Abnormal,Testing,p2,pa,412Y,male\n"
        "./a.png,normal,training,p1,AP,061Y,F\n"
        "x\\c.png,,,,,,\n"
    )
    listing = list_images(write_folder(tmp_path, table, "a.png", "x/b.png", "x/c.png", name=name))
    a, b, c = listing.images
    assert (a.image_id, a.group_id, a.label, a.split) == ("a.png", "p1", Label.NORMAL, "train")
    assert (b.image_id, b.group_id, b.label, b.split) == ("x/b.png", "p2", 1, "test")
    assert (c.image_id, c.group_id, c.label, c.split) == ("x/c.png", "x/c.png", -1, None)
    assert a.columns == {"view_position": "AP", "age_years": 61, "sex": "F"}
    assert b.columns == {"view_position": "PA", "age_years": -1, "sex": "M"}
    assert [(entry.item, entry.state, entry.reason) for entry in listing.rejected] == [
        ("x/b.png, age", "skipped", "'412Y' is recorded as unknown")
    ]


def test_the_parents_table_serves_a_subfolder_and_a_single_file(tmp_path: Path) -> None:
    table = "path,label\nvalid/a.png,1\nvalid-too/a.png,0\ntrain/b.png,0\nvalid/gone.png,0\n"
    url = write_folder(tmp_path, table, "valid/a.png", "valid-too/a.png", "train/b.png")
    listing = list_images(f"{url}/valid/")
    assert [(image.image_id, image.label) for image in listing.images] == [("valid/a.png", 1)]
    assert [entry.item for entry in listing.rejected] == ["valid/gone.png"]
    single = list_images(f"{url}/train/b.png", labels_url=f"{url}/manifest.csv")
    assert [(image.image_id, image.label) for image in single.images] == [("train/b.png", 0)]
    assert single.rejected == ()


def test_a_table_elsewhere_has_paths_relative_to_the_images(tmp_path: Path) -> None:
    url = write_folder(tmp_path / "images", "", "x/a.png")
    write_folder(tmp_path / "tables", "image,target\nx/a.png,1\n", name="t.csv")
    listing = list_images(url, labels_url=str(tmp_path / "tables" / "t.csv"))
    assert [(image.image_id, image.label) for image in listing.images] == [("x/a.png", 1)]


def test_rows_and_files_without_a_counterpart_are_listed_and_counted(tmp_path: Path) -> None:
    rows = "".join(f"gone/{number:03}.png,0\n" for number in range(53))
    url = write_folder(tmp_path, f"path,label\na.png,0\n{rows}", "a.png", "extra.png", "readme.md")
    listing = list_images(url)
    assert [image.image_id for image in listing.images] == ["a.png"]
    assert {entry.state for entry in listing.rejected} == {"skipped"}
    reasons = Counter(entry.reason for entry in listing.rejected)
    assert reasons["in the table, but no such image"] == 20
    assert reasons["33 more rows: in the table, but no such image"] == 1
    assert [entry.item for entry in listing.rejected if "no row" in entry.reason] == [
        f"{url}/extra.png"
    ]
    kept = list_images(url, keeps_unlisted=True)
    assert [(image.image_id, image.label) for image in kept.images] == [
        ("a.png", 0),
        ("extra.png", -1),
    ]
    assert len(kept.rejected) == 22
    assert listing.rejected[-1] == ManifestEntry("*.md", "skipped", "1 file .md: not read")


def test_bad_rows_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    table = (
        "path,label,split\n"
        "good.png,0,train\n"
        "../../etc/passwd.png,0,train\n"
        "/etc/hosts.png,0,test\n"
        "c:/windows.png,0,train\n"
        "s3://other/bucket.png,0,train\n"
        "label.png,perhaps,train\n"
        "split.png,0,fold 3\n"
        "twice.png,1,test\n"
        "twice.png,1,test\n"
        "torn.png,1,test\n"
        "torn.png,0,test\n"
        ",0,train\n"
    )
    names = ["good.png", "label.png", "split.png", "twice.png", "torn.png"]
    (tmp_path / "passwd.png").write_bytes(PIXELS)
    listing = list_images(write_folder(tmp_path / "in" / "ner", table, *names))
    assert [image.image_id for image in listing.images] == ["good.png", "twice.png"]
    found = {entry.item: (entry.state, entry.reason) for entry in listing.rejected}
    assert len(listing.rejected) == len(found) == 9
    for path in (
        "../../etc/passwd.png",
        "/etc/hosts.png",
        "c:/windows.png",
        "",
        "s3://other/bucket.png",
    ):
        assert found[path] == ("failed", "the path leaves the table's folder")
    assert "unknown label 'perhaps'" in found["label.png"][1]
    assert "unknown split 'fold 3'" in found["split.png"][1]
    assert found["twice.png"] == ("skipped", "duplicated row")
    assert found["torn.png"] == ("failed", "its rows contradict each other")


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (["train", "valid"], ["train", "validation"]),
        (["train", "valid", "tuning"], ["train", "test", "validation"]),
        (["dev", "holdout"], ["validation", "test"]),
        (["train", ""], ["train", None]),
        (["train", "training"], [None, None]),
        (["test", "test"], ["test", "test"]),
    ],
)
def test_splits_are_understood(tmp_path: Path, words: list[str], splits: list[str | None]) -> None:
    rows = "".join(f"{number}.png,0,{word}\n" for number, word in enumerate(words))
    paths = [f"{number}.png" for number in range(len(words))]
    listing = list_images(write_folder(tmp_path, f"path,label,split\n{rows}", *paths))
    assert [image.split for image in listing.images] == splits
    assert any("ignored" in note for note in listing.notes) == (splits == [None, None])


def test_maps_outweigh_the_usual_words_and_names(tmp_path: Path) -> None:
    table = "path,label,what,part\na.png,7,PNEUMONIA,valid\nb.png,7,clear,B\nc.png,7,clear,train\n"
    listing = list_images(
        write_folder(tmp_path, table, "a.png", "b.png", "c.png"),
        columns={"label": "What", "split": "part"},
        split_map={"valid": "test", "b": "validation"},
        label_map={"pneumonia": 1, "clear": 0},
    )
    assert [int(image.label) for image in listing.images] == [1, 0, 0]
    assert [image.split for image in listing.images] == ["test", "validation", "train"]


def test_junk_is_no_image_and_other_kinds_are_counted(tmp_path: Path) -> None:
    junk = ("@eaDir/a.png/SYNOPHOTO_THUMB_XL.png", ".ipynb_checkpoints/a-checkpoint.png", "._a.png")
    others = ("d.webp", "x/e.WEBP", "x/f.pdf", "README")
    table = "path,label\na.png,0\nb.JFIF,1\nx/f.pdf,0\n"
    url = write_folder(tmp_path, "", "a.png", "b.JFIF", "x/c.jpe", *junk, *others)
    listing = list_images(url)
    assert [image.image_id for image in listing.images] == ["a.png", "b.JFIF", "x/c.jpe"]
    counts = {entry.item: (entry.state, entry.reason) for entry in listing.rejected}
    assert counts == {
        "files without a suffix": ("skipped", "1 file: not read"),
        "*.webp": ("skipped", "2 files .webp: not read"),
        "*.pdf": ("skipped", "1 file .pdf: not read"),
    }
    (tmp_path / "labels.csv").write_text(table)
    items = {entry.item for entry in list_images(url).rejected}
    assert items == {"files without a suffix", "*.webp", f"{url}/x/c.jpe"}


def test_a_file_that_is_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "", ".cache/.a.dat")
    listing = list_images(str(tmp_path / ".cache/.a.dat"))
    assert [image.image_id for image in listing.images] == [".a.dat"]


def test_a_file_whose_name_is_no_text_fails_alone(tmp_path: Path) -> None:
    url = write_folder(tmp_path / "in", "", "a.png", "x/b.png")
    for odd in (b"\xe9t\xe9.png", b"not\xe9s.txt", b"\xff/c.png"):
        path = Path(url, os.fsdecode(odd))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PIXELS)
    for table in ("", "path,label\na.png,0\nx/b.png,1\n"):
        listing = list_images(write_folder(tmp_path / "in", table))
        assert [image.image_id for image in listing.images] == ["a.png", "x/b.png"]
        failed = {entry.item: entry.reason for entry in listing.rejected if entry.state == "failed"}
        assert failed == dict.fromkeys(
            (f"{url}/\\xe9t\\xe9.png", f"{url}/\\xff/c.png"),
            "the file's name is not text in UTF-8. Rename it",
        )
    with pytest.raises(SourceError, match=r"no image among 1 files; .*c\.png': the file's name is"):
        list_images(f"{url}/\udcff")


def test_a_path_may_be_spelt_in_any_way_that_names_one_file(tmp_path: Path) -> None:
    paths = ("scan:1.png", "c:1.png", "x:/y.png", "back\\slash.png", "x/a b.png", "x/n.png")
    spelt = ("scan:1.png", "c:1.png", "./x:/y.png", "back\\slash.png", ".\\x\\a b.png", "x//n.png")
    rows = "".join(f"{path},{number % 2}\n" for number, path in enumerate(spelt))
    url = write_folder(tmp_path / "in", f"path,label\n{rows}", *paths)
    listing = list_images(url)
    assert {image.image_id for image in listing.images} == set(paths)
    assert {image.image_id: int(image.label) for image in listing.images}["c:1.png"] == 1
    assert listing.rejected == ()


@pytest.mark.parametrize(
    "form", ["{}/x/a.png", "file://{}/x/a.png", "{}/./x//a.png", "{}/y/../x/a.png"]
)
@pytest.mark.parametrize("below", ["", "/x"])
def test_an_absolute_path_into_the_folder_is_that_file(
    tmp_path: Path, form: str, below: str
) -> None:
    url = write_folder(tmp_path / "in", "", "x/a.png", "y/b.png")
    table = f"path,label\n{form.format(url)},1\n/elsewhere/x/a.png,0\n{url}-too/x/a.png,0\n"
    write_folder(tmp_path / "in", table)
    listing = list_images(url + below)
    assert [(image.image_id, int(image.label)) for image in listing.images] == [("x/a.png", 1)]
    reasons = {entry.item: entry.reason for entry in listing.rejected if entry.state == "failed"}
    assert reasons == dict.fromkeys(
        ("/elsewhere/x/a.png", f"{url}-too/x/a.png"), "the path leaves the table's folder"
    )


def test_composed_and_decomposed_letters_are_one(tmp_path: Path) -> None:
    composed, decomposed = (normalize(form, "Größe/é.png") for form in ("NFC", "NFD"))
    for number, (named, written) in enumerate([(composed, decomposed), (decomposed, composed)]):
        url = write_folder(tmp_path / str(number), f"path,label\n{named},1\n", written)
        listing = list_images(url)
        assert [(image.image_id, int(image.label)) for image in listing.images] == [(written, 1)]
        assert listing.rejected == ()
    rows = f"path,label\n{decomposed},1\n{composed},0\n"
    listing = list_images(write_folder(tmp_path / "both", rows, composed, decomposed))
    assert {image.image_id: int(image.label) for image in listing.images} == {
        composed: 0,
        decomposed: 1,
    }


def test_rows_without_a_patient_are_spoken_of(tmp_path: Path) -> None:
    def read_note(name: str, rows: str) -> list[str]:
        url = write_folder(tmp_path / name, f"path,label,patient\n{rows}", "a.png", "b.png")
        return [note for note in list_images(url).notes if "group of its own" in note]

    assert read_note("all", "a.png,0,p\nb.png,1,q\n") == []
    (some,) = read_note("some", "a.png,0,p\nb.png,1,unknown\n")
    assert some.startswith("1 of 2 rows name no patient or slide: each of their images is a group")
    (none,) = read_note("none", "a.png,0,\nb.png,1,\n")
    assert none.startswith("no patient or slide column: every image is a group of its own")


def test_numbers_and_empty_words_of_other_programs_are_understood(tmp_path: Path) -> None:
    table = "path;label;split\na.png;1,0;NA\nb.png;0,0;test\nc.png;-1,0;train\nd.png;nan;?\n"
    names = ("a.png", "b.png", "c.png", "d.png")
    listing = list_images(write_folder(tmp_path, table, *names))
    assert [int(image.label) for image in listing.images] == [1, 0, -1, -1]
    assert [image.split for image in listing.images] == [None, "test", "train", None]
    turned = list_images(str(tmp_path), label_map={"1": 0, "0": 1})
    assert [int(image.label) for image in turned.images] == [0, 1, -1, -1]


def test_what_cannot_be_a_batch_is_one_error(tmp_path: Path) -> None:
    url = write_folder(tmp_path / "a", "path,truth\na.png,1\n", "a.png")
    with pytest.raises(SourceError, match=r"manifest\.csv: no column for label; .*'path', 'truth'"):
        list_images(url)
    with pytest.raises(SourceError, match="no column for split"):
        list_images(url, columns={"label": "truth", "split": "part"})
    with pytest.raises(SourceError, match="no such column of ours: lable"):
        list_images(url, columns={"lable": "truth"})
    with pytest.raises(SourceError, match="split_map gives 'tuning'"):
        list_images(url, columns={"label": "truth"}, split_map={"a": "tuning"})  # type: ignore[dict-item]  # on purpose
    assert list_images(url, labels_url="none").images[0].label == Label.UNKNOWN
    url = write_folder(tmp_path / "b", "path,label\nelse/a.png,1\n", "a.png")
    with pytest.raises(SourceError, match=r"none of its 1 rows .*'else/a\.png': no such image"):
        list_images(url)
    url = write_folder(tmp_path / "c", "", "notes.txt")
    with pytest.raises(SourceError, match="no image among 1 files"):
        list_images(url)
    with pytest.raises((SourceError, StorageError), match="nowhere"):
        list_images(str(tmp_path / "nowhere"))


def test_every_store_is_listed_like_a_folder(store_url: str) -> None:
    root = f"{store_url}/lake/pcam"
    for path in ("valid/a.png", "train/b.png"):
        write_bytes(f"{root}/{path}", PIXELS)
    write_bytes(f"{root}/manifest.csv", b"path,label\nvalid/a.png,1\ntrain/b.png,0\n")
    listing = list_images(f"{root}/valid/")
    assert [(i.image_id, i.url, i.label) for i in listing.images] == [
        ("valid/a.png", f"{plain_url(root)}/valid/a.png", 1)
    ]
    assert listing.images[0].version == describe(f"{root}/valid/a.png").version
    assert len(list_images(root).images) == 2
    assert [i.image_id for i in list_images(store_url, labels_url="none").images] == [
        "lake/pcam/train/b.png",
        "lake/pcam/valid/a.png",
    ]


def test_real_folders_are_listed_whole(shared_data: Path) -> None:
    pcam = list_images(str(shared_data / "pcam"))
    assert Counter((image.split, int(image.label)) for image in pcam.images) == {
        ("train", 0): 4000,
        ("validation", 1): 496,
        ("test", 0): 1500,
        ("test", 1): 1407,
    }
    assert len(list_images(str(shared_data / "pcam" / "valid")).images) == 2907
    nih = list_images(str(shared_data / "nih224"))
    assert Counter(int(image.label) for image in nih.images) == {0: 527, 1: 182}
    assert nih.images[0].group_id == "1001"
    kermany = list_images(str(shared_data / "kermany224"))
    assert Counter(int(image.label) for image in kermany.images) == {0: 1340, 1: 399}
    assert {image.split for image in kermany.images} == {None}
    assert pcam.rejected == nih.rejected == kermany.rejected == ()
