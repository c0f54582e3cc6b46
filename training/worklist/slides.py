"""Scores of slides from those of their tiles, and GeoJSON that QuPath opens over the slide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.slides.bounds import find_bounds_yx
from pipeline.slides.tiling import measure_tile_extent_yx
from pipeline.store.dataset import Dataset
from training.data.part_columns import divide_by_part
from training.scoring.table import RankedScores, encode_csv
from training.worklist.cases import heatmap_name
from training.worklist.heatmaps import encode_heatmap

TOP_SHARE: Final = 0.01
"""Share of a slide's tiles, the highest first, whose mean is its score: a small lesion counts, a
single outlier less."""
_LISTED_TILES: Final = 2000
_HEATMAP_PX: Final = 1024  # approximate length of the longer side
_COLOR: Final = [230, 159, 0]  # orange of a palette that reads without colour vision


def is_of_slides(dataset: Dataset) -> bool:
    """Whether the images are tiles with a place on a slide."""
    return {"origin_yx", "mpp_y_um", "mpp_x_um"} <= set(dataset.column_names)


def tabulate_slides(dataset: Dataset, scored: RankedScores) -> pa.Table:
    """Make a table with one row per slide, the most anomalous first.

    Args:
        dataset: Dataset of tiles, a part for each slide.
        scored: Ranked scores of the tiles.

    Returns:
        Columns `slide_id`; `group_id`, its patient where one is known; `slide_score`, the mean of
        the top 1 % of its tiles, at least one; `tile_count`; `anomalous_count`.
    """
    rows: list[dict[str, Any]] = []
    for number, inside in _list_slides(dataset, scored):
        scores = scored.prediction.anomaly_score[inside]  # ranked: the highest come first
        count = max(1, round(TOP_SHARE * len(scores)))
        rows.append(
            {
                "slide_id": dataset.parts[number].name,
                "group_id": dataset.parts[number].group_id,
                "slide_score": float(scores[:count].mean()),
                "tile_count": len(scores),
                "anomalous_count": int(scored.prediction.is_anomalous[inside].sum()),
            }
        )
    rows.sort(key=lambda row: (-row["slide_score"], row["slide_id"]))
    return pa.Table.from_pylist(rows)


def _list_slides(dataset: Dataset, scored: RankedScores) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Parts of slides, and the places of their tiles in the ranking, ascending."""
    order = np.argsort(scored.rows, kind="stable")
    for number, span in divide_by_part(dataset, scored.rows[order]):
        yield number, np.sort(order[span])


def draw_slides(
    dataset: Dataset, scored: RankedScores, reference: Sequence[float]
) -> Iterator[tuple[str, bytes]]:
    """Make the files for slides: a table, and for each a heatmap and its tiles over the threshold.

    Drag the GeoJSON onto the slide in QuPath. Coordinates are (x, y) in level-0 pixels, and count
    from the corner of the scanned part, which QuPath shows alone.

    Args:
        dataset: Dataset of tiles, a part for each slide.
        scored: Ranked scores of the tiles.
        reference: Ascending scores of normal images, which set the heatmaps' colours.

    Yields:
        File name and content: `slides.csv`, then `slides/NAME.geojson` and `slides/NAME.png` of a
        slide at a time.
    """
    yield "slides.csv", encode_csv(tabulate_slides(dataset, scored))
    parameters = dataset.attributes["parameters"]
    for number, inside in _list_slides(dataset, scored):
        part = dataset.parts[number]
        mpp_yx = float(part.facts["mpp_y_um"]), float(part.facts["mpp_x_um"])
        extent = measure_tile_extent_yx(mpp_yx, parameters["mpp_um"], parameters["tile_size_px"])
        own = scored.rows[inside] - dataset.starts[number]
        origins = dataset.open_part(number).column("origin_yx")[own]
        is_listed = scored.prediction.is_anomalous[inside]
        shown = origins[is_listed] - find_bounds_yx(part.facts)
        pairs = list(zip(shown.tolist(), inside[is_listed].tolist(), strict=True))
        features = [
            _draw_tile(origin, extent, scored, place) for origin, place in pairs[:_LISTED_TILES]
        ]
        whole = {"type": "FeatureCollection", "features": features}
        name = heatmap_name(part.name).removesuffix(".png")
        yield f"slides/{name}.geojson", (json.dumps(whole, indent=1) + "\n").encode()
        found = scored.prediction.anomaly_score[inside]
        yield f"slides/{name}.png", draw_heatmap(origins, extent, found, reference)


def draw_heatmap(
    origins_yx: NDArray[np.int64],
    extent_yx: tuple[int, int],
    scores: NDArray[np.float32],
    reference: Sequence[float],
) -> bytes:
    """Draw a slide's heatmap: one square per tile, transparent where none was scored.

    Args:
        origins_yx: int (n, 2), upper left corners (y, x) of the tiles in level-0 px.
        extent_yx: Height and width of a tile in level-0 px.
        scores: float32 (n,), scores of the tiles; the highest counts where tiles overlap.
        reference: Ascending scores of normal images; their median is drawn transparent, scores
            above all of them brightest.

    Returns:
        PNG from the slide's upper left corner to its last tile.
    """
    y, x = (origins_yx // np.asarray(extent_yx)).T
    grid = np.full((y.max() + 1, x.max() + 1), np.nan, np.float32)
    np.fmax.at(grid, (y, x), scores)
    side = max(1, _HEATMAP_PX // max(grid.shape))
    enlarged = np.repeat(np.repeat(grid, side, axis=0), side, axis=1)
    low, high = np.quantile(reference, (0.5, 1.0))
    return encode_heatmap(enlarged, low=low, high=max(high, np.nextafter(low, np.inf)))


def _draw_tile(
    origin_yx: list[int], extent_yx: tuple[int, int], scored: RankedScores, place: int
) -> dict[str, Any]:
    (y, x), (height, width) = origin_yx, extent_yx
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    found = scored.prediction
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": f"rank {place + 1}",
            "classification": {"name": "Anomalous", "color": _COLOR},
            "measurements": {
                "anomaly_score": float(found.anomaly_score[place]),
                "percentile": float(found.percentile[place]),
            },
        },
    }
