"""DICOM secondary captures of the most anomalous radiographs, with their heatmaps."""

from __future__ import annotations

import math
from datetime import UTC
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.dicom.export import CaptureFacts, encode_capture
from pipeline.io import storage
from pipeline.store.dataset import Dataset
from training.data.part_columns import read_rows
from training.scoring.loaded_model import ScoringModel
from training.scoring.table import RankedScores
from training.worklist.heatmaps import encode_heatmap

_LEAST_SIDE_PX: Final = 512  # a viewer shows smaller images as thumbnails


def is_of_dicom(dataset: Dataset) -> bool:
    """Whether the images come from DICOM files, and their names are pseudonyms."""
    return {"photometric", "burned_in_text"} <= set(dataset.column_names)


def write_capture(
    url: str,
    dataset: Dataset,
    model: ScoringModel,
    scored: RankedScores,
    place: int,
    image: NDArray[np.uint8],
    heatmap: NDArray[np.float32],
) -> None:
    """Write the secondary capture of one image.

    Args:
        url: Path or URL of the file to write.
        dataset: Dataset of DICOM radiographs.
        model: Version that scored it.
        scored: Ranked scores of the dataset's images.
        place: Position of the image in the ranking, from 0.
        image: uint8 (H, W, C), pixels of the image.
        heatmap: float32 (H, W), anomaly of each pixel.
    """
    row, found = int(scored.rows[place]), scored.prediction
    columns = read_rows(dataset, ["sex", "burned_in_text"], np.array([row]))
    facts = CaptureFacts(
        image_id=str(scored.image_id[place]),
        group_id=str(scored.group_id[place]),
        sex=str(columns["sex"][0]),
        burned_in_text=columns["burned_in_text"][0],
        title="Anomaly heatmap, for research only",
        derivation=(
            f"Anomaly heatmap by {model.name} version {model.version} over the image as scored, "
            f"enlarged. Anomaly score {found.anomaly_score[place]:.6g}, higher than "
            f"{found.percentile[place]:.1f} % of normal images. For research; not for diagnosis."
        ),
        software=f"{model.name} version {model.version}",
        made_at=scored.scored_at[place].astype("datetime64[s]").item().replace(tzinfo=UTC),
    )
    calibration = model.calibration
    picture = overlay_heatmap(
        image, heatmap, low=calibration.heatmap_low, high=calibration.heatmap_high
    )
    storage.write_bytes(url, encode_capture(picture, facts))


def overlay_heatmap(
    image: NDArray[np.uint8], heatmap: NDArray[np.float32], *, low: float, high: float
) -> NDArray[np.uint8]:
    """Draw an image with its heatmap over it, enlarged by a whole number to at least 512 px.

    Args:
        image: uint8 (H, W, 1 or 3), pixels of the image.
        heatmap: float32 (H, W), anomaly of each pixel.
        low: Heatmap value drawn transparent.
        high: Heatmap value drawn brightest.

    Returns:
        uint8 (k H, k W, 3), with the smallest k that suffices.
    """
    height, width = image.shape[:2]
    factor = math.ceil(_LEAST_SIDE_PX / min(height, width))
    size = (factor * width, factor * height)
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    below = Image.fromarray(pixels).convert("RGBA").resize(size, Image.Resampling.BICUBIC)
    drawn = Image.open(BytesIO(encode_heatmap(heatmap, low=low, high=high))).convert("RGBA")
    above = drawn.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(Image.alpha_composite(below, above).convert("RGB"))
