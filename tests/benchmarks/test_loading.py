"""The loading benchmark: both ways give the same images, and its figures have their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.harness import Comparison
from benchmarks.loading import (
    DISK,
    HELD,
    REFERENCE,
    S3,
    OurLoader,
    _conclude,
    write_dataset,
    write_tiles,
)
from benchmarks.scoring import JpegFolder
from training.networks.inputs import to_tensor


def test_ours_takes_the_images_that_the_reference_takes(tmp_path: Path) -> None:
    paths, _ = write_tiles(tmp_path / "jpegs", 128)
    write_dataset(str(tmp_path / "tiles"), paths)
    folder = JpegFolder(tmp_path / "jpegs")
    theirs = torch.stack([folder[place] for place in range(len(folder))])
    ours = OurLoader(str(tmp_path / "tiles"), cache_bytes=0)
    rows, _ = ours.images.members_at(0, 128)
    assert sorted(rows) == list(range(128))
    taken = to_tensor(ours.images.read_batch(0, 128), resolution=64)
    for image, row in zip(taken, rows, strict=True):
        mirrored = [theirs[row].flip(axes) for axes in ([], [1], [2], [1, 2])]
        assert any(torch.allclose(image, each, atol=1e-6) for each in mirrored)


def test_figures_are_ratios_of_medians() -> None:
    by_clock = {REFERENCE: [10.0, 9.0, 11.0], DISK: [90.0], S3: [80.0], HELD: [200.0]}
    by_processor = {REFERENCE: [5.0], DISK: [40.0], S3: [30.0], HELD: [60.0]}
    found = _conclude(
        Comparison("clock", "images/s", by_clock, REFERENCE),
        Comparison("processor", "images/s of a core", by_processor, REFERENCE),
        "painted",
    )
    assert found.metrics == {
        "vs_reference": pytest.approx(9.0),
        "vs_reference_s3": pytest.approx(8.0),
        "vs_reference_held": pytest.approx(20.0),
        "vs_reference_by_processor": pytest.approx(8.0),
        "vs_reference_s3_by_processor": pytest.approx(6.0),
        "reference_images_per_s": 10.0,
        "disk_images_per_s": 90.0,
        "s3_images_per_s": 80.0,
        "held_images_per_s": 200.0,
    }
