"""The strangest images as cases of the worklist: heatmap, reconstruction, nearest usual images."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.io import storage
from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.scoring.detector import find_nearest
from training.scoring.kept_scores import Rows, read_batches
from training.scoring.loaded_model import ScoringModel
from training.scoring.table import RankedScores
from training.worklist.artefacts import QUALITY_NAMES, mark_artefacts
from training.worklist.dicom_captures import is_of_dicom, write_capture
from training.worklist.heatmaps import encode_heatmap
from training.worklist.page import (
    LISTED_CASES,
    Case,
    CasePictures,
    UsualImage,
    data_uri,
    picture_uri,
)

HEATMAPS: Final = "heatmaps"
CAPTURES: Final = "dicom"
# How `heatmap_name` ends, and what a killed writer leaves of one.
_OF_IMAGE: Final = re.compile(r"-[0-9a-f]{10}(\.png|\.dcm)?$")
_EMBEDDED_SIDE_PX: Final = 128  # of heatmaps in the page, which the browser enlarges smoothly
_HEATMAP_BATCH: Final = 64
_USUAL_PERCENTILE: Final = 50.0
_USUAL_IMAGES: Final = 256
_NEAREST: Final = 3
_SMALL_PX: Final = 96


def write_cases(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    top_heatmaps: int,
    batch_images: int,
) -> list[Case]:
    """Write heatmaps of the strangest under names of their own, and list the cases.

    Args:
        output_url: Heatmaps go to `heatmaps/` in it, those of DICOM radiographs to `dicom/` too.
        dataset: That was scored.
        model: That scored it.
        scored: Ranked.
        top_heatmaps: So many of the strangest get a heatmap and pictures.
        batch_images: Images at once, at most.
    """
    batch = min(batch_images, _HEATMAP_BATCH)
    pictures, nearest = _look_at_top(output_url, dataset, model, scored, top_heatmaps, batch)
    shown = _show_usual(dataset, scored, list(nearest.values()), batch)
    marks = _mark(dataset, scored)
    return [
        Case(
            str(scored.image_id[place]),
            str(scored.group_id[place]),
            float(scored.prediction.anomaly_score[place]),
            float(scored.prediction.percentile[place]),
            bool(scored.prediction.is_anomalous[place]),
            Label(int(scored.label[place])),
            pictures.get(place),
            tuple(shown[row] for row in nearest[place].tolist()) if place in nearest else (),
            marks[place],
        )
        for place in range(min(len(scored.rows), LISTED_CASES))
    ]


def _look_at_top(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    count: int,
    batch: int,
) -> tuple[dict[int, CasePictures], dict[int, Rows]]:
    """Pictures of the strangest and the rows of their nearest usual images, by place."""
    usual = _choose_usual(scored, count)
    reconstruct = model.detector.reconstruct
    latents = [reconstruct(images).latents for _, images in read_batches(dataset, usual, batch)]
    # Read in the order of the dataset, named by the place in the ranking.
    place_of = {int(row): place for place, row in enumerate(scored.rows[:count])}
    pictures: dict[int, CasePictures] = {}
    nearest: dict[int, Rows] = {}
    for rows, images in read_batches(dataset, np.sort(scored.rows[:count]), batch):
        places = [place_of[int(row)] for row in rows]
        heats = _write_heatmaps(output_url, dataset, model, scored, places, images)
        made = reconstruct(images)
        for place, image, heat, seen in zip(places, images, heats, made.pictures, strict=True):
            pictures[place] = CasePictures(picture_uri(image), heat, picture_uri(seen))
        if len(usual):
            found = find_nearest(made.latents, np.concatenate(latents), _NEAREST)
            nearest.update(zip(places, usual[found], strict=True))
    return pictures, nearest


def _choose_usual(scored: RankedScores, beyond: int) -> Rows:
    """Rows of usual images to compare with, ascending; none of them among the strangest."""
    if not beyond:
        return np.empty(0, np.int64)
    is_usual = scored.prediction.percentile <= _USUAL_PERCENTILE
    is_usual &= scored.label != Label.ANOMALOUS
    is_usual[:beyond] = False
    places = np.flatnonzero(is_usual)
    if len(places) > _USUAL_IMAGES:
        places = places[np.linspace(0, len(places) - 1, _USUAL_IMAGES).astype(int)]
    return np.sort(scored.rows[places])


def _show_usual(
    dataset: Dataset, scored: RankedScores, nearest: list[Rows], batch: int
) -> dict[int, UsualImage]:
    """Pictures of those that are near to any case, each once."""
    needed = np.unique(np.concatenate(nearest)) if nearest else np.empty(0, np.int64)
    names = dict(zip(scored.rows.tolist(), scored.image_id.tolist(), strict=True))
    return {
        int(row): UsualImage(str(names[int(row)]), picture_uri(image, max_side_px=_SMALL_PX))
        for rows, images in read_batches(dataset, needed, batch)
        for row, image in zip(rows, images, strict=True)
    }


def _mark(dataset: Dataset, scored: RankedScores) -> list[tuple[str, ...]]:
    names = set(QUALITY_NAMES) & set(dataset.column_names)
    columns = {name: dataset.column(name)[scored.rows] for name in names}
    return mark_artefacts(columns, ~scored.prediction.is_anomalous)


def _write_heatmaps(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    places: list[int],
    images: NDArray[np.uint8],
) -> list[str]:
    """Write heatmaps, and give small ones as data URIs."""
    low, high = model.calibration.heatmap_low, model.calibration.heatmap_high
    heatmaps = model.predict(images, heatmaps=True).heatmap
    assert heatmaps is not None  # noqa: S101 -- they were asked for
    small = []
    for place, image, heatmap in zip(places, images, heatmaps, strict=True):
        name = name_heatmap(scored, place, model)
        url = storage.join(output_url, HEATMAPS, name)
        storage.write_bytes(url, encode_heatmap(heatmap, low=low, high=high))
        if is_of_dicom(dataset):
            url = storage.join(output_url, CAPTURES, f"{PurePosixPath(name).stem}.dcm")
            write_capture(url, dataset, model, scored, place, image, heatmap)
        data = encode_heatmap(heatmap, low=low, high=high, max_side_px=_EMBEDDED_SIDE_PX)
        small.append(data_uri("image/png", data))
    return small


def remove_stale_heatmaps(
    output_url: str, scored: RankedScores, model: ScoringModel, top_heatmaps: int
) -> None:
    """Remove heatmaps of earlier results, once these ones are visible."""
    count = min(top_heatmaps, len(scored.rows))
    kept = {PurePosixPath(name_heatmap(scored, place, model)).stem for place in range(count)}
    for folder in (HEATMAPS, CAPTURES):
        for info in storage.list_objects(storage.join(output_url, folder) + "/"):
            stem = PurePosixPath(storage.name_of(info.url)).stem
            if stem not in kept and _OF_IMAGE.search(stem):  # others' files are left alone
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
