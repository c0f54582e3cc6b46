from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.records import Label, ManifestEntry
from pipeline.runtime.engines import map_serially
from pipeline.slides.plan import plan_slides
from pipeline.slides.settings import SlideSettings
from tests.support.made.slides import (
    SETTINGS,
    SHAPE,
    list_slide,
    plan_of,
    write_asap,
    write_slide,
)
from tests.support.threads import thread_engine


@pytest.mark.parametrize(
    ("label", "shift_px", "said"),
    [(Label.ANOMALOUS, 5000.0, "outside the slide"), (Label.NORMAL, 0.0, "labelled normal")],
)
def test_an_annotation_that_contradicts_its_slide_fails_the_slide(
    tmp_path: Path, label: Label, shift_px: float, said: str
) -> None:
    outline = [(128.0 + shift_px, 64.0), (192.0 + shift_px, 64.0), (192.0 + shift_px, 128.0)]
    annotation = write_asap(tmp_path / "a.xml", [("Tumor", outline)])
    slide = list_slide(write_slide(tmp_path, "a"), label=label, annotation=annotation)
    (entry,) = plan_of([slide]).rejected
    assert entry.state == "failed"
    assert said in entry.reason
    assert "a.xml" in entry.reason


def test_one_bad_slide_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = list_slide(write_slide(tmp_path, "good"))
    torn = tmp_path / "torn.tif"
    torn.write_bytes(Path(good.url).read_bytes()[:3000])
    empty = list_slide(write_slide(tmp_path, "empty", boxes=[]))
    small = list_slide(write_slide(tmp_path, "small", boxes=[(100, 300, 130, 330)]))
    gone = replace(good, slide_id="gone", url=str(tmp_path / "gone.tif"))
    changed = replace(good, slide_id="changed", version="another")
    listed = ManifestEntry("x.xml", "skipped", "orphan")
    plan = plan_of([good, list_slide(torn), empty, small, gone, changed], rejected=(listed,))
    assert [source.slide_id for source in plan.sources] == ["good"]
    states = {Path(entry.item).stem: (entry.state, entry.reason) for entry in plan.rejected}
    assert states["x"] == ("skipped", "orphan")
    assert states["torn"][0] == states["gone"][0] == "failed"
    assert "truncated" in states["torn"][1]
    assert states["good"][0] == "failed"  # the changed one bears the same URL
    assert "changed since" in states["good"][1]
    assert states["empty"] == ("skipped", "no tissue found")
    assert states["small"][0] == "skipped"
    assert "holds enough" in states["small"][1]
    assert plan.coverage is not None
    assert plan.coverage["empty"]["tissue"] == 0
    assert plan.coverage["small"]["below_min_tissue"] > 0


def test_a_slide_too_coarse_for_the_tiles_is_refused(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    (entry,) = plan_of([slide], SETTINGS.model_copy(update={"mpp_um": 0.25})).rejected
    assert "0.5 um/px" in entry.reason
    assert "0.25 um/px" in entry.reason


def test_two_slides_of_one_id_are_refused(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    with pytest.raises(ValueError, match="make ids unique"):
        plan_of([slide, slide])


def test_splits_never_divide_a_slide_and_keep_the_official_one(tmp_path: Path) -> None:
    names = [f"normal_{number}" for number in range(5)]
    slides = [
        list_slide(write_slide(tmp_path, name), label=Label.NORMAL, split="train") for name in names
    ]
    slides.append(list_slide(write_slide(tmp_path, "test_1"), label=Label.NORMAL, split="test"))
    plan = plan_of(slides)
    of_slide = {
        name: set(plan.columns["split"][plan.columns["group_id"] == name])
        for name in [*names, "test_1"]
    }
    assert all(len(splits) == 1 for splits in of_slide.values())
    assert of_slide["test_1"] == {"test"}
    assert {split for name in names for split in of_slide[name]} == {"train", "validation"}


def test_plan_is_the_same_in_any_order_and_on_threads(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "bca"]
    expected = plan_of(slides)
    with thread_engine(3) as map_work:
        found = plan_slides(slides[::-1], SETTINGS, map_work, source="made")
    assert found.sources == expected.sources
    assert found.rejected == expected.rejected
    assert found.coverage == expected.coverage
    assert set(found.columns) == set(expected.columns)
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)


def test_a_plan_of_nothing_is_empty() -> None:
    plan = plan_of([])
    assert plan.spec.image_count == 0
    assert plan.columns["origin_yx"].shape == (0, 2)


def test_writes_a_review_picture_of_each_slide(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "ab"]
    review_url = str(tmp_path / "review")
    seen = []
    plan_slides(
        slides,
        SETTINGS,
        map_serially,
        source="made",
        review_url=review_url,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    with Image.open(tmp_path / "review" / "b.png") as picture:
        assert picture.size == (1024, round(1024 * SHAPE[0] / SHAPE[1]))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SlideSettings(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValidationError, match="not a multiple"):
        SlideSettings(shard_images=100, chunk_images=64)
    with pytest.raises(ValidationError, match="both name _2"):
        SlideSettings(lesion_groups=("Tumor", "_2"))
    with pytest.raises(ValidationError, match="lesion_groups"):
        SlideSettings(lesion_groups=())
    with pytest.raises(ValidationError):
        SlideSettings.model_validate({"tile_px": 64})


def test_slides_of_the_same_bytes_name_each_other(tmp_path: Path) -> None:
    first = write_slide(tmp_path, "first")
    for name in ("copy", "again"):
        (tmp_path / f"{name}.tif").write_bytes(first.read_bytes())
    paths = [
        first,
        *(write_slide(tmp_path, "other"), tmp_path / "again.tif", tmp_path / "copy.tif"),
    ]
    notes = plan_of([list_slide(path) for path in paths]).remarks or {}
    assert notes.keys() == {str(path) for path in paths} - {str(tmp_path / "other.tif")}
    assert (
        f"the same bytes as {tmp_path / 'copy.tif'} and 1 more"
        in notes[str(tmp_path / "again.tif")]
    )


def test_copies_of_a_slide_share_its_split(tmp_path: Path) -> None:
    slides = []
    for number in range(6):
        slide = write_slide(tmp_path, f"slide_{number}")
        copy = tmp_path / f"again_{number}.tif"
        copy.write_bytes(slide.read_bytes())
        slides += [list_slide(slide), list_slide(copy)]
    fractions = {"validation_fraction": 0.4, "test_fraction": 0.3}
    columns = plan_of(slides, SETTINGS.model_copy(update=fractions)).columns
    split_of = dict(zip(columns["group_id"], columns["split"], strict=True))
    assert len(set(split_of.values())) > 1
    assert all(split_of[f"slide_{n}"] == split_of[f"again_{n}"] for n in range(6))
