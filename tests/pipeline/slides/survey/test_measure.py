from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipeline.records import Label
from pipeline.slides.tiling import label_tiles
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    corrupt_tile,
    expect_balance,
    list_slide,
    paint_tissue,
    survey_made,
    visit_made,
    write_asap,
    write_pyramid,
    write_slide,
)


def test_tiles_lie_on_tissue_and_the_account_adds_up(tmp_path: Path) -> None:
    found = survey_made(list_slide(write_slide(tmp_path, "a")), SETTINGS)
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
    assert found.coverage["tiled"] == pytest.approx(island_um2, rel=0.02)  # islands are whole tiles
    assert found.coverage["tiled"] == pytest.approx(float(found.tissue_um2.sum()))


@pytest.mark.parametrize("stride_px", [16, 32, 50])
def test_the_account_adds_up_whatever_the_stride(tmp_path: Path, stride_px: int) -> None:
    settings = SETTINGS.model_copy(update={"stride_px": stride_px, "min_tissue_fraction": 0.7})
    found = survey_made(list_slide(write_slide(tmp_path, "a")), settings)
    assert len(found.origins_yx) > 0
    assert (found.origins_yx % (2 * stride_px) == 0).all()
    expect_balance(found.coverage)
    side = min(2 * stride_px, 64)  # a tile stands for what no later one covers, level-0 px
    taken = {tuple(origin) for origin in found.origins_yx.tolist()}
    painted = {True: 0.0, False: 0.0}
    for y in range(0, SHAPE[0] - 63, 2 * stride_px):
        for x in range(0, SHAPE[1] - 63, 2 * stride_px):
            painted[(y, x) in taken] += 0.25 * sum(
                max(0, min(b, y + side) - max(t, y)) * max(0, min(r, x + side) - max(le, x))
                for t, le, b, r in BOXES
            )
    rounding = 0.01 * found.coverage["tissue"]  # of the mask's corners
    assert found.coverage["tiled"] == pytest.approx(painted[True], abs=rounding)
    assert found.coverage["below_min_tissue"] == pytest.approx(painted[False], abs=rounding)


def test_a_sample_is_a_part_of_all_tiles_and_depends_on_the_seed(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    everything = {tuple(origin) for origin in survey_made(slide, SETTINGS).origins_yx.tolist()}
    samples = []
    for seed in (0, 0, 1):
        settings = SETTINGS.model_copy(update={"max_tiles_per_slide": 10, "seed": seed})
        found = survey_made(slide, settings)
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
    found = survey_made(list_slide(path, label=Label.ANOMALOUS, annotation=annotation), SETTINGS)
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
    found = survey_made(list_slide(write_slide(tmp_path, "a"), label=label), SETTINGS)
    assert set(found.label.tolist()) == {expected}
    assert np.isnan(found.lesion_fraction).all() == (label is not Label.NORMAL)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (Label.NORMAL, Label.NORMAL),
        (Label.ANOMALOUS, Label.UNKNOWN),
        (Label.UNKNOWN, Label.UNKNOWN),
    ],
)
@pytest.mark.parametrize("is_excluded", [False, True], ids=["empty", "excluded"])
def test_an_annotation_without_lesions_makes_no_slide_normal(
    tmp_path: Path, label: Label, expected: Label, is_excluded: bool
) -> None:
    outline = TWO_LESIONS[0][1]
    outlines = [("Tumor", outline), ("_2", outline)] if is_excluded else []
    annotation = write_asap(tmp_path / "a.xml", outlines)
    slide = list_slide(write_slide(tmp_path, "a"), label=label, annotation=annotation)
    (entry,) = visit_made(tmp_path / "out", slide).entries
    assert set(survey_made(slide).label.tolist()) == {expected}
    assert ("outlines no lesion" in entry.reason) == (label is not Label.NORMAL)


def test_where_nothing_is_known_tiles_are_attempted(tmp_path: Path) -> None:
    # A single level, so that the thumbnail meets the corrupt place too.
    path = write_pyramid(tmp_path / "a.tif", paint_tissue(SHAPE, [BOXES[0]]))
    corrupt_tile(path, row=7, column=13)  # on glass
    found = survey_made(list_slide(path), SETTINGS)
    assert [448, 832] in found.origins_yx.tolist()


# x 128 to 256, y 64 to 96: the upper halves of two tiles; x 192 to 256, y 128 to 192: a whole one.
TWO_LESIONS = [
    ("Tumor", ((128.0, 64.0), (256.0, 64.0), (256.0, 96.0), (128.0, 96.0))),
    ("_0", ((192.0, 128.0), (256.0, 128.0), (256.0, 192.0), (192.0, 192.0))),
]


def test_of_a_tumour_slide_lesions_alone_may_be_taken(tmp_path: Path) -> None:
    annotation = write_asap(tmp_path / "a.xml", TWO_LESIONS)
    slide = list_slide(write_slide(tmp_path, "a"), label=Label.ANOMALOUS, annotation=annotation)
    changes = {"lesion_tiles_only": True, "lesion_threshold": 0.9}
    found = survey_made(slide, SETTINGS.model_copy(update=changes))
    assert found.origins_yx.tolist() == [[128, 192]]
    assert found.coverage["outside_lesions"] > 0
    expect_balance(found.coverage)
    normal = list_slide(write_slide(tmp_path, "b"), label=Label.NORMAL)
    assert len(survey_made(normal, SETTINGS.model_copy(update=changes)).origins_yx) == 42
    blind = list_slide(write_slide(tmp_path, "c"), label=Label.ANOMALOUS)
    assert len(survey_made(blind, SETTINGS.model_copy(update=changes)).origins_yx) == 0


def test_where_not_every_lesion_is_outlined_no_tile_is_called_normal(tmp_path: Path) -> None:
    annotation = write_asap(tmp_path / "a.xml", TWO_LESIONS)
    slide = list_slide(write_slide(tmp_path, "a"), label=Label.ANOMALOUS, annotation=annotation)
    found = survey_made(replace(slide, is_partly_annotated=True))
    assert sorted(found.lesion_fraction[~np.isnan(found.lesion_fraction)].tolist()) == [0.5, 0.5, 1]
    assert Label.NORMAL not in found.label


@examples(max_examples=10)
@given(
    mpp_yx=st.sampled_from([(0.5, 0.25), (0.25, 0.5), (0.4, 0.25), (0.25, 0.25)]),
    box=st.tuples(
        st.integers(0, 40), st.integers(0, 90), st.integers(140, 300), st.integers(260, 620)
    ),
)
def test_axes_cannot_be_swapped(
    tmp_path_factory: pytest.TempPathFactory,
    mpp_yx: tuple[float, float],
    box: tuple[int, int, int, int],
) -> None:
    folder = tmp_path_factory.mktemp("slide")
    shape_yx = (330, 700)
    path = write_pyramid(folder / "a.tif", paint_tissue(shape_yx, [box]), mpp_yx=mpp_yx)
    found = survey_made(list_slide(path), SETTINGS.model_copy(update={"mask_mpp_um": 0.25}))
    height, width = round(32 / mpp_yx[0]), round(32 / mpp_yx[1])
    top, left, bottom, right = box
    expected = []
    for y in range(0, shape_yx[0] - height + 1, height):
        for x in range(0, shape_yx[1] - width + 1, width):
            down = max(0, min(bottom, y + height) - max(top, y))
            across = max(0, min(right, x + width) - max(left, x))
            share = down * across / (height * width)
            if abs(share - 0.5) < 0.05:  # the mask's edge decides
                continue
            expected.append(([y, x], share > 0.5))
    tiled = found.origins_yx.tolist()
    assert all((origin in tiled) == is_tissue for origin, is_tissue in expected)
    assert len({tuple(origin) for origin in tiled}) == len(tiled)
