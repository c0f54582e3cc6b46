from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.io.storage import list_objects, read_bytes
from pipeline.records import Label
from pipeline.runtime.engines import map_serially
from pipeline.slides.annotations import outline_lesions, parse_annotations
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.settings import SlideSettings
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import open_dataset
from pipeline.synthetic.slides import write_slides

SHAPE = (1024, 1536)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_slides(str(folder), seed=5, normal_count=2, tumor_count=1, test_count=2, shape_yx=SHAPE)
    return folder


def test_is_read_as_camelyon16(archive: Path) -> None:
    listing = list_slides(str(archive))
    assert listing.source == "camelyon16"
    assert listing.rejected == ()
    facts = {
        slide.slide_id: (slide.label, slide.split, slide.annotation_url is not None)
        for slide in listing.slides
    }
    assert facts == {
        "training/normal/normal_001.tif": (Label.NORMAL, "train", False),
        "training/normal/normal_002.tif": (Label.NORMAL, "train", False),
        "training/tumor/tumor_001.tif": (Label.ANOMALOUS, "train", True),
        "testing/images/test_001.tif": (Label.ANOMALOUS, "test", True),
        "testing/images/test_002.tif": (Label.NORMAL, "test", False),
    }


def test_slides_are_generic_pyramids_with_mpp_in_the_tags(archive: Path) -> None:
    with OpenSlideReader(archive / "training" / "tumor" / "tumor_001.tif") as slide:
        assert slide.vendor == "generic-tiff"
        assert slide.level_shapes_yx == ((1024, 1536), (512, 768), (256, 384), (128, 192))
        assert (slide.mpp_yx, slide.mpp_source) == ((0.5, 0.5), "TIFF resolution tags")


def test_annotations_have_holes_and_lie_on_the_slide(archive: Path) -> None:
    path = archive / "training" / "lesion_annotations" / "tumor_001.xml"
    annotations = parse_annotations(path.read_bytes(), path.name)
    assert [found.group for found in annotations] == ["_0", "_0", "_2"]
    lesions = outline_lesions(annotations, item=path.name)
    left, top, right, bottom = lesions.bounds
    assert 0 < left < right < SHAPE[1]
    assert 0 < top < bottom < SHAPE[0]
    outlined = sum(found.geometry.area for found in annotations if found.group == "_0")
    assert 0 < lesions.area < outlined


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    for place, seed in (("one", 1), ("two", 1), ("three", 2)):
        write_slides(
            f"memory://synthetic-{place}",
            seed=seed,
            normal_count=1,
            tumor_count=1,
            test_count=0,
            shape_yx=(512, 768),
        )
    contents = [
        [read_bytes(info.url) for info in list_objects(f"memory://synthetic-{place}")]
        for place in ("one", "two", "three")
    ]
    assert contents[0] == contents[1]
    assert all(first != other for first, other in zip(contents[0], contents[2], strict=True))


def test_writing_again_leaves_the_files_alone(tmp_path: Path) -> None:
    arguments = {"seed": 1, "normal_count": 1, "tumor_count": 0, "test_count": 1}
    versions = []
    for _ in range(2):
        write_slides(str(tmp_path), shape_yx=(512, 768), **arguments)
        versions.append(list_objects(str(tmp_path)))
    assert versions[0] == versions[1]


def test_lesions_look_different_and_tissue_stands_on_white(archive: Path, tmp_path: Path) -> None:
    listing = list_slides(str(archive))
    report = ingest_slides(str(tmp_path / "dataset"), listing, SlideSettings(), map_serially)
    assert {entry.state for entry in report.manifest} == {"done"}
    dataset = open_dataset(str(tmp_path / "dataset"))
    images = dataset.read_images(0, dataset.image_count)
    label = dataset.column("label")
    groups, counts = np.unique(dataset.column("group_id"), return_counts=True)
    assert len(groups) == 5
    assert counts.min() >= 20
    is_full = dataset.column("tissue_fraction") > 0.99
    brightness = images.mean(axis=(1, 2, 3))
    normal, anomalous = (brightness[is_full & (label == value)] for value in (0, 1))
    assert min(len(normal), len(anomalous)) >= 10
    assert anomalous.mean() < normal.mean() - 2 * normal.std()
    assert dataset.column("pen_fraction").max() < 0.05
