"""Scores of tiles to scores of slides, and to GeoJSON that QuPath opens over the slide."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.schema import Dataset
from pipeline.tiling import measure_tile_extent_yx
from training.cases import heatmap_name
from training.scores import RankedScores, encode_csv

STRONGEST_SHARE: Final = 0.01
"""Of a slide's tiles, those whose mean is its score: a small lesion counts, one odd tile less."""
_LISTED_TILES: Final = 2000
_COLOR: Final = [230, 159, 0]  # orange of a palette that reads without colour vision


def is_of_slides(dataset: Dataset) -> bool:
    """Whether the images are tiles with a place on a slide."""
    return {"origin_yx", "mpp_yx"} <= set(dataset.column_names)


def tabulate_slides(scored: RankedScores) -> pa.Table:
    """A row a slide, the strangest first.

    Returns:
        `group_id`; `slide_score`, the mean of the strongest hundredth of its tiles and at least
        of one; `tile_count`, `anomalous_count`.
    """
    rows: list[dict[str, Any]] = []
    groups = scored.group_id.astype(str)
    for group in np.unique(groups):
        inside = groups == group
        scores = scored.prediction.anomaly_score[inside]  # ranked: the strongest come first
        count = max(1, round(STRONGEST_SHARE * len(scores)))
        rows.append(
            {
                "group_id": str(group),
                "slide_score": float(scores[:count].mean()),
                "tile_count": len(scores),
                "anomalous_count": int(scored.prediction.is_anomalous[inside].sum()),
            }
        )
    rows.sort(key=lambda row: (-row["slide_score"], row["group_id"]))
    return pa.Table.from_pylist(rows)


def draw_slides(dataset: Dataset, scored: RankedScores) -> dict[str, bytes]:
    """Files for slides: their table, and for each a GeoJSON of its tiles over the threshold.

    QuPath takes the GeoJSON by dragging it onto the slide. Coordinates are (x, y) in level-0
    pixels of the file.

    Args:
        dataset: Of tiles.
        scored: Ranked.

    Returns:
        File name -> content: `slides.csv`, `slides/NAME.geojson`.
    """
    files = {"slides.csv": encode_csv(tabulate_slides(scored))}
    parameters = dataset.attributes["parameters"]
    origins, mpps = dataset.column("origin_yx"), dataset.column("mpp_yx")
    groups = scored.group_id.astype(str)
    for group in np.unique(groups):
        places = np.flatnonzero((groups == group) & scored.prediction.is_anomalous)[:_LISTED_TILES]
        features = []
        for place in places.tolist():
            row = int(scored.rows[place])
            extent = measure_tile_extent_yx(
                tuple(mpps[row].tolist()), parameters["mpp_um"], parameters["tile_size_px"]
            )
            features.append(_draw_tile(origins[row].tolist(), extent, scored, place))
        whole = {"type": "FeatureCollection", "features": features}
        name = heatmap_name(str(group)).removesuffix(".png")
        files[f"slides/{name}.geojson"] = (json.dumps(whole, indent=1) + "\n").encode()
    return files


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
