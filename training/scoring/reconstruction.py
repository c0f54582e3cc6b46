"""What a network makes of images, and which of the usual ones it sees as their nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.augmentation import centre_views, take_views
from training.data.batches import split_batches, to_tensor
from training.learning.state import growth_at
from training.networks.autoencoder import mix_input
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
    description, recipe = detector.description, detector.recipe
    growth = growth_at(recipe, recipe.total_steps)
    views = centre_views(
        len(images), size_yx=description.image_shape[:2], settings=description.settings.images
    )
    resolution = description.settings.growth.final_resolution
    place: dict[str, Any] = {"resolution": growth.resolution, "alpha": growth.alpha}
    with torch.inference_mode():
        whole = to_tensor(take_views(images, views), resolution=resolution, device=recipe.device)
        latents = detector.autoencoder.encode(mix_input(whole, **place), **place)
        made = detector.autoencoder.decode(latents, **place)
        flat = torch.nn.functional.normalize(latents.flatten(1), dim=1)
        pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8)
    return pixels.cpu().numpy(), flat.cpu().numpy()
