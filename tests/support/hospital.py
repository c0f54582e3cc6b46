"""Radiographs of a hospital that name persons wherever a file, a header or a table can.

`PLANTED` are the words that must not get out. All of them are in what is written here, which
`read_folder` shows: whoever looks for them elsewhere knows that they can be found.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.store.dataset import open_dataset
from tests.support.made.chestxray14 import table_text
from tests.support.made.dicom import make_dicom, write_dicom

NAME, NUMBER, BORN, CLINIC = "MUSTERFRAU^WALPURGIS", "HN-4711", "19580312", "Musterklinik"
STUDY_UID = "1.2.840.99.7"
PLANTED = ("musterfrau", "walpurgis", "hn-4711", BORN, "1958-03-12", STUDY_UID, "musterklinik")
# Of the films and PNGs alike, one a patient: normals to train on, then both kinds.
SPLITS = ("train",) * 6 + ("validation",) * 4 + ("test",) * 4
LABELS = (0,) * 8 + (1, 1) + (0, 0, 1, 1)


def make_film(number: int) -> Dataset:
    """A film of a patient of its own, who is named in plain, nested and private elements."""
    film = make_dicom(
        paint(number).astype(np.uint16) * 16,
        bits_stored=12,
        SOPInstanceUID=f"{STUDY_UID}.{number}",
        StudyInstanceUID=f"{STUDY_UID}.{number}.1",
        PatientName=NAME,
        PatientID=f"{NUMBER}-{number}",
        PatientBirthDate=BORN,
        StudyDate=BORN,
        AcquisitionDateTime=BORN,
        InstitutionName=CLINIC,
        ImageComments=f"{NAME} {CLINIC}",
        StationName=NUMBER,
        ViewPosition="PA",
    )
    inner = Dataset()
    inner.PatientName, inner.PatientID, inner.StudyDate = NAME, NUMBER, BORN
    inner.ReferencedSOPInstanceUID = f"{STUDY_UID}.99"
    inner.private_block(0x0021, CLINIC, create=True).add_new(1, "LO", NAME)
    outer = Dataset()
    outer.RequestAttributesSequence = Sequence([inner])
    film.ReferencedStudySequence = Sequence([outer])
    block = film.private_block(0x0019, f"ACME {NUMBER}", create=True)
    block.add_new(1, "PN", NAME)
    block.add_new(2, "SQ", Sequence([inner]))
    return film


def paint(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture, uint8 (40, 46), unlike those of other numbers."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:40, 0:46]
    wave = 120 + 80 * np.sin(rng.uniform(0.1, 0.6) * y + rng.uniform(0.1, 0.6) * x)
    return np.asarray(wave + rng.uniform(0, 50, wave.shape), np.uint8)


def write_films(folder: Path) -> Path:
    """DICOM files, some of which fail, and `labels.csv`."""
    place = folder / f"MUSTERFRAU_WALPURGIS {BORN}"
    place.mkdir(parents=True)
    rows = ["path,label,split,patient"]
    for number, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True)):
        path = place / f"Walpurgis {NUMBER} {number}.dcm"
        path.write_bytes(write_dicom(make_film(number)))
        rows.append(f"{place.name}/{path.name},{label},{split},{NAME}")
    colour = make_film(20)
    colour.PhotometricInterpretation = "MUSTERFRAU"
    (place / "Walpurgis 20.dcm").write_bytes(write_dicom(colour))
    (place / "Walpurgis 21.dcm").write_bytes(write_dicom(make_film(21))[:-300])
    (place / "Walpurgis 22.dcm").write_bytes(NAME.encode() * 99)
    rows.append(f"Walpurgis of {CLINIC},0,train,{NUMBER}")
    rows.append(f"{place.name}/Walpurgis {NUMBER} 0.dcm,{NAME},,")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_pngs(folder: Path) -> Path:
    """PNGs under a table in ChestX-ray14's form, some of which fail."""
    place = folder / f"MUSTERFRAU WALPURGIS {BORN}"
    place.mkdir(parents=True)
    comment = PngInfo()
    comment.add_text("Comment", f"{NAME} {BORN[:4]}-{BORN[4:6]}-{BORN[6:]} {STUDY_UID}")
    rows: list[tuple[str, ...]] = []
    for number, label in enumerate(LABELS):
        name = f"Walpurgis_{BORN}_{number}.png"
        Image.fromarray(paint(number)).save(place / name, pnginfo=comment)
        finding = "Mass" if label else "No Finding"
        rows.append((name, finding, "0", f"{NUMBER}/{number}", "58", "F", "PA"))
    rows[4] = (*rows[4][:4], NAME, "F", CLINIC)
    rows.append(("../Walpurgis.png", *rows[0][1:]))
    rows.append((f"{CLINIC}.png", *rows[0][1:]))
    (place / f"Walpurgis_{BORN}_3.png").write_text(NAME)
    (place / "unlisted Walpurgis.png").write_text(NAME)
    (place / "Data_Entry_2017.csv").write_text(table_text(rows))
    return folder


def find_planted(*texts: str) -> set[str]:
    """Those of the planted words that stand somewhere in the texts."""
    return {word for word in PLANTED if any(word in text.lower() for text in texts)}


def read_folder(folder: Path) -> str:
    """Names and contents of all files, and what is compressed in them uncompressed."""
    return "\n".join(
        text
        for path in sorted(folder.rglob("*"))
        for text in (str(path.relative_to(folder)), *([_read(path)] if path.is_file() else []))
    )


def _read(path: Path) -> str:
    data = path.read_bytes()
    plain = data.decode("latin-1")
    if data.startswith(b"SQLite format 3"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return plain + "\n".join(database.iterdump())
    if path.suffix == ".parquet":
        return plain + repr(pq.read_table(path).to_pydict())
    if path.name == "zarr.json" and "parts_table" in json.loads(data).get("attributes", {}):
        dataset = open_dataset(str(path.parent))
        columns = [repr(dataset.column(name).tolist()) for name in dataset.column_names]
        return "\n".join([plain, *columns, repr(dataset.parts), repr(dataset.read_reasons())])
    return plain
