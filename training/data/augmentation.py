"""Random crops and flips, drawn for each sample by itself.

The draw depends on the seed and the sample's number alone, so neither the number of workers nor an
interruption changes it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.networks.inputs import Views, centre_views
from training.settings import ImageSettings

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_MIXING: Final = 2**32  # the purposes of views are 0 to 3, and four times the seed is added


def draw_views(
    samples: NDArray[np.int64], *, size_yx: tuple[int, int], settings: ImageSettings, seed: int
) -> Views:
    """Draw a crop and flips for each sample.

    Args:
        samples: int64 (n,), numbers of the samples, counted over the whole training.
        size_yx: Height and width of the images in px.
        settings: Crop side, and whether crops and flips are drawn; otherwise the view is the
            unmirrored centre.
        seed: Seed of the draw; same seed and number, same view.
    """
    views = centre_views(len(samples), size_yx=size_yx, crop_px=settings.crop_px)
    origins_yx, flips_yx = views.origins_yx, views.flips_yx
    for axis in (0, 1):
        places = size_yx[axis] - views.side_px + 1
        if settings.crops_at_random and places > 1:
            drawn = _draw(samples, seed=seed, purpose=axis) % np.uint64(places)
            origins_yx[:, axis] = drawn.astype(np.int64)
        if settings.flips_at_random:
            flips_yx[:, axis] = _draw(samples, seed=seed, purpose=2 + axis) & np.uint64(1)
    return Views(origins_yx, flips_yx, views.side_px)


def draw_shares(samples: NDArray[np.int64], *, seed: int) -> NDArray[np.float32]:
    """Draw each sample's share of a mixture: float32 (n,), uniform in [0, 1)."""
    drawn = _draw(samples, seed=seed, purpose=_MIXING) >> np.uint64(40)
    return drawn.astype(np.float32) / np.float32(2**24)


def locate_pixels(views: Views, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the y and x of the views' pixels in their images, each (n, side) on a device."""
    origins = torch.from_numpy(views.origins_yx).to(device, non_blocking=True)
    flips = torch.from_numpy(views.flips_yx).to(device, non_blocking=True)
    steps = torch.arange(views.side_px, device=device)
    within = torch.where(flips[:, :, None], steps.flip(0), steps)
    y, x = (origins[:, :, None] + within).unbind(1)
    return y, x


def _draw(samples: NDArray[np.int64], *, seed: int, purpose: int) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014) of the sample's number, one stream for each purpose."""
    start = _mix(np.array([(seed * 4 + purpose) & _MASK], np.uint64))
    return _mix(start + samples.astype(np.uint64) * np.uint64(_GOLDEN))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = bits + np.uint64(_GOLDEN)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
