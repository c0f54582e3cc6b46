"""Scores and reconstructions of validation images during a training."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.data.batches import Rows, choose_rows, read_centres
from training.evaluation.metrics import measure_auroc
from training.learning.state import Recipe
from training.networks.autoencoder import Autoencoder
from training.networks.growth import GrowthState
from training.networks.inputs import Images, split_batches, to_pixels, to_tensor
from training.networks.reconstruction import Reconstruction, reconstruct
from training.settings import ImageSettings

_BATCH: Final = 128
_SHOWN: Final = 4
_PERCENTS: Final = (5, 50, 95)


@dataclass(frozen=True)
class ValidationImages:
    """Labelled images of the validation split.

    Attributes:
        rows: int64 (N,), rows of the dataset: first the normals, then the anomalies.
        labels: int8 (N,), 0 for normal and 1 for anomalous.
        images: uint8 (N, side, side, C), centres of the images.
    """

    rows: Rows
    labels: NDArray[np.int8]
    images: Images


@dataclass(frozen=True)
class ValidationScores:
    """Scores of the validation images.

    Attributes:
        scores: float32 (N,), anomaly scores.
        labels: int8 (N,), 0 for normal and 1 for anomalous.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int8]


@dataclass(frozen=True)
class Gallery:
    """Images and what the network made of them.

    Attributes:
        resolution: Side of the images in px.
        labels: int8 (N,), 0 for normal and 1 for anomalous.
        scores: float32 (N,), anomaly scores.
        originals: uint8 (N, side, side, C), as the network saw them.
        reconstructions: uint8 (N, side, side, C), outputs of the network.
        heatmaps: float32 (N, side, side), errors of the pixels.
    """

    resolution: int
    labels: NDArray[np.int8]
    scores: NDArray[np.float32]
    originals: Images
    reconstructions: Images
    heatmaps: NDArray[np.float32]


def read_validation(
    dataset: Dataset, settings: ImageSettings, *, limit: int | None = None
) -> ValidationImages:
    """Read the validation split's normals and anomalies, at most `limit` of each."""
    by_label = [
        choose_rows(dataset, "validation", label, limit)
        for label in (Label.NORMAL, Label.ANOMALOUS)
    ]
    rows = np.concatenate(by_label)
    labels = np.repeat(np.array([0, 1], np.int8), [len(found) for found in by_label])
    images = [read_centres(dataset, found, settings) for found in by_label]
    return ValidationImages(rows, labels, np.concatenate(images))


def score_images(
    recipe: Recipe, autoencoder: Autoencoder, images: Images, *, growth: GrowthState
) -> NDArray[np.float32]:
    """Score images at one point of the growth; every worker scores a part, all get the whole.

    Args:
        recipe: Loss, device and workers.
        autoencoder: Network itself, not wrapped for data-parallel training.
        images: uint8 (N, side, side, C).
        growth: Resolution and alpha.

    Returns:
        float32 (N,).
    """
    workers, size = recipe.workers, min(_BATCH, growth.batch_size)
    with torch.inference_mode():
        parts = [
            _reconstruct(recipe, autoencoder, batch, growth).compare(recipe.loss).reduce("none")
            for batch in split_batches(images[workers.rank :: workers.size], size)
        ]
    own = [part.float().cpu().numpy() for part in parts]
    scores = np.empty(len(images), np.float32)
    for rank, part in enumerate(workers.gather(np.concatenate([np.empty(0, np.float32), *own]))):
        scores[rank :: workers.size] = part
    return scores


def pack_validation(scores: ValidationScores, gallery: Gallery | None) -> bytes:
    """Write scores and gallery as one `.npz` file; reading it unpickles nothing."""
    arrays = {f"scores.{name}": value for name, value in vars(scores).items()}
    if gallery is not None:
        arrays |= {f"gallery.{name}": value for name, value in vars(gallery).items()}
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unpack_validation(data: bytes) -> tuple[ValidationScores, Gallery | None]:
    """Read what `pack_validation` wrote."""
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        found: dict[str, dict[str, Any]] = {"scores": {}, "gallery": {}}
        for name, value in arrays.items():
            kind, _, key = name.partition(".")
            found[kind][key] = value if value.ndim else value.item()
    gallery = Gallery(**found["gallery"]) if found["gallery"] else None
    return ValidationScores(**found["scores"]), gallery


def summarise(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Summarise scores: means and percentiles of each label, and the AUROC."""
    found = {}
    normal, anomalous = scores[labels == Label.NORMAL], scores[labels == Label.ANOMALOUS]
    for name, kind in (("validation", normal), ("validation_anomaly", anomalous)):
        if len(kind):
            found[f"{name}_loss"] = float(kind.mean())
            for percent in _PERCENTS:
                found[f"{name}_p{percent:02d}"] = float(np.percentile(kind, percent))
    if len(normal) and len(anomalous):
        found["validation_auroc"] = measure_auroc(scores, labels)
    return found


def make_gallery(
    recipe: Recipe, autoencoder: Autoencoder, shown: ValidationImages, *, growth: GrowthState
) -> Gallery | None:
    """Reconstruct the first normals and anomalies; None where there are none."""
    chosen = [np.flatnonzero(shown.labels == label)[:_SHOWN] for label in (0, 1)]
    index = np.concatenate(chosen)
    if not len(index):
        return None
    with torch.inference_mode():
        made = _reconstruct(recipe, autoencoder, shown.images[index], growth)
        compared = made.compare(recipe.loss)
        scores, heatmaps = compared.reduce("none"), compared.reduce("pixelwise")[:, 0]
    return Gallery(
        resolution=growth.resolution,
        labels=shown.labels[index],
        scores=scores.float().cpu().numpy(),
        originals=to_pixels(made.target),
        reconstructions=to_pixels(made.images),
        heatmaps=heatmaps.float().cpu().numpy(),
    )


def _reconstruct(
    recipe: Recipe, autoencoder: Autoencoder, images: Images, growth: GrowthState
) -> Reconstruction:
    final = recipe.settings.growth.final_resolution
    whole = to_tensor(images, resolution=final, device=recipe.device)
    return reconstruct(autoencoder, whole, growth, precision=recipe.mixed_precision())
