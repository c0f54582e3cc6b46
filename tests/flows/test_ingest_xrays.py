"""The flow on DICOM and PNGs of a hospital: nothing that names a person comes out of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogHandler
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from flows.cli import launch
from pipeline.manifest import read_manifest
from pipeline.privacy import PseudonymKey
from pipeline.schema import open_dataset
from tests.pipeline.made_dicom import make_dicom, ramp, write_dicom
from tests.pipeline.sources.test_chestxray14 import table_text

pytestmark = pytest.mark.usefixtures("prefect_api")

SECRET = "c3" * 32
KEY = PseudonymKey.parse(SECRET)
PLANTED = ("musterfrau", "erika", "hn-4711", "19580312", "1.2.840.99.7", "musterklinik", SECRET)


@pytest.fixture
def prefect_api(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    monkeypatch.setenv("NORMSCOPE_PSEUDONYM_KEY", SECRET)


def make_film(number: int) -> Dataset:
    """A film with a person in its plain, nested and private elements."""
    film = make_dicom(
        ramp(0, 4095 - number), bits_stored=12, SOPInstanceUID=f"1.2.840.99.7.{number}",
        StudyInstanceUID="1.2.840.99.7", PatientName="MUSTERFRAU^ERIKA", PatientID="HN-4711",
        PatientBirthDate="19580312", StudyDate="19580312", InstitutionName="Musterklinik",
        ViewPosition="PA",
    )  # fmt: skip
    inner = Dataset()
    inner.PatientName, inner.PatientID = "MUSTERFRAU^ERIKA", "HN-4711"
    inner.ReferencedSOPInstanceUID = "1.2.840.99.7.99"
    film.ReferencedImageSequence = Sequence([inner])
    film.private_block(0x0019, "ACME HN-4711", create=True).add_new(1, "PN", "MUSTERFRAU^ERIKA")
    return film


def write_hospital(folder: Path) -> Path:
    """Films of two patients, files that fail in several ways, and a table of labels."""
    place = folder / "MUSTERFRAU_ERIKA 19580312"
    place.mkdir(parents=True)
    for number in range(6):
        (place / f"Erika HN-4711 {number}.dcm").write_bytes(write_dicom(make_film(number)))
    other = write_dicom(make_dicom(ramp(5, 9), PatientID="other", SOPInstanceUID="1.3.1"))
    (place / "Erika 6.dcm").write_bytes(other)
    (place / "Erika 7.dcm").write_bytes(write_dicom(make_film(7))[:-300])
    (place / "Erika 8.dcm").write_bytes(b"MUSTERFRAU^ERIKA" * 99)
    colour = make_film(9)
    colour.PhotometricInterpretation = "MUSTERFRAU"
    (place / "Erika 9.dcm").write_bytes(write_dicom(colour))
    rows = [f"{place.name}/Erika HN-4711 {n}.dcm,0,MUSTERFRAU" for n in range(6)]
    rows += ["Erika of Musterklinik,0,HN-4711", f"{place.name}/Erika 6.dcm,ERIKA,"]
    (folder / "labels.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    return folder


def read_prefect() -> str:
    """Everything that the server keeps: runs, parameters, logs, artifacts."""
    APILogHandler().flush()
    return asyncio.run(_ask_prefect())


async def _ask_prefect() -> str:
    async with get_client() as client:
        told: list[Any] = [
            *await client.read_flow_runs(),
            *await client.read_task_runs(),
            *await client.read_logs(),
            *await client.read_artifacts(),
        ]
    return "\n".join(each.model_dump_json() for each in told)


def find_planted(*texts: str) -> set[str]:
    text = "\n".join(texts).lower()
    return {word for word in PLANTED if word in text}


def read_everything(folder: Path) -> str:
    """Names and contents of all files, and the dataset's columns uncompressed."""
    parts = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    parts += [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    dataset = open_dataset(str(folder))
    parts += [repr(dataset.column(name).tolist()) for name in dataset.column_names]
    return "\n".join([*parts, repr(dataset.attributes), *dataset.read_commits()])


def test_nothing_of_a_person_in_dicom_leaves_the_flow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source, dataset = write_hospital(tmp_path / "films"), tmp_path / "out"
    caplog.set_level(logging.DEBUG, "pipeline")
    table = str(source / "labels.csv")
    status = launch("ingest", "xrays", str(source), str(dataset), "--table", table)
    assert status == 1  # the damaged files
    said = capfd.readouterr()
    assert "row-8" in said.out
    assert "contact_sheet.png" in "".join(said.out.split())  # lines are wrapped
    opened = open_dataset(str(dataset))
    assert opened.attributes["source"] == "dicom"
    assert KEY.pseudonym("patient", "HN-4711") in set(opened.column("group_id"))
    states = [entry.state for entry in read_manifest(f"{dataset}/manifest.json")]
    assert (states.count("done"), states.count("failed")) == (7, 4)
    kept = read_prefect()
    assert "ingest-xrays" in kept
    assert "row-8" in kept  # the artifact is among what was read
    assert find_planted(read_everything(dataset), said.out, said.err, caplog.text, kept) == set()


def test_nothing_of_a_person_in_pngs_and_tables_leaves_the_flow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "films" / "MUSTERFRAU_ERIKA"
    place.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows: list[tuple[str, ...]] = []
    for number in range(6):
        name = f"Erika_19580312_{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 31), np.uint8)).save(place / name)
        rows.append((name, "No Finding", "0", f"HN-4711/{number % 3}", "58", "F", "PA"))
    rows[4] = (*rows[4][:4], "Erika", "F", "Erika")
    rows.append(("../Erika.png", *rows[0][1:]))
    rows.append(("Musterklinik.png", *rows[0][1:]))
    (place / "Erika_19580312_3.png").write_text("ERIKA")
    (place / "unlisted Erika.png").write_text("ERIKA")
    (place.parent / "Data_Entry_2017.csv").write_text(table_text(rows))
    dataset = tmp_path / "out"
    assert launch("ingest", "xrays", str(place.parent), str(dataset)) == 1
    said = capfd.readouterr()
    states = [entry.state for entry in read_manifest(f"{dataset}/manifest.json")]
    assert (states.count("done"), states.count("failed")) == (5, 2)
    assert states.count("skipped") == 4
    kept = read_prefect()
    assert find_planted(read_everything(dataset), said.out, said.err, kept) == set()


def test_dicom_without_a_key_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NORMSCOPE_PSEUDONYM_KEY")
    source = write_hospital(tmp_path / "films")
    assert launch("ingest", "xrays", str(source), str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "NORMSCOPE_PSEUDONYM_KEY: no key" in said
    assert "openssl rand -hex 32" in said
    assert not (tmp_path / "out").exists()
