"""What a network sees of uint8 images: a square of each, as floats at its resolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Views:
    """A square of each image.

    Attributes:
        origins_yx: int64 (N, 2), upper left corners (y, x) in px.
        flips_yx: bool (N, 2), whether each square is mirrored along y and along x.
        side_px: Side of all squares in px.
    """

    origins_yx: NDArray[np.int64]
    flips_yx: NDArray[np.bool_]
    side_px: int


def centre_views(count: int, *, size_yx: tuple[int, int], crop_px: int | None) -> Views:
    """Choose the centre of each image, as validation and scoring do.

    Args:
        count: Number of images.
        size_yx: Height and width of the images in px.
        crop_px: Side of the square in px; None takes the largest that fits.
    """
    side = crop_px or min(size_yx)
    origin = [(extent - side) // 2 for extent in size_yx]
    return Views(np.tile(np.array(origin, np.int64), (count, 1)), np.zeros((count, 2), bool), side)


def cut_views(images: Images, views: Views) -> Images:
    """Cut the views out of their images: (N, H, W, C) -> (N, side, side, C)."""
    side = (views.side_px, views.side_px)
    places = sliding_window_view(images, side, axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    cut: Images = places[np.arange(len(images)), views.origins_yx[:, 0], views.origins_yx[:, 1]]
    for flips_yx in ((True, False), (False, True), (True, True)):
        mirrored = np.flatnonzero((views.flips_yx == flips_yx).all(axis=1))
        axes = [axis for axis, is_flipped in enumerate(flips_yx, start=1) if is_flipped]
        # torch mirrors all at once, pixel by pixel; NumPy goes byte by byte.
        cut[mirrored] = torch.flip(torch.from_numpy(cut[mirrored]), axes).numpy()
    return cut


def to_tensor(
    images: Images | Tensor, *, resolution: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Convert images to floats at the network's final resolution.

    Args:
        images: uint8 (N, side, side, C).
        resolution: Final resolution of the network in px; larger images are averaged down.
        device: Device that converts the images and holds the result.

    Returns:
        float32 (N, C, resolution, resolution) in [-1, 1].
    """
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.ascontiguousarray(images))
    on_device = images.to(device, non_blocking=True)
    # Three passes over memory, but only one that takes new memory.
    scaled = on_device.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    if scaled.shape[-2:] == (resolution, resolution):
        return scaled
    return F.interpolate(scaled, size=(resolution, resolution), mode="area")


def to_pixels(images: Tensor) -> Images:
    """Convert (N, C, H, W) floats in [-1, 1] to uint8 (N, H, W, C); values outside are clipped."""
    scaled = ((images.float() + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def split_batches(images: Images, batch_size: int) -> Iterator[Images]:
    """Cut images into batches; the last may be smaller."""
    for first in range(0, len(images), batch_size):
        yield images[first : first + batch_size]
