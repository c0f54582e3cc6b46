"""Secondary captures: read back as drawn, the same bytes each time, valid to an outside checker."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.dicom.export import CaptureFacts, encode_capture
from pipeline.dicom.header import BurnedInText

FACTS = CaptureFacts(
    image_id="2.25.17",
    group_id="f" * 32,
    sex="F",
    burned_in_text="possible",
    title="Anomaly heatmap",
    derivation="Stranger than 99 % of normals, größer",
    software="toys-anomaly version 3",
    made_at=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
)
PICTURE = np.random.default_rng(3).integers(0, 256, (40, 34, 3), np.uint8)


def test_a_capture_reads_back_as_it_was_drawn() -> None:
    read = pydicom.dcmread(BytesIO(encode_capture(PICTURE, FACTS)))
    np.testing.assert_array_equal(read.pixel_array, PICTURE)
    assert (read.Rows, read.Columns) == (40, 34)
    assert (read.PatientID, read.PatientSex, read.PatientName) == ("f" * 32, "F", "")
    assert read.DerivationDescription.endswith("größer")
    assert (read.ContentDate, read.InstanceCreationTime) == ("20260504", "030201")


def test_the_same_gives_the_same_bytes_and_another_image_another_uid() -> None:
    data = encode_capture(PICTURE, FACTS)
    assert encode_capture(PICTURE, FACTS) == data
    first, second = (
        pydicom.dcmread(BytesIO(encode_capture(PICTURE, facts)))
        for facts in (FACTS, replace(FACTS, image_id="2.25.18"))
    )
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID  # the same patient


@pytest.mark.parametrize(
    ("said", "expected"), [("stated", "YES"), ("denied", "NO"), ("possible", None)]
)
def test_text_in_the_image_is_neither_hidden_nor_made_up(
    said: BurnedInText, expected: str | None
) -> None:
    read = pydicom.dcmread(BytesIO(encode_capture(PICTURE, replace(FACTS, burned_in_text=said))))
    assert read.get("BurnedInAnnotation") == expected


@pytest.mark.parametrize("sex", ["F", ""])
def test_an_outside_checker_finds_no_error(tmp_path: Path, sex: str) -> None:
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("no dciodvfy: Debian's dicom3tools has it")
    file = tmp_path / "capture.dcm"
    file.write_bytes(encode_capture(PICTURE, replace(FACTS, sex=sex)))
    done = subprocess.run([checker, file], capture_output=True, text=True, check=False)
    assert "Error" not in done.stdout + done.stderr, done.stderr
    assert "SCImage" in done.stdout + done.stderr
    broken = tmp_path / "broken.dcm"  # it does find errors
    whole = pydicom.dcmread(file)
    del whole.PatientID
    whole.save_as(broken)
    done = subprocess.run([checker, broken], capture_output=True, text=True, check=False)
    assert "Error" in done.stderr
