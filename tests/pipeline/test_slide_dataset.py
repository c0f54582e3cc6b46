from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.engines import map_serially, thread_engine
from pipeline.errors import SourceError
from pipeline.ingest import ingest
from pipeline.plan import Plan
from pipeline.records import Label, ManifestEntry, Slide
from pipeline.schema import open_dataset
from pipeline.slide_dataset import SlideSettings, make_reader, plan_slides
from pipeline.slide_survey import label_tiles, survey_slide
from tests.pipeline.made_slides import (
    corrupt_tile,
    list_slide,
    paint_tissue,
    write_asap,
    write_pyramid,
)

SHAPE = (640, 1152)
# Two islands; the second is off every diagonal.
BOXES = [(64, 64, 320, 448), (384, 704, 576, 1088)]
SETTINGS = SlideSettings(
    tile_size_px=32, mpp_um=1.0, mask_mpp_um=4.0, shard_images=32, chunk_images=16
)


def write_slide(folder: Path, name: str, *, boxes: list[tuple[int, int, int, int]] = BOXES) -> Path:
    pixels = paint_tissue(SHAPE, boxes)
    pixels[::3, ::5] -= 20  # texture
    return write_pyramid(folder / f"{name}.tif", pixels, downsamples_yx=((1, 1), (4, 4)))


def plan_of(
    slides: list[Slide],
    settings: SlideSettings = SETTINGS,
    rejected: tuple[ManifestEntry, ...] = (),
) -> Plan:
    return plan_slides(slides, settings, map_serially, source="made", rejected=rejected)


def expect_balance(coverage: dict[str, float]) -> None:
    parts = sum(area for fate, area in coverage.items() if fate != "tissue")
    assert parts == pytest.approx(coverage["tissue"])


def test_tiles_lie_on_tissue_and_the_account_adds_up(tmp_path: Path) -> None:
    found = survey_slide(list_slide(write_slide(tmp_path, "a")), SETTINGS)
    # The first island is 4 x 6 tiles of 64 level-0 px, the second 3 x 6.
    assert len(found.origins_yx) == 24 + 18
    top_left = {(y, x) for y, x in found.origins_yx.tolist()}
    assert (64, 64) in top_left
    assert (512, 1024) in top_left
    assert (64, 704) not in top_left
    assert found.tissue_fraction.min() > 0.9
    expect_balance(found.coverage)
    island_um2 = sum((b - t) * (r - le) for t, le, b, r in BOXES) * 0.25
    assert found.coverage["tissue"] == pytest.approx(island_um2, rel=0.02)
    assert found.coverage["tiled"] == pytest.approx(float(found.tissue_um2.sum()))


@pytest.mark.parametrize("stride_px", [16, 32, 50])
def test_the_account_adds_up_whatever_the_stride(tmp_path: Path, stride_px: int) -> None:
    settings = SETTINGS.model_copy(update={"stride_px": stride_px, "min_tissue_fraction": 0.7})
    found = survey_slide(list_slide(write_slide(tmp_path, "a")), settings)
    assert len(found.origins_yx) > 0
    assert (found.origins_yx % (2 * stride_px) == 0).all()
    expect_balance(found.coverage)


def test_a_sample_is_a_part_of_all_tiles_and_depends_on_the_seed(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    everything = {tuple(origin) for origin in survey_slide(slide, SETTINGS).origins_yx.tolist()}
    samples = []
    for seed in (0, 0, 1):
        settings = SETTINGS.model_copy(update={"max_tiles_per_slide": 10, "seed": seed})
        found = survey_slide(slide, settings)
        samples.append([tuple(origin) for origin in found.origins_yx.tolist()])
        assert found.coverage["not_sampled"] > 0
        expect_balance(found.coverage)
    assert samples[0] == samples[1] != samples[2]
    assert set(samples[0]) < everything
    assert len(samples[0]) == 10


def test_labels_follow_the_lesion_share() -> None:
    share = np.array([0.0, 0.05, 0.1, 0.3, 1.0, np.nan], np.float32)
    assert label_tiles(share, 0.2).tolist() == [0, -1, -1, 1, 1, -1]


def test_lesions_fall_on_their_tiles(tmp_path: Path) -> None:
    # x 128 to 192, y 64 to 96: the upper half of one tile.
    outline = ((128.0, 64.0), (192.0, 64.0), (192.0, 96.0), (128.0, 96.0))
    annotation = write_asap(tmp_path / "a.xml", [("Tumor", outline)])
    path = write_slide(tmp_path, "a")
    found = survey_slide(list_slide(path, label=Label.ANOMALOUS, annotation=annotation), SETTINGS)
    hit = np.flatnonzero(found.lesion_fraction > 0)
    assert found.origins_yx[hit].tolist() == [[64, 128]]
    assert found.lesion_fraction[hit] == pytest.approx(0.5)
    assert found.label[hit] == Label.ANOMALOUS
    assert set(np.delete(found.label, hit)) == {Label.NORMAL}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (Label.NORMAL, Label.NORMAL),
        (Label.ANOMALOUS, Label.UNKNOWN),
        (Label.UNKNOWN, Label.UNKNOWN),
    ],
)
def test_tiles_of_a_slide_without_annotation(tmp_path: Path, label: Label, expected: Label) -> None:
    found = survey_slide(list_slide(write_slide(tmp_path, "a"), label=label), SETTINGS)
    assert set(found.label.tolist()) == {expected}
    assert np.isnan(found.lesion_fraction).all() == (label is not Label.NORMAL)


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


def test_dataset_holds_the_pixels_of_the_slide(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels = paint_tissue(SHAPE, BOXES)
    pixels[::2, ::2] -= rng.integers(0, 40, (320, 576, 3), dtype=np.uint8)
    slide = list_slide(write_pyramid(tmp_path / "a.tif", pixels))
    plan = plan_of([slide])
    ingest(str(tmp_path / "dataset"), plan, make_reader(SETTINGS), map_serially)
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
    read = make_reader(settings).read(changed, {"origin_yx": plan.columns["origin_yx"]})
    assert read.reasons == (None,) * plan.spec.image_count


def test_a_corrupt_tile_is_unreadable_in_the_account_and_never_painted(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    corrupt_tile(path, row=1, column=2)  # y 64 to 128, x 128 to 192: one tile
    plan = plan_of([list_slide(path)])
    report = ingest(str(tmp_path / "dataset"), plan, make_reader(SETTINGS), map_serially)
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


def test_where_nothing_is_known_tiles_are_attempted(tmp_path: Path) -> None:
    # A single level, so that the thumbnail meets the corrupt place too.
    path = write_pyramid(tmp_path / "a.tif", paint_tissue(SHAPE, [BOXES[0]]))
    corrupt_tile(path, row=7, column=13)  # on glass
    found = survey_slide(list_slide(path), SETTINGS)
    assert [448, 832] in found.origins_yx.tolist()


def test_a_slide_that_changes_after_the_plan_is_not_read(tmp_path: Path) -> None:
    slide = replace(list_slide(write_slide(tmp_path, "a")), version="as planned")
    with pytest.raises(SourceError, match="changed"):
        make_reader(SETTINGS).read(slide, {"origin_yx": np.zeros((1, 2), np.int64)})


def test_reader_travels_and_states_its_parameters() -> None:
    reader = make_reader(SETTINGS.model_copy(update={"mpp_override_um": 0.3}))
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301  # our own bytes
    assert all(text in repr(reader) for text in ("32", "1.0", "0.3"))


def test_writes_a_review_picture_of_each_slide(tmp_path: Path) -> None:
    slides = [list_slide(write_slide(tmp_path, name)) for name in "ab"]
    review_url = str(tmp_path / "review")
    seen = []
    plan_slides(
        slides, SETTINGS, map_serially, source="made", review_url=review_url,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]
    with Image.open(tmp_path / "review" / "b.png") as picture:
        assert picture.size == (1024, round(1024 * SHAPE[0] / SHAPE[1]))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SlideSettings(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValidationError, match="not a multiple"):
        SlideSettings(shard_images=100, chunk_images=64)
    with pytest.raises(ValidationError):
        SlideSettings.model_validate({"tile_px": 64})


def test_real_slide_end_to_end(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "slides" / "cmu-1-small-region.svs"
    settings = SlideSettings()
    plan = plan_of([list_slide(path)], settings)
    ingest(str(tmp_path / "dataset"), plan, make_reader(settings), map_serially)
    dataset = open_dataset(str(tmp_path / "dataset"))
    assert dataset.image_shape == (64, 64, 3)
    assert 140 < dataset.image_count < 180
    assert dataset.column("readable").all()
    assert dataset.column("blank_fraction").mean() < 0.5
    expect_balance(dict(dataset.coverage["cmu-1-small-region"]))
