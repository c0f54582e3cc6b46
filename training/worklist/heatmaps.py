"""Heatmaps as pictures to overlay on the image that they explain."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOR_MAP: Final = "viridis"  # ordered by lightness, so it reads without colour vision
_OPACITY: Final = 0.85  # of the highest value: the image stays visible under it
_STEPS: Final = 256


def encode_heatmap(
    heatmap: NDArray[np.floating[Any]], *, low: float, high: float, max_side_px: int | None = None
) -> bytes:
    """Draw a heatmap as a PNG that is transparent where nothing is anomalous.

    Colour and opacity rise together from `low` to `high`. With one scale for all images of a
    model, colours compare across them.

    Args:
        heatmap: float (H, W), anomaly of each pixel; NaN, outside the scored crop, is transparent.
        low: Value drawn transparent.
        high: Value drawn brightest, as are larger ones; must exceed `low`.
        max_side_px: Maximum length of the longer side in px; None keeps the size.

    Returns:
        PNG with a palette of 256 colours and their opacity; decodes to RGBA.

    Raises:
        ValueError: `high` does not exceed `low`.
    """
    if not high > low:
        raise ValueError(
            f"high {high} does not exceed low {low}: calibrate on varied normal images"
        )
    shares = np.clip((np.nan_to_num(heatmap, nan=low) - low) / (high - low), 0.0, 1.0)
    picture = Image.fromarray(np.round(shares * (_STEPS - 1)).astype(np.uint8))
    if max_side_px is not None:
        picture.thumbnail((max_side_px, max_side_px), Image.Resampling.BILINEAR)
    # Level 0 to 255 becomes the index into the palette as it is.
    indexed = Image.frombytes("P", picture.size, picture.tobytes())
    colors, opacities = _palette()
    indexed.putpalette(colors)
    file = BytesIO()
    indexed.save(file, "PNG", transparency=opacities, optimize=False)
    return file.getvalue()


def legend_colors(count: int) -> tuple[str, ...]:
    """List colours of the scale from low to high, as `#rrggbb`.

    Args:
        count: Number of colours, at least 2.
    """
    picked = mpl.colormaps[COLOR_MAP](np.linspace(0, 1, count))
    return tuple(mpl.colors.to_hex(color) for color in picked)


@lru_cache(maxsize=1)
def _palette() -> tuple[bytes, bytes]:
    """Colours (256 x 3 bytes) and opacities (256 bytes)."""
    shares = np.linspace(0, 1, _STEPS)
    colors = np.round(mpl.colormaps[COLOR_MAP](shares)[:, :3] * 255).astype(np.uint8)
    opacities = np.round(shares**0.75 * _OPACITY * 255).astype(np.uint8)
    return colors.tobytes(), opacities.tobytes()
