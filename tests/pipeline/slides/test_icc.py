"""Colours by the ICC profile: tiles and thumbnail alike, and the dataset says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from pipeline.slides.colour import convert_to_srgb
from tests.pipeline.slides.test_colour import make_profile
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    ingest_made,
    list_slide,
    paint_tissue,
)

SRGB = SETTINGS.model_copy(update={"icc": "srgb"})


def write_profiled(path: Path, profile: bytes | None) -> Path:
    """A slide of 0.5 um/px with a profile, or without."""
    tifffile.imwrite(
        path,
        paint_tissue(SHAPE, BOXES),
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        iccprofile=profile,
        metadata=None,
    )
    return path


def test_tiles_are_converted_by_the_profile_of_their_slide(tmp_path: Path) -> None:
    profile = make_profile(1.2)
    slides = [
        list_slide(write_profiled(tmp_path / name, its))
        for name, its in {"a.tif": profile, "b.tif": None}.items()
    ]
    scanned = np.full((1, 1, 3), (205, 120, 170), np.uint8)
    converted = convert_to_srgb(scanned, profile, "a")
    assert np.abs(converted.astype(int) - scanned).max() > 20
    for settings, states, colours in (
        (SRGB, ["srgb", "no profile"], [converted, scanned]),
        (SETTINGS, ["kept", "kept"], [scanned, scanned]),
    ):
        _, dataset = ingest_made(tmp_path / settings.icc, slides, settings)
        images, half = dataset.read_images(0, dataset.image_count), dataset.image_count // 2
        assert (images[:half] == colours[0]).all()
        assert (images[half:] == colours[1]).all()
        assert list(dict.fromkeys(dataset.column("group_id"))) == ["a", "b"]
        assert [dataset.column("icc_state")[row] for row in (0, half)] == states
