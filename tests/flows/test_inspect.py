"""`normscope inspect`: what slides hold, said before anything is made of them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.cli import launch
from pipeline.io import storage
from tests.support.made.companions import write_dicom_slide
from tests.support.made.dicom import make_dicom, ramp, write_dicom
from tests.support.made.ome_slides import write_ome
from tests.support.made.slides import BOXES, SHAPE, paint_tissue, write_slide

GREEN = (0, 140, 70)


def inspect_json(
    *arguments: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, Any]]]:
    status = launch("inspect", *arguments, "--json")
    return status, json.loads(capsys.readouterr().out)


def test_a_slide_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ome(tmp_path / "a.ome.tif", paint_tissue(SHAPE, BOXES))
    status, (found,) = inspect_json(str(path), capsys=capsys)
    assert status == 0
    assert (found["item"], found["size_bytes"]) == (str(path), path.stat().st_size)
    assert (found["vendor"], found["reader"]) == ("ome-tiff", "tifffile")
    assert (found["mpp_yx"], found["mpp_source"]) == ([0.5, 0.25], "OME metadata")
    assert found["levels"][1] == {
        "shape_yx": [320, 288],
        "downsample_yx": [2.0, 4.0],
        "tile_yx": [64, 96],
    }
    assert found["associated"] == ["label"]
    assert (found["icc_profile"], found["remark"]) == ("", "")
    assert launch("inspect", str(path)) == 0
    said = capsys.readouterr().out
    for part in ("0.5 x 0.25", "label: check for names", "320 x 288", "2 x 4"):
        assert part in said
    assert "A. Person" not in said


def test_the_tiles_are_those_of_an_ingest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_slide(tmp_path, "a", boxes=[(128, 256, 384, 640)])  # 2 x 3 tiles of 64 um
    _, (found,) = inspect_json(str(path), capsys=capsys)
    assert found["tile_count"] == 6


def test_a_picture_outlines_the_tissue_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_slide(tmp_path, "a", boxes=[(64, 704, 320, 1088)])
    place = tmp_path / "out" / "a.png"
    assert launch("inspect", str(path), "--picture", str(place)) == 0
    with Image.open(place) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (569, 1024, 3)
    y, x = np.nonzero((pixels == GREEN).all(axis=-1))
    zoom = 1024 / SHAPE[1]
    edges = np.array([y.min(), x.min(), y.max(), x.max()]) / zoom
    np.testing.assert_allclose(edges, [64, 704, 320, 1088], atol=12)
    inside = pixels[round(190 * zoom), round(900 * zoom)]
    np.testing.assert_allclose(inside, (205, 120, 170), atol=12)  # no tile is drawn there


def test_slides_of_a_folder_on_s3_have_a_picture_each(
    moto_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        path = write_slide(tmp_path, name)
        storage.write_bytes(f"{moto_url}/in/site/{path.name}", path.read_bytes())
    status, found = inspect_json(f"{moto_url}/in", "--picture", f"{moto_url}/out", capsys=capsys)
    assert (status, [each["item"][-5:] for each in found]) == (0, ["a.tif", "b.tif"])
    for name in ("site_a.tif.png", "site_b.tif.png"):
        with Image.open(BytesIO(storage.read_bytes(f"{moto_url}/out/{name}"))) as picture:
            assert picture.format == "PNG"
    assert launch("inspect", f"{moto_url}/in", "--picture", "one.png") == 2
    assert "one.png is one file for 2 slides" in capsys.readouterr().err


def test_without_um_px_the_rest_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(paint_tissue(SHAPE, BOXES)).save(tmp_path / "a.png")
    status, (found,) = inspect_json(str(tmp_path / "a.png"), capsys=capsys)
    assert (status, found["mpp_yx"], found["tile_count"]) == (0, None, None)
    assert found["mpp_source"].startswith("no um/px")
    assert found["levels"][0]["shape_yx"] == list(SHAPE)
    assert launch("inspect", str(tmp_path / "a.png")) == 0
    assert "give it by --mpp-fallback-um" in capsys.readouterr().out


def test_what_cannot_be_opened_is_told_apart_from_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_slide(tmp_path, "good")
    torn = tmp_path / "torn.tif"
    torn.write_bytes(good.read_bytes()[:5000])
    status, (first, second) = inspect_json(str(good), str(torn), capsys=capsys)
    assert (status, first["item"], second["item"]) == (1, str(good), str(torn))
    assert "truncated" in second["problem"]
    assert launch("inspect", str(torn)) == 2
    assert "torn.tif" in capsys.readouterr().err
    assert launch("inspect", str(tmp_path / "absent.svs")) == 2
    assert "absent.svs" in capsys.readouterr().err


def test_radiographs_are_named_with_the_command_that_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom_slide(tmp_path / "slide", paint_tissue(SHAPE, BOXES))
    (tmp_path / "slide" / "chest.dcm").write_bytes(write_dicom(make_dicom(ramp(0, 4095))))
    assert launch("inspect", str(tmp_path / "slide")) == 1
    said = capsys.readouterr()
    assert "dicom, read by openslide" in said.out
    assert "chest.dcm, is not a whole-slide image; `normscope ingest images`" in said.err
    assert launch("inspect", str(tmp_path / "slide" / "chest.dcm")) == 2
    assert "not of a whole-slide image. `normscope ingest images`" in capsys.readouterr().err
    Image.fromarray(paint_tissue(SHAPE, BOXES)).convert("L").save(tmp_path / "chest.png")
    assert launch("inspect", str(tmp_path / "chest.png")) == 2
    assert "`normscope ingest images` reads radiographs" in capsys.readouterr().err
