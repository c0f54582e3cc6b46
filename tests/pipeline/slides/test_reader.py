from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.plan import read_all
from pipeline.ingest.run import ingest
from pipeline.runtime.engines import map_serially
from pipeline.slides.reader import make_tile_reader
from pipeline.slides.settings import SlideSettings
from pipeline.store.dataset import open_dataset
from tests.support.made import jpeg_slides as made_jpeg_slides
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    corrupt_tile,
    expect_balance,
    list_slide,
    paint_tissue,
    plan_of,
    write_pyramid,
    write_slide,
)


def test_dataset_holds_the_pixels_of_the_slide(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels = paint_tissue(SHAPE, BOXES)
    pixels[::2, ::2] -= rng.integers(0, 40, (320, 576, 3), dtype=np.uint8)
    slide = list_slide(write_pyramid(tmp_path / "a.tif", pixels))
    plan = plan_of([slide])
    ingest(str(tmp_path / "dataset"), plan, make_tile_reader(SETTINGS), map_serially)
    dataset = open_dataset(str(tmp_path / "dataset"))
    images = dataset.read_images(0, dataset.image_count)
    assert images.shape == (42, 32, 32, 3)
    for image, (y, x) in zip(images, dataset.column("origin_yx").tolist(), strict=True):
        expected = pixels[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(image - expected).max() <= 0.5
    assert dataset.column("mpp_yx")[7].tolist() == [0.5, 0.5]
    assert set(dataset.column("mpp_source")) == {"TIFF resolution tags"}
    assert dataset.column("readable").all()
    assert (dataset.column("laplacian_variance") > 0).all()
    assert dataset.column("image_id")[0] == "a_y64_x64"


def test_tiles_come_from_the_coarsest_level_that_suffices(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    slide = list_slide(path)
    settings = SETTINGS.model_copy(update={"mpp_um": 2.0, "tile_size_px": 16})
    plan = plan_of([slide], settings)
    for row in range(10):
        for column in range(18):
            corrupt_tile(path, row, column)  # level 0, which must not be needed
    changed = replace(slide, version=list_slide(path).version)
    rows = {"origin_yx": plan.columns["origin_yx"]}
    _, read = read_all(
        make_tile_reader(settings), changed, rows, (plan.spec.image_count, 16, 16, 3)
    )
    assert read.reasons == (None,) * plan.spec.image_count


def test_a_corrupt_tile_is_unreadable_in_the_account_and_never_painted(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    corrupt_tile(path, row=1, column=2)  # y 64 to 128, x 128 to 192: one tile
    plan = plan_of([list_slide(path)])
    report = ingest(str(tmp_path / "dataset"), plan, make_tile_reader(SETTINGS), map_serially)
    dataset = open_dataset(str(tmp_path / "dataset"))
    lost = np.flatnonzero(~dataset.column("readable"))
    assert dataset.column("image_id")[lost].tolist() == ["a_y64_x128"]
    assert not dataset.read_images(0, dataset.image_count)[lost].any()
    assert np.isnan(dataset.column("saturation")[lost]).all()
    assert not np.isnan(np.delete(dataset.column("saturation"), lost)).any()
    coverage = dict(dataset.coverage["a"])
    assert coverage["unreadable"] == pytest.approx(32 * 32, rel=0.02)  # um^2
    expect_balance(coverage)
    (entry,) = report.manifest
    assert "1 of 42 tiles unreadable" in entry.reason


def test_a_slide_that_changes_after_the_plan_is_not_read(tmp_path: Path) -> None:
    slide = replace(list_slide(write_slide(tmp_path, "a")), version="as planned")
    with pytest.raises(SourceError, match="changed"):
        read_all(
            make_tile_reader(SETTINGS),
            slide,
            {"origin_yx": np.zeros((1, 2), np.int64)},
            (1, 32, 32, 3),
        )


def test_reader_travels_and_states_its_parameters() -> None:
    reader = make_tile_reader(SETTINGS.model_copy(update={"mpp_override_um": 0.3}))
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301  # our own bytes
    assert all(text in repr(reader) for text in ("32", "1.0", "0.3"))


def test_real_slide_end_to_end(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    settings = SlideSettings()
    plan = plan_of([list_slide(path)], settings)
    ingest(str(tmp_path / "dataset"), plan, make_tile_reader(settings), map_serially)
    dataset = open_dataset(str(tmp_path / "dataset"))
    assert dataset.image_shape == (64, 64, 3)
    assert 140 < dataset.image_count < 180
    assert dataset.column("readable").all()
    assert dataset.column("blank_fraction").mean() < 0.5
    expect_balance(dict(dataset.coverage["cmu-1-small-region"]))


def test_the_manifest_says_what_decoded_each_slide(tmp_path: Path) -> None:
    jpeg = made_jpeg_slides.write_pyramid(tmp_path / "a.tif", [(512, 768)], tile=(256, 256))
    other = made_jpeg_slides.write_pyramid(
        tmp_path / "b.tif", [(512, 768)], tile=(256, 256), compression="lzw"
    )
    settings = SETTINGS.model_copy(update={"min_tissue_fraction": 0.0})
    plan = plan_of([list_slide(jpeg), list_slide(other)], settings)
    report = ingest(str(tmp_path / "out"), plan, make_tile_reader(settings), map_serially)
    told = read_manifest(str(tmp_path / "out" / "manifest.json"))
    assert told == report.manifest
    assert {Path(entry.item).stem: dict(entry.facts) for entry in told} == {
        "a": {"decoder": "jpeg"},
        "b": {"decoder": "openslide"},
    }
