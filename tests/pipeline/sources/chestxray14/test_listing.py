"""ChestX-ray14: both published tables, lists, any folder layout; absent images are counted."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SchemaError, SettingsError, SourceError
from pipeline.images.plan import ImageSettings, plan_images
from pipeline.images.reader import read_source
from pipeline.io.scratch import Scratch
from pipeline.io.storage import plain_url, write_bytes
from pipeline.records import Label
from pipeline.sources.chestxray14.boxes import read_boxes
from pipeline.sources.chestxray14.listing import list_chestxray14
from tests.support.made.chestxray14 import HEAD_2017, HEAD_2020, NAMES, ROWS, table_text, write_set


@pytest.mark.parametrize("head", [HEAD_2017, HEAD_2020])
@pytest.mark.parametrize(
    "folders", [("",), ("images",), ("images_001/images", "images_002/images")]
)
def test_both_tables_and_every_layout_give_the_same(
    tmp_path: Path, head: str, folders: tuple[str, ...]
) -> None:
    listing = list_chestxray14(write_set(tmp_path, table_text(head=head), folders=folders))
    assert [image.image_id for image in listing.images] == NAMES
    assert [image.group_id for image in listing.images] == ["1", "1", "2", "3"]
    assert [int(image.label) for image in listing.images] == [0, 1, 0, 1]
    assert {image.split for image in listing.images} == {None}
    assert listing.images[1].columns == {
        "view_position": "AP",
        "age_years": 59,
        "sex": "M",
        "findings": "Mass|Nodule",
    }
    assert [image.columns["age_years"] for image in listing.images] == [58, 59, 0, -1]
    assert [(entry.item, entry.state, entry.reason) for entry in listing.rejected] == [
        ("00000003_000.png, Patient Age", "skipped", "'412Y' is recorded as unknown")
    ]


def test_the_official_lists_give_the_splits(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", table_text())
    (tmp_path / "set" / "train_val_list.txt").write_text("\n".join(NAMES[:2]) + "\n")
    (tmp_path / "set" / "test_list.txt").write_text(NAMES[2])
    listing = list_chestxray14(f"{url}/images", table_url=f"{url}/Data_Entry_2017.csv")
    assert [image.split for image in listing.images] == ["train", "train", "test", None]
    assert [image.split for image in list_chestxray14(url).images][:3] == ["train", "train", "test"]
    (tmp_path / "set" / "test_list.txt").write_text("\n".join(NAMES[1:3]))
    with pytest.raises(SourceError, match=r"test_list\.txt: 1 images are in both lists"):
        list_chestxray14(url)


def test_lists_that_divide_a_patient_are_refused(tmp_path: Path) -> None:
    url = write_set(tmp_path, table_text())
    (tmp_path / "train_val_list.txt").write_text(NAMES[0])
    (tmp_path / "test_list.txt").write_text(NAMES[1])
    with pytest.raises(SchemaError, match=r"1 of 1 groups .* 1 \(test, train\)"):
        plan_images(list_chestxray14(url).images, ImageSettings(colour="grey"), source="x")


def test_filters_choose_views_and_findings(tmp_path: Path) -> None:
    url = write_set(tmp_path, table_text())
    chosen = list_chestxray14(url, views="AP")
    assert [image.image_id for image in chosen.images] == [NAMES[1], NAMES[2]]
    assert [entry.reason for entry in chosen.rejected] == ["2 rows: the view position is not AP"]
    chosen = list_chestxray14(url, findings=["nodule"])
    assert [image.image_id for image in chosen.images] == NAMES[:3]
    assert "1 rows: none of Nodule" in chosen.rejected[0].reason
    with pytest.raises(SettingsError, match="no finding 'Tumour'"):
        list_chestxray14(url, findings=["Tumour"])


def test_bad_rows_and_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    def row(name: str, *, view: str = "PA", patient: str = "9", finding: str = "No Finding") -> Any:
        return (name, finding, "0", patient, "50", "F", view)

    rows = [
        *ROWS[:1],
        row("../../x.png"),
        row(""),
        row("view.png", view="LL"),
        row("nobody.png", patient=""),
        row("unsaid.png", finding=""),
        row("twice.png"),
        row("twice.png"),
        row("torn.png"),
        row("torn.png", finding="Mass"),
        *[row(f"gone{number:02}.png") for number in range(25)],
    ]
    names = [NAMES[0], "view.png", "nobody.png", "unsaid.png", "twice.png", "torn.png", "extra.png"]
    url = write_set(tmp_path, table_text(rows), names)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAMES[0]).write_bytes(b"the same name")
    listing = list_chestxray14(url)
    assert [image.image_id for image in listing.images] == [
        NAMES[0],
        "twice.png",
        "unsaid.png",
        "view.png",
    ]
    assert listing.images[2].label == Label.UNKNOWN
    assert listing.images[3].columns["view_position"] == ""
    found = {entry.item: (entry.state, entry.reason) for entry in listing.rejected}
    assert found["../../x.png"] == found[""] == ("failed", "not a plain file name")
    assert found["view.png, View Position"] == ("skipped", "'LL' is recorded as unknown")
    assert found["unsaid.png, Finding Labels"][0] == "skipped"
    assert found["nobody.png"] == ("failed", "no patient")
    assert found["twice.png"] == ("skipped", "duplicated row")
    assert found["torn.png"] == ("failed", "its rows contradict each other")
    assert found[f"{url}/images/extra.png"] == ("skipped", "no row in the table")
    assert found[f"{url}/other/{NAMES[0]}"][1].startswith(f"'{url}/images/{NAMES[0]}' has the same")
    assert found["gone19.png"] == ("skipped", "in the table, but no such image")
    assert "gone20.png" not in found
    assert found[f"{url}/Data_Entry_2017.csv"][1].startswith("5 more rows")


def pack(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(f"images/{name}")
            entry.size = len(name)
            archive.addfile(entry, BytesIO(name.encode()))


def test_archives_give_the_same_images_as_what_they_hold(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    url = write_set(tmp_path / "set", table_text(), NAMES[:1])
    pack(tmp_path / "set" / "images_001.tar.gz", [*NAMES[:3], "extra.png"])
    pack(tmp_path / "set" / "images_002.tar.gz", NAMES[3:])
    pack(tmp_path / "set" / "lists.tar.gz", ["no.png"])  # no archive of images
    (tmp_path / "set" / "images_003.tar.gz").write_bytes(b"half a download")
    listing = list_chestxray14(url, scratch=scratch)
    assert [image.image_id for image in listing.images] == NAMES
    assert listing.images[0].public_name == f"{url}/images/{NAMES[0]}"
    for image, archive in zip(listing.images[1:], (1, 1, 2), strict=True):
        place = f"{url}/images_00{archive}.tar.gz"
        assert image.url == place
        assert image.public_name == f"{place}/images/{image.image_id}"
        assert read_source(image, scratch) == image.image_id.encode()
    found = {entry.item: (entry.state, entry.reason) for entry in listing.rejected}
    assert found[f"{url}/images_001.tar.gz"][1].startswith("1 of its 4 images lie elsewhere")
    assert found[f"{url}/images_001.tar.gz/images/extra.png"][1] == "no row in the table"
    assert found[f"{url}/images_003.tar.gz"][0] == "failed"
    # Where it lies unpacked beside itself, an archive is not looked into.
    (tmp_path / "set" / "images_002").mkdir()
    (tmp_path / "set" / "images_002" / NAMES[3]).write_bytes(b"unpacked")
    assert read_source(list_chestxray14(url, scratch=scratch).images[3]) == b"unpacked"


BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    "00000001_001.png,Mass,10.5,20,30,40.25,,,\n"
    "00000001_001.png,Infiltrate,1,2,3,4,,,\n"
    "00000077_000.png,Nodule,1,2,3,4\n"
    "00000003_000.png,Hernia,1,2,x,4\n"
    "00000003_000.png,Erika,1,2,3,4\n"
)


def test_boxes_of_findings_become_a_column(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", table_text())
    (tmp_path / "set" / "BBox_List_2017.csv.gz").write_bytes(gzip.compress(BOXES.encode()))
    listing = list_chestxray14(f"{url}/images", table_url=f"{url}/Data_Entry_2017.csv")
    boxes = [str(image.columns["boxes_yxhw"]) for image in listing.images]
    assert boxes[0] == boxes[2] == boxes[3] == ""
    assert json.loads(boxes[1]) == [
        ["Mass", 20.0, 10.5, 40.25, 30.0],
        ["Infiltration", 2.0, 1.0, 4.0, 3.0],
    ]
    bad = [entry.item for entry in listing.rejected if entry.reason == "not a box"]
    assert [item.rpartition(", ")[2] for item in bad] == ["line 5", "line 6"]
    assert any("1 images have boxes" in note for note in listing.notes)
    (tmp_path / "set" / "BBox_List_2017.csv.gz").write_bytes(b"a,b\n")
    with pytest.raises(SourceError, match="not the list of boxes"):
        list_chestxray14(url)


def test_the_real_boxes_are_read(shared_data: Path) -> None:
    boxes, rejected = read_boxes(str(shared_data / "nih" / "BBox_List_2017.csv.gz"))
    assert (len(boxes), len(rejected)) == (880, 0)
    found = [box for text in boxes.values() for box in json.loads(text)]
    assert len(found) == 984
    assert Counter(finding for finding, *_ in found)["Infiltration"] == 123
    assert all(y >= 0 and y + height <= 1025 for _, y, _, height, _ in found)


def test_what_cannot_be_a_batch_is_one_error(tmp_path: Path) -> None:
    url = write_set(tmp_path / "a", "path,label\na.png,0\n")
    with pytest.raises(SourceError, match="no column for image and findings and patient and view"):
        list_chestxray14(url)
    (tmp_path / "a" / "Data_Entry_2017.csv").unlink()
    with pytest.raises(SourceError, match=r"no Data_Entry_2017_v2020\.csv or Data_Entry_2017\.csv"):
        list_chestxray14(url)
    url = write_set(tmp_path / "b", table_text(), ["else.png"])
    with pytest.raises(SourceError, match="none of its 4 rows gives one of 1 images"):
        list_chestxray14(url)
    url = write_set(tmp_path / "c", table_text(), [])
    with pytest.raises(SourceError, match=r"no image among 1 files.*archives"):
        list_chestxray14(url)


def test_the_later_table_is_found_gzipped_in_the_parent_of_a_prefix(store_url: str) -> None:
    root = f"{store_url}/nih"
    for name in NAMES:
        write_bytes(f"{root}/images_001/images/{name}", b"x")
    write_bytes(f"{root}/Data_Entry_2017.csv", b"not read")
    packed = gzip.compress(table_text(head=HEAD_2020).encode())
    write_bytes(f"{root}/Data_Entry_2017_v2020.csv.gz", packed)
    for url in (root, f"{root}/images_001"):
        listing = list_chestxray14(url)
        assert [image.image_id for image in listing.images] == NAMES
        assert listing.images[0].url == f"{plain_url(root)}/images_001/images/{NAMES[0]}"


def test_the_real_table_with_a_few_of_its_images(shared_data: Path) -> None:
    table = shared_data / "nih" / "Data_Entry_2017_v2020.csv.gz"
    listing = list_chestxray14(str(shared_data / "nih64"), table_url=str(table))
    assert Counter(int(image.label) for image in listing.images) == {0: 326, 1: 361}
    assert Counter(image.columns["view_position"] for image in listing.images) == {
        "PA": 408,
        "AP": 279,
    }
    assert {str(image.columns["sex"]) for image in listing.images} == {"F", "M"}
    assert all(0 < int(image.columns["age_years"]) < 100 for image in listing.images)
    assert len(listing.rejected) == 21
    # 112,120 rows less 687 images less 20 named.
    assert listing.rejected[-1].reason.startswith("111413 more rows")
