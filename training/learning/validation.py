"""How a training does on images that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.data.batches import Images, Rows, choose_rows, read_centres, split_batches, to_tensor
from training.evaluation.metrics import measure_auroc
from training.learning.state import Recipe
from training.networks.autoencoder import Autoencoder, mix_input
from training.networks.growth import GrowthState
from training.networks.losses import Reduction
from training.settings import ImageSettings

_BATCH: Final = 128
_SHOWN: Final = 4
_PERCENTS: Final = (5, 50, 95)


@dataclass(frozen=True)
class ValidationImages:
    """Labelled images of the validation split.

    Attributes:
        rows: (n,) int64, rows of the dataset: first the normals, then the anomalies.
        labels: (n,) int8, 0 or 1.
        images: (n, side, side, C) uint8.
    """

    rows: Rows
    labels: NDArray[np.int8]
    images: Images


@dataclass(frozen=True)
class ValidationScores:
    """What those images score.

    Attributes:
        scores: (n,) float32.
        labels: (n,) int8, 0 or 1.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int8]


@dataclass(frozen=True)
class Gallery:
    """Images beside what the network made of them.

    Attributes:
        resolution: Side in px.
        labels: (n,) int8, 0 or 1.
        scores: (n,) float32.
        originals: (n, side, side, C) uint8, as the network saw them.
        reconstructions: Same shape.
        heatmaps: (n, side, side) float32.
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
    recipe: Recipe,
    autoencoder: Autoencoder,
    images: Images,
    *,
    growth: GrowthState,
    reduction: Reduction = "none",
) -> NDArray[np.float32]:
    """Score images at one point of the growth; every worker scores a share, all get all.

    Args:
        recipe: Loss, device and team.
        autoencoder: Not wrapped.
        images: (n, side, side, C) uint8.
        growth: Resolution and alpha.
        reduction: `none` for scores, `pixelwise` for heatmaps.

    Returns:
        (n,) scores, or (n, 1, resolution, resolution) heatmaps.
    """
    team = recipe.team
    parts = []
    with torch.inference_mode():
        for batch in split_batches(images[team.rank :: team.size], min(_BATCH, growth.batch_size)):
            target, reconstruction = _reconstruct(recipe, autoencoder, batch, growth)
            found = recipe.measure_loss(target, reconstruction, growth=growth, reduction=reduction)
            parts.append(found.float().cpu().numpy())
    shares = team.gather(np.concatenate(parts) if parts else np.empty(0, np.float32))
    whole = next((share for share in shares if len(share)), shares[0])
    scores = np.empty((len(images), *whole.shape[1:]), np.float32)
    for rank, share in enumerate(shares):
        scores[rank :: team.size] = share
    return scores


def score_validation_images(
    recipe: Recipe, autoencoder: Autoencoder, shown: ValidationImages, *, growth: GrowthState
) -> ValidationScores:
    """Score all validation images at one point of the growth."""
    scores = score_images(recipe, autoencoder, shown.images, growth=growth)
    return ValidationScores(scores, shown.labels)


def summarise(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Validation figures: means and quantiles of the scores, and the AUROC of both kinds."""
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
    """Reconstruct the first normals and anomalies; None where there are none.

    Every worker of the team must call this, as every one scores a share.
    """
    chosen = [np.flatnonzero(shown.labels == label)[:_SHOWN] for label in (0, 1)]
    index = np.concatenate(chosen)
    if not len(index):
        return None
    images = shown.images[index]
    with torch.inference_mode():
        target, reconstruction = _reconstruct(recipe, autoencoder, images, growth)
    return Gallery(
        resolution=growth.resolution,
        labels=shown.labels[index],
        scores=score_images(recipe, autoencoder, images, growth=growth),
        originals=_to_bytes(target),
        reconstructions=_to_bytes(reconstruction),
        heatmaps=score_images(recipe, autoencoder, images, growth=growth, reduction="pixelwise")[
            :, 0
        ],
    )


def reconstruct(
    recipe: Recipe, autoencoder: Autoencoder, images: torch.Tensor, growth: GrowthState
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show the network images at one point of the growth.

    Args:
        recipe: Its precision.
        autoencoder: Not wrapped.
        images: (n, C, final resolution, final resolution) float in [-1, 1].
        growth: Resolution and alpha.

    Returns:
        What it saw and what it made of that, both (n, C, resolution, resolution).
    """
    target = mix_input(images, resolution=growth.resolution, alpha=growth.alpha)
    with recipe.mixed_precision():
        made = autoencoder(target, resolution=growth.resolution, alpha=growth.alpha)
    return target, made


def _reconstruct(
    recipe: Recipe, autoencoder: Autoencoder, images: Images, growth: GrowthState
) -> tuple[torch.Tensor, torch.Tensor]:
    final = recipe.settings.growth.final_resolution
    whole = to_tensor(images, resolution=final, device=recipe.device)
    return reconstruct(recipe, autoencoder, whole, growth)


def _to_bytes(images: torch.Tensor) -> Images:
    scaled = ((images.float() + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
