"""The strangest images as cases of the worklist: heatmap and pictures."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

import numpy as np

from pipeline import storage
from pipeline.records import Label
from pipeline.schema import Dataset
from training.heatmaps import encode_heatmap
from training.row_scores import read_batches
from training.scores import RankedScores
from training.scoring_model import ScoringModel
from training.worklist import LISTED_CASES, Case, data_uri, picture_uri

_EMBEDDED_SIDE_PX: Final = 128  # of heatmaps in the page, which the browser enlarges smoothly
_HEATMAP_BATCH: Final = 64


def write_cases(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    *,
    top_heatmaps: int,
    batch_images: int,
) -> list[Case]:
    """Write heatmaps of the strangest under names of their own, and list the cases.

    Args:
        output_url: Heatmaps go to `heatmaps/` in it.
        dataset: That was scored.
        model: That scored it.
        scored: Ranked.
        top_heatmaps: So many of the strangest get a heatmap and pictures.
        batch_images: Images at once, at most.
    """
    low, high = model.calibration.heatmap_low, model.calibration.heatmap_high
    # Read in the order of the dataset, named by the place in the ranking.
    place_of = {int(row): place for place, row in enumerate(scored.rows[:top_heatmaps])}
    top = np.sort(scored.rows[:top_heatmaps])
    pictures = {}
    for rows, images in read_batches(dataset, top, min(batch_images, _HEATMAP_BATCH)):
        heatmaps = model.predict(images, heatmaps=True).heatmap
        assert heatmaps is not None  # noqa: S101 -- they were asked for
        for row, image, heatmap in zip(rows, images, heatmaps, strict=True):
            place = place_of[int(row)]
            url = storage.join(output_url, "heatmaps", name_heatmap(scored, place, model))
            storage.write_bytes(url, encode_heatmap(heatmap, low=low, high=high))
            small = encode_heatmap(heatmap, low=low, high=high, max_side_px=_EMBEDDED_SIDE_PX)
            pictures[place] = (picture_uri(image), data_uri("image/png", small))
    return [
        Case(
            str(scored.image_id[place]),
            str(scored.group_id[place]),
            float(scored.prediction.anomaly_score[place]),
            float(scored.prediction.percentile[place]),
            bool(scored.prediction.is_anomalous[place]),
            Label(int(scored.label[place])),
            *pictures.get(place, ("", "")),
        )
        for place in range(min(len(scored.rows), LISTED_CASES))
    ]


def remove_stale_heatmaps(
    output_url: str, scored: RankedScores, model: ScoringModel, *, top_heatmaps: int
) -> None:
    """Remove heatmaps of earlier results, once these ones are visible."""
    count = min(top_heatmaps, len(scored.rows))
    kept = {name_heatmap(scored, place, model) for place in range(count)}
    for info in storage.list_objects(storage.join(output_url, "heatmaps") + "/"):
        if storage.name_of(info.url) not in kept:
            storage.delete(info.url)


def name_heatmap(scored: RankedScores, place: int, model: ScoringModel) -> str:
    """File name of the heatmap at a place of the ranking; other bytes or versions have others."""
    return heatmap_name(
        str(scored.image_id[place]), str(scored.source_digest[place]), model.name, model.version
    )


def heatmap_name(image_id: str, *facts: str) -> str:
    """File name of an image's heatmap: readable, safe on every store, and unique.

    Args:
        image_id: Of the image.
        *facts: What else tells it apart: the source's digest, the model and its version.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._")[-80:]
    digest = sha256("\n".join((image_id, *facts)).encode()).hexdigest()
    return f"{readable}-{digest[:10]}.png"
