"""The most anomalous images as cases of the worklist, with pictures and similar typical images."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.io import storage
from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.data.part_columns import read_rows
from training.scoring.kept_scores import Rows, read_batches
from training.scoring.loaded_model import ScoringModel
from training.scoring.table import RankedScores
from training.worklist.artefacts import QUALITY_NAMES, find_limits, mark_artefacts
from training.worklist.dicom_captures import is_of_dicom, write_capture
from training.worklist.heatmaps import encode_heatmap
from training.worklist.page import (
    LISTED_CASES,
    Case,
    CasePictures,
    TypicalImage,
    data_uri,
    picture_uri,
)

HEATMAPS: Final = "heatmaps"
CAPTURES: Final = "dicom"
# Ends of names by `heatmap_name`, also of what a killed writer left.
_OF_IMAGE: Final = re.compile(r"-[0-9a-f]{10}(\.png|\.dcm)?$")
_EMBEDDED_SIDE_PX: Final = 128  # of heatmaps in the page; the browser enlarges them smoothly
_HEATMAP_BATCH: Final = 64
_TYPICAL_PERCENTILE: Final = 50.0
_TYPICAL_IMAGES: Final = 256
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
    """Write heatmaps of the most anomalous images, and list the cases.

    Args:
        output_url: Folder or prefix of the results; heatmaps go to `heatmaps/` in it, for DICOM
            radiographs also to `dicom/`.
        dataset: Dataset that was scored.
        model: Version that scored it.
        scored: Ranked scores of the dataset's images.
        top_heatmaps: Number of images, the most anomalous first, that get heatmaps and pictures.
        batch_images: Maximum number of images read and passed through the network at once.
    """
    batch = min(batch_images, _HEATMAP_BATCH)
    pictures, nearest = _picture_top(output_url, dataset, model, scored, top_heatmaps, batch)
    shown = _show_typical(dataset, list(nearest.values()), batch)
    listed = min(len(scored.rows), LISTED_CASES)
    marks = _mark(dataset, scored, listed)
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
        for place in range(listed)
    ]


def _picture_top(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    count: int,
    batch: int,
) -> tuple[dict[int, CasePictures], dict[int, Rows]]:
    """Pictures of the top images and the rows of the most similar typical images, by rank."""
    typical = _choose_typical(scored, count)
    reconstruct = model.detector.reconstruct
    latents = [reconstruct(images).latents for _, images in read_batches(dataset, typical, batch)]
    # Read in the order of the dataset, identified by the place in the ranking.
    place_of = {int(row): place for place, row in enumerate(scored.rows[:count])}
    pictures: dict[int, CasePictures] = {}
    nearest: dict[int, Rows] = {}
    for rows, images in read_batches(dataset, np.sort(scored.rows[:count]), batch):
        places = [place_of[int(row)] for row in rows]
        heats = _write_heatmaps(output_url, dataset, model, scored, places, images)
        made = reconstruct(images)
        for place, image, heat, picture in zip(places, images, heats, made.pictures, strict=True):
            pictures[place] = CasePictures(picture_uri(image), heat, picture_uri(picture))
        if len(typical):
            found = find_nearest(made.latents, np.concatenate(latents), _NEAREST)
            nearest.update(zip(places, typical[found], strict=True))
    return pictures, nearest


def find_nearest(
    latents: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]], count: int
) -> NDArray[np.intp]:
    """Find the others nearest to each, by the angle between latents, nearest first.

    Args:
        latents: float (n, D), latents of unit length.
        others: float (m, D), latents of unit length to choose from.
        count: Number of neighbours, at most m.

    Returns:
        int (n, min(count, m)), positions among the others.
    """
    return np.argsort(-(latents @ others.T), axis=1, kind="stable")[:, :count]


def _choose_typical(scored: RankedScores, beyond: int) -> Rows:
    """Ascending rows of typical images to compare with, none of them among the top."""
    if not beyond:
        return np.empty(0, np.int64)
    is_typical = scored.prediction.percentile <= _TYPICAL_PERCENTILE
    is_typical &= scored.label != Label.ANOMALOUS
    is_typical[:beyond] = False
    places = np.flatnonzero(is_typical)
    if len(places) > _TYPICAL_IMAGES:
        places = places[np.linspace(0, len(places) - 1, _TYPICAL_IMAGES).astype(int)]
    return np.sort(scored.rows[places])


def _show_typical(dataset: Dataset, nearest: list[Rows], batch: int) -> dict[int, TypicalImage]:
    """Typical images that are similar to any case, by row."""
    needed = np.unique(np.concatenate(nearest)) if nearest else np.empty(0, np.int64)
    if not len(needed):
        return {}
    found = read_rows(dataset, ["image_id"], needed)["image_id"]
    names = dict(zip(needed.tolist(), found.tolist(), strict=True))
    return {
        int(row): TypicalImage(str(names[int(row)]), picture_uri(image, max_side_px=_SMALL_PX))
        for rows, images in read_batches(dataset, needed, batch)
        for row, image in zip(rows, images, strict=True)
    }


def _mark(dataset: Dataset, scored: RankedScores, count: int) -> list[tuple[str, ...]]:
    """Mark the first images, by comparison with all that are not anomalous."""
    names = set(QUALITY_NAMES) & set(dataset.column_names)
    typical = np.sort(scored.rows[~scored.prediction.is_anomalous])

    def read_typical(name: str) -> NDArray[np.floating[Any]]:
        return read_rows(dataset, [name], typical)[name]

    limits = find_limits(read_typical, names) if len(typical) else {}
    columns = read_rows(dataset, sorted(limits), scored.rows[:count])
    return mark_artefacts(columns, limits, count)


def _write_heatmaps(
    output_url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    places: list[int],
    images: NDArray[np.uint8],
) -> list[str]:
    """Write heatmaps, and return small ones as data URIs."""
    low, high = model.calibration.heatmap_low, model.calibration.heatmap_high
    heatmaps = model.predict(images, heatmaps=True).heatmap
    assert heatmaps is not None  # noqa: S101 -- they were asked for
    small = []
    for place, image, heatmap in zip(places, images, heatmaps, strict=True):
        name = _name_heatmap(scored, place, model)
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
    kept = {PurePosixPath(_name_heatmap(scored, place, model)).stem for place in range(count)}
    for folder in (HEATMAPS, CAPTURES):
        for info in storage.list_objects(storage.join(output_url, folder) + "/"):
            stem = PurePosixPath(storage.name_of(info.url)).stem
            if stem not in kept and _OF_IMAGE.search(stem):  # others' files are left alone
                storage.delete(info.url)


def _name_heatmap(scored: RankedScores, place: int, model: ScoringModel) -> str:
    """Name the heatmap at a place of the ranking; other bytes or versions have other names."""
    return heatmap_name(
        str(scored.image_id[place]), str(scored.pixel_digest[place]), model.name, model.version
    )


def heatmap_name(image_id: str, *facts: str) -> str:
    """Name an image's heatmap file: readable, safe on every store, and unique.

    Args:
        image_id: Name of the image in the dataset.
        *facts: Further facts that identify it: the digest of its pixels, the model and its version.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._")[-80:]
    digest = sha256("\n".join((image_id, *facts)).encode()).hexdigest()
    return f"{readable}-{digest[:10]}.png"
