"""Stains as a setting of the dataset: fitted once a slide, applied as read, flagged where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.records import Slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.fit import decode_stains, encode_stains, fit_stains
from pipeline.slides.stain.normalise import StainFit, StainMethod, Stains, normalise_stains
from pipeline.store.dataset import Dataset
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    ingest_made,
    list_slide,
    paint_tissue,
    read_tiles,
    write_pyramid,
    write_slide,
)


def write_stained(path: Path) -> Slide:
    """Tissue of two stains by Beer and Lambert, in other places in other amounts."""
    rng = np.random.default_rng(5)
    pixels = paint_tissue(SHAPE, [])
    for top, left, bottom, right in BOXES:
        amounts = rng.uniform(0.1, 1.2, (bottom - top, right - left, 2))
        density = amounts @ np.array([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78]])
        pixels[top:bottom, left:right] = 243 * np.exp(-density)
    return list_slide(write_pyramid(path, pixels))


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_tiles_are_normalised_by_one_fit_a_slide(tmp_path: Path, method: StainMethod) -> None:
    slide = write_stained(tmp_path / "a.tif")
    plain = _ingest(tmp_path / "plain", slide, SETTINGS)
    dataset = _ingest(tmp_path / "out", slide, SETTINGS.model_copy(update={"stain": method}))
    assert set(dataset.column("stain_state")) == {"normalised"}
    (text,) = set(dataset.column("stain_fit"))
    raw = plain.read_images(0, plain.image_count)
    # 42 tiles, fewer than a fit looks at: it has seen them all.
    fit = fit_stains(raw, method, seed=0)
    assert decode_stains(text) == fit.stains
    found = dataset.read_images(0, dataset.image_count)
    np.testing.assert_array_equal(found, normalise_stains(raw, fit))
    assert (found != raw).any()
    np.testing.assert_array_equal(dataset.column("saturation"), plain.column("saturation"))
    assert set(plain.column("stain_state")) == {"unchanged"}


def _ingest(folder: Path, slide: Slide, settings: SlideSettings) -> Dataset:
    return ingest_made(folder, [slide], settings)[1]


def test_a_slide_of_one_colour_is_left_and_flagged(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"stain": "macenko"})
    flat = list_slide(write_slide(tmp_path, "flat"))
    slides = [flat, write_stained(tmp_path / "good.tif")]
    report, dataset = ingest_made(tmp_path / "out", slides, settings)
    is_flat = dataset.column("group_id") == "flat"
    assert set(dataset.column("stain_state")[is_flat]) == {"degenerate"}
    assert set(dataset.column("stain_state")[~is_flat]) == {"normalised"}
    notes = {Path(entry.item).stem: entry for entry in report.manifest}
    assert notes["flat"].state == "done"
    assert "stains left as they are" in notes["flat"].reason
    assert notes["good"].reason == ""
    plain, _, _ = read_tiles(Path(flat.url), dataset.column("origin_yx")[is_flat].tolist())
    images = dataset.read_images(0, dataset.image_count)
    np.testing.assert_array_equal(images[is_flat], plain)


def test_stains_survive_their_column() -> None:
    stains = Stains((0.65, 0.7, 0.29), (0.27, 0.57, 0.78), (1.25, 0.1))
    assert decode_stains(encode_stains(StainFit("macenko", stains))) == stains
    assert encode_stains(StainFit("macenko", None, "one stain")) == encode_stains(None) == ""


def test_tiles_are_read_at_each_slides_own_mpp(tmp_path: Path) -> None:
    pixels = paint_tissue(SHAPE, [(0, 0, *SHAPE)])
    pixels -= np.random.default_rng(4).integers(0, 60, pixels.shape, dtype=np.uint8)
    by_table = {"half": (0.5, 0.5), "quarter": (0.25, 0.25)}
    own = {"tall": (0.25, 0.5), "wide": (0.5, 0.25)}
    slides = [
        list_slide(write_pyramid(tmp_path / f"{name}.tif", pixels, mpp_yx=own.get(name)))
        for name in (*by_table, *own)
    ]
    slides = [
        replace(slide, mpp_um=by_table[slide.slide_id][0] if slide.slide_id in by_table else None)
        for slide in slides
    ]
    report, dataset = ingest_made(tmp_path / "out", slides)
    assert not report.failures
    assert dataset.column("readable").all()
    images = dataset.read_images(0, dataset.image_count)
    columns = {name: dataset.column(name) for name in ("slide_id", "origin_yx")}
    mpp_yx_um = np.stack([dataset.column("mpp_y_um"), dataset.column("mpp_x_um")], axis=1)
    for name, mpp_yx in {**by_table, **own}.items():
        is_own = columns["slide_id"] == name
        source = "user table" if name in by_table else "TIFF resolution tags"
        assert set(dataset.column("mpp_source")[is_own]) == {source}
        assert (mpp_yx_um[is_own] == mpp_yx).all()
        down, across = round(1 / mpp_yx[0]), round(1 / mpp_yx[1])
        assert is_own.sum() == (SHAPE[0] // (32 * down)) * (SHAPE[1] // (32 * across))
        for image, (y, x) in zip(images[is_own], columns["origin_yx"][is_own], strict=True):
            region = pixels[y : y + 32 * down, x : x + 32 * across]
            expected = region.reshape(32, down, 32, across, 3).mean((1, 3))
            assert np.abs(image - expected).max() <= 0.5
