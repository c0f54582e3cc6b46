"""What a network makes of images, and which of the usual ones it sees as their nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.networks.inputs import centre_views, cut_views, split_batches, to_pixels
from training.scoring.detector import BATCH_IMAGES, Detector
from training.scoring.loaded_model import ScoringModel


@dataclass(frozen=True)
class Reconstructions:
    """What a network makes of images.

    Args:
        pictures: uint8 (N, resolution, resolution, C), of the centre crop that it looks at.
        latents: float32 (N, D), of unit length.
    """

    pictures: NDArray[np.uint8]
    latents: NDArray[np.float32]


def reconstruct(model: ScoringModel, images: NDArray[np.uint8]) -> Reconstructions:
    """Pass images through a version's network, as scoring does.

    Args:
        model: Loaded.
        images: uint8 (N, H, W, C), as the model takes them; at least one.
    """
    detector: Detector = model.pyfunc.unwrap_python_model().detector
    found = [_reconstruct_batch(detector, batch) for batch in split_batches(images, BATCH_IMAGES)]
    pictures, latents = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Reconstructions(pictures, latents)


def find_nearest(
    latents: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]], count: int
) -> NDArray[np.intp]:
    """The others nearest to each, by the angle between latents, nearest first.

    Args:
        latents: float (n, D), of unit length.
        others: float (m, D), likewise.
        count: How many, at most m.

    Returns:
        int (n, min(count, m)).
    """
    return np.argsort(-(latents @ others.T), axis=1, kind="stable")[:, :count]


def _reconstruct_batch(
    detector: Detector, images: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    description = detector.description
    views = centre_views(
        len(images),
        size_yx=description.image_shape[:2],
        crop_px=description.settings.images.crop_px,
    )
    with torch.inference_mode():
        made = detector.reconstruct(cut_views(images, views))
        flat = torch.nn.functional.normalize(made.latents.flatten(1), dim=1)
    return to_pixels(made.images), flat.cpu().numpy()
