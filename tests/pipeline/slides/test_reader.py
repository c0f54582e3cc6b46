from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.ingest.manifest import read_manifest
from pipeline.slides.settings import SlideSettings
from tests.support.made import jpeg_slides as made_jpeg_slides
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    corrupt_tile,
    coverage_of,
    expect_balance,
    ingest_made,
    list_slide,
    paint_tissue,
    read_tiles,
    survey_made,
    write_pyramid,
    write_slide,
)


def test_dataset_holds_the_pixels_of_the_slide(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels = paint_tissue(SHAPE, BOXES)
    pixels[::2, ::2] -= rng.integers(0, 40, (320, 576, 3), dtype=np.uint8)
    slide = list_slide(write_pyramid(tmp_path / "a.tif", pixels))
    _, dataset = ingest_made(tmp_path / "dataset", [slide])
    images = dataset.read_images(0, dataset.image_count)
    assert images.shape == (42, 32, 32, 3)
    for image, (y, x) in zip(images, dataset.column("origin_yx").tolist(), strict=True):
        expected = pixels[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(image - expected).max() <= 0.5
    assert (dataset.column("mpp_y_um")[7], dataset.column("mpp_x_um")[7]) == (0.5, 0.5)
    assert set(dataset.column("mpp_source")) == {"TIFF resolution tags"}
    assert dataset.column("readable").all()
    assert (dataset.column("laplacian_variance") > 0).all()
    assert dataset.column("image_id")[0] == "a_y64_x64"


def test_tiles_come_from_the_coarsest_level_that_suffices(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    settings = SETTINGS.model_copy(update={"mpp_um": 2.0, "tile_size_px": 16})
    origins_yx = survey_made(list_slide(path), settings).origins_yx.tolist()
    for row in range(10):
        for column in range(18):
            corrupt_tile(path, row, column)  # level 0, which must not be needed
    _, reads, _ = read_tiles(path, origins_yx, settings)
    reasons = [reason for read in reads for reason in read.reasons]
    assert reasons == [None] * len(origins_yx) != []


def test_a_corrupt_tile_is_unreadable_in_the_account_and_never_painted(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    corrupt_tile(path, row=1, column=2)  # y 64 to 128, x 128 to 192: one tile
    report, dataset = ingest_made(tmp_path / "dataset", [list_slide(path)])
    lost = np.flatnonzero(~dataset.column("readable"))
    assert dataset.column("image_id")[lost].tolist() == ["a_y64_x128"]
    assert not dataset.read_images(0, dataset.image_count)[lost].any()
    assert np.isnan(dataset.column("saturation")[lost]).all()
    assert not np.isnan(np.delete(dataset.column("saturation"), lost)).any()
    (part,) = dataset.parts
    coverage = coverage_of(part)
    assert coverage["unreadable"] == pytest.approx(32 * 32, rel=0.02)  # um^2
    assert coverage["tiled"] == pytest.approx(41 * 32 * 32, rel=0.02)
    expect_balance(coverage)
    assert (part.image_count, part.unreadable_count) == (42, 1)
    assert list(dataset.read_reasons()) == lost.tolist()
    (entry,) = report.manifest
    assert "1 of 42 tiles unreadable" in entry.reason


def test_real_slide_end_to_end(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    _, dataset = ingest_made(tmp_path / "dataset", [list_slide(path)], SlideSettings())
    assert dataset.image_shape == (64, 64, 3)
    assert 140 < dataset.image_count < 180
    assert dataset.column("readable").all()
    assert dataset.column("blank_fraction").mean() < 0.5
    expect_balance(coverage_of(dataset.parts[0]))


def test_the_manifest_says_what_decoded_each_slide(tmp_path: Path) -> None:
    jpeg = made_jpeg_slides.write_pyramid(tmp_path / "a.tif", [(512, 768)], tile=(256, 256))
    other = made_jpeg_slides.write_pyramid(
        tmp_path / "b.tif", [(512, 768)], tile=(256, 256), compression="lzw"
    )
    settings = SETTINGS.model_copy(update={"min_tissue_fraction": 0.0})
    report, _ = ingest_made(tmp_path / "out", [list_slide(jpeg), list_slide(other)], settings)
    told = read_manifest(str(tmp_path / "out" / "manifest.json"))
    assert told == report.manifest
    assert {Path(entry.item).stem: dict(entry.facts) for entry in told} == {
        "a": {"decoder": "jpeg"},
        "b": {"decoder": "openslide"},
    }
