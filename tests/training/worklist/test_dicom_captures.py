"""Captures of a scoring: the heatmap lies where it belongs, and files come and go with ranks."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom

from pipeline.io import storage
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import load_version
from training.score import score_dataset
from training.worklist.dicom_captures import overlay_heatmap


def test_the_heatmap_lies_over_its_place() -> None:
    image = np.full((40, 34, 1), 90, np.uint8)
    heatmap = np.zeros((40, 34), np.float32)
    heatmap[30:38, 2:8] = 1.0
    drawn = overlay_heatmap(image, heatmap, low=0.0, high=1.0)
    assert drawn.shape == (16 * 40, 16 * 34, 3)
    assert (drawn[16 * 33, 16 * 5] > (200, 180, 30)).all()  # the scale's end, over grey
    assert (drawn[16 * 5, 16 * 30] == 90).all()


def test_the_strangest_dicom_radiographs_come_as_captures(tmp_path: Path) -> None:
    columns = {"photometric": "MONOCHROME2", "burned_in_text": "denied", "sex": "M"}
    dataset = make_dataset(str(tmp_path / "dataset"), normals=8, more=columns)
    output = str(tmp_path / "scores")
    with own_mlflow(tmp_path):
        register(dataset)
        model = load_version(NAME, "challenger")
        score_dataset(dataset.url, model, output, top_heatmaps=4)
        assert len(storage.list_objects(f"{output}/dicom")) == 4
        score_dataset(dataset.url, model, output, top_heatmaps=2)
    kept = storage.list_objects(f"{output}/dicom")
    heatmaps = storage.list_objects(f"{output}/heatmaps")
    assert [Path(it.url).stem for it in kept] == [Path(it.url).stem for it in heatmaps]
    assert len(kept) == 2
    files = [pydicom.dcmread(BytesIO(storage.read_bytes(info.url))) for info in kept]
    assert all(file.PatientSex == "M" and file.PatientID.startswith("g") for file in files)
    assert f"{NAME} version {model.version}" in files[0].DerivationDescription
