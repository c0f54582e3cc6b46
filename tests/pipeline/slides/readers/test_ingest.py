"""Slides of other formats than OpenSlide's become tiles like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from tests.support.made.ome_slides import write_ome
from tests.support.made.slides import BOXES, SETTINGS, SHAPE, paint_tissue

FALLBACK = SETTINGS.model_copy(update={"mpp_fallback_um": 0.5})


def test_ome_and_plain_tiff_of_a_folder_become_tiles(tmp_path: Path) -> None:
    pixels = paint_tissue(SHAPE, BOXES)
    (tmp_path / "in").mkdir()
    write_ome(tmp_path / "in" / "a.ome.tif", pixels)
    tifffile.imwrite(tmp_path / "in" / "b.tif", pixels, photometric="rgb", metadata=None)
    Image.fromarray(pixels[::8, ::8]).save(tmp_path / "in" / "preview.jpg")
    tifffile.imwrite(tmp_path / "in" / "grey.tif", pixels[..., 0], metadata=None)
    listing = list_slides(str(tmp_path / "in"))
    report = ingest_slides(str(tmp_path / "out"), listing, FALLBACK, map_serially)
    states = {Path(entry.item).name: entry.state for entry in report.manifest}
    taken = {"a.ome.tif": "done", "b.tif": "done", "grey.tif": "failed"}
    assert states == {**taken, "*.jpg": "skipped"}
    images = open_dataset(report.url).read_images(0, 9)
    is_tissue = (images == (205, 120, 170)).all(axis=-1)  # some tiles lie across its edge
    assert (images[~is_tissue] == 243).all()
    assert is_tissue.mean() > FALLBACK.min_tissue_fraction


def test_a_picture_is_a_slide_where_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(paint_tissue(SHAPE, BOXES)).save(path)
    report = ingest_slides(str(tmp_path / "out"), list_slides(str(path)), FALLBACK, map_serially)
    assert [entry.state for entry in report.manifest] == ["done"]
    images = open_dataset(report.url).read_images(0, 9)
    assert np.array_equal(np.unique(images.reshape(-1, 3), axis=0), [(205, 120, 170)])
