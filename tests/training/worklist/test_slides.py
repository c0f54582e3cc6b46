"""Scores of slides from those of their tiles, and where QuPath draws the strange ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.store.dataset import Dataset
from tests.support.written import Columns, write_dataset
from training.scoring.loaded_model import Prediction
from training.scoring.table import RankedScores
from training.worklist.slides import draw_heatmap, draw_slides, is_of_slides, tabulate_slides


def make_ranked() -> RankedScores:
    """250 tiles: of slide_b 50, two of them the strangest; of slide_a 200, all alike but one."""
    group = np.array(["slide_b"] * 2 + ["slide_a"] * 200 + ["slide_b"] * 48, object)
    scores = np.concatenate([[9.0, 8.0, 5.0], np.full(199, 3.0), np.full(48, 1.0)])
    count = len(group)
    rows = np.empty(count, np.int64)
    rows[group == "slide_a"] = np.arange(200)[::-1]
    rows[group == "slide_b"] = np.arange(200, 250)[::-1]
    return RankedScores(
        rows,
        np.full(count, -1, np.int8),
        np.full(count, "2026-05-04", "datetime64[us]"),
        Prediction(scores.astype(np.float32), 10 * scores, scores > 4, scores[:, None]),
        *(np.empty(0, object) for _ in range(3)),  # no name is held
    )


def make_dataset(url: str, columns: Columns, *, mpp_yx_um: tuple[float, float] | None) -> Dataset:
    """250 tiles in parts of 200 and 50, which are slides of one patient if they have um/px."""
    tiles = np.array([f"tile-{row}" for row in range(250)], object)
    made = write_dataset(
        url,
        {"image_id": tiles, **columns},
        lambda rows, _: [None] * len(rows["image_id"]),
        image_shape=(2, 2, 1),
        part_images=200,
        parameters={"mpp_um": 1.0, "tile_size_px": 64},
    )
    if mpp_yx_um is None:
        return made
    facts = dict(zip(("mpp_y_um", "mpp_x_um"), mpp_yx_um, strict=True))
    names = zip(made.parts, ("slide_a", "slide_b"), strict=True)
    return replace(
        made,
        parts=tuple(replace(p, name=name, group_id="patient", facts=facts) for p, name in names),
    )


def test_a_slide_is_as_strange_as_the_strongest_hundredth_of_its_tiles() -> None:
    dataset = make_dataset("memory://slides/table", {}, mpp_yx_um=(0.25, 0.5))
    rows = tabulate_slides(dataset, make_ranked()).to_pylist()
    assert [row["slide_id"] for row in rows] == ["slide_b", "slide_a"]
    assert {row["group_id"] for row in rows} == {"patient"}  # whose slides are told apart
    assert rows[0]["slide_score"] == pytest.approx(9.0)  # of 50 tiles one
    assert rows[1]["slide_score"] == pytest.approx((5 + 3) / 2)  # of 200 two
    assert [row["tile_count"] for row in rows] == [50, 200]
    assert [row["anomalous_count"] for row in rows] == [2, 1]


def test_geojson_lies_where_the_tiles_lie() -> None:
    scored = make_ranked()
    origins = np.stack([np.arange(250) * 7, np.arange(250) * 100], axis=1)
    columns = {"origin_yx": origins}
    dataset = make_dataset("memory://slides/tiles", columns, mpp_yx_um=(0.25, 0.5))
    assert is_of_slides(dataset)
    assert not is_of_slides(make_dataset("memory://slides/images", columns, mpp_yx_um=None))
    files = dict(draw_slides(dataset, scored, [1.0, 2.0]))
    assert files["slides.csv"].decode().splitlines()[0] == (
        '"slide_id","group_id","slide_score","tile_count","anomalous_count"'
    )
    (name,) = (name for name in files if re.fullmatch(r"slides/slide_b-.*\.geojson", name))
    whole = json.loads(files[name])
    assert (whole["type"], len(whole["features"])) == ("FeatureCollection", 2)
    first = whole["features"][0]  # row 249 of the dataset; 256 px high, 128 px wide on level 0
    (ring,) = first["geometry"]["coordinates"]
    x, y = 24900, 1743
    assert ring == [[x, y], [x + 128, y], [x + 128, y + 256], [x, y + 256], [x, y]]
    assert first["properties"]["measurements"] == {"anomaly_score": 9.0, "percentile": 90.0}
    assert first["properties"]["name"] == "rank 1"
    assert files[name.replace(".geojson", ".png")].startswith(b"\x89PNG")


def test_the_heatmap_of_a_slide_shows_where_it_is_strange() -> None:
    origins = np.array([[0, 0], [256, 384], [256, 256], [300, 400]])
    scores = np.array([1.0, 9.0, 3.0, 4.0], np.float32)
    data = draw_heatmap(origins, (256, 128), scores, [1.0, 2.0, 6.0])
    drawn = np.asarray(Image.open(BytesIO(data)).convert("RGBA"))
    assert drawn.shape == (512, 1024, 4)  # two tiles high, four wide
    opacity = drawn[128::256, 128::256, 3]
    assert opacity[0].tolist() == [0, 0, 0, 0]
    assert opacity[1, 3] > opacity[1, 2] > opacity[1, 0] == 0


def test_geojson_counts_from_the_scanned_part_as_qupath_does() -> None:
    columns = {"origin_yx": np.stack([np.arange(250) * 7, np.arange(250) * 100], axis=1)}
    whole = make_dataset("memory://slides/bounds", columns, mpp_yx_um=(0.25, 0.5))
    bounds = {"bounds_y_px": 300, "bounds_x_px": 1100}
    parts = tuple(replace(part, facts={**part.facts, **bounds}) for part in whole.parts)
    files = dict(draw_slides(replace(whole, parts=parts), make_ranked(), [1.0, 2.0]))
    (name,) = (name for name in files if re.fullmatch(r"slides/slide_b-.*\.geojson", name))
    (ring,) = json.loads(files[name])["features"][0]["geometry"]["coordinates"]
    assert ring[0] == [24900 - 1100, 1743 - 300]  # of the tile at y 1743, x 24900
