"""Lists and tables of ChestX-ray14 that somebody has edited, and hostile archives beside them."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.errors import SettingsError, SourceError
from pipeline.io.archives import list_members
from pipeline.io.storage import describe
from pipeline.records import Label
from pipeline.sources.chestxray14.experiments import read_experiment
from pipeline.sources.chestxray14.listing import list_chestxray14
from pipeline.sources.chestxray14.table import check_findings
from tests.support.made.archives import pack
from tests.support.made.chestxray14 import table_text, write_lists

WORDS = {
    "00000001_000.png": ("no finding", Label.NORMAL, "No Finding"),
    "00000002_000.png": (" Pleural thickening|MASS", Label.ANOMALOUS, "Pleural_Thickening|Mass"),
    "00000003_000.png": ("Infiltrate", Label.ANOMALOUS, "Infiltration"),
    "00000004_000.png": ("normal", Label.UNKNOWN, "normal"),
    "00000005_000.png": ("Mass|Scoliosis", Label.ANOMALOUS, "Mass|Scoliosis"),
    "00000006_000.png": ("No Finding|Scoliosis", Label.UNKNOWN, "No Finding|Scoliosis"),
}


def write_words(folder: Path, words: dict[str, str]) -> str:
    rows: list[tuple[str, ...]] = [
        (name, said, "0", str(n), "058Y", "M", "PA") for n, (name, said) in enumerate(words.items())
    ]
    (folder / "images").mkdir()
    for name in words:
        (folder / "images" / name).write_bytes(b"never read")
    (folder / "Data_Entry_2017.csv").write_text(table_text(rows))
    return str(folder)


def test_findings_are_known_however_they_are_written(tmp_path: Path) -> None:
    listing = list_chestxray14(write_words(tmp_path, {n: w[0] for n, w in WORDS.items()}))
    found = {i.image_id: (i.label, i.columns["findings"]) for i in listing.images}
    assert found == {name: (label, said) for name, (_, label, said) in WORDS.items()}
    spoken = {entry.item.partition(",")[0] for entry in listing.rejected}
    assert spoken == {f"0000000{number}_000.png" for number in (4, 5, 6)}
    assert check_findings(["pleural thickening", "infiltrate"]) == {
        "Pleural_Thickening",
        "Infiltration",
    }
    with pytest.raises(SettingsError, match="no finding 'No Finding'"):
        check_findings(["No Finding"])


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    names = [f"0000000{number}_000.png" for number in range(1, 5)]
    url = write_words(tmp_path, dict.fromkeys(names, "No Finding"))
    for list_name, named in (("train_val_list.txt", names[:2]), ("test_list.txt", names[2:])):
        (tmp_path / list_name).write_text("\r\n".join(named), "utf-8-sig")
    splits = {image.image_id: image.split for image in list_chestxray14(url).images}
    assert [splits[name] == "test" for name in names] == [False, False, True, True]


def test_the_lists_of_an_experiment_may_begin_with_a_mark(tmp_path: Path) -> None:
    url = write_lists(tmp_path)
    plain = read_experiment(url, "PA")
    for path in tmp_path.rglob("t*"):
        if path.is_file():
            path.write_text(path.read_text(), "utf-8-sig")
    assert read_experiment(url, "PA") == plain


def test_junk_in_an_archive_is_no_image(tmp_path: Path) -> None:
    url = write_words(tmp_path, {"00000001_000.png": "No Finding"})
    (tmp_path / "images" / "00000001_000.png").unlink()
    names = ("images/00000001_000.png", "images/._00000001_000.png", "__MACOSX/00000001_000.png")
    (tmp_path / "images_001.tar.gz").write_bytes(pack(dict.fromkeys(names, b"pixels")))
    (image,) = list_chestxray14(url).images
    assert image.name.endswith("images_001.tar.gz/images/00000001_000.png")


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"0000000000x\0"])
def test_a_hostile_size_is_refused_at_once(tmp_path: Path, size: bytes) -> None:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name in ("a.png", "b.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 700
            archive.addfile(entry, BytesIO(b"x" * 700))
    data = bytearray(stream.getvalue())
    header = 512 + 1024  # of the second member
    data[header + 124 : header + 136] = size
    data[header + 148 : header + 156] = b" " * 8
    total = sum(data[header : header + 512])
    data[header + 148 : header + 156] = b"%06o\0 " % total
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="not a whole tar archive"):
        list_members(describe(str(path)))
