"""Heatmaps as transparent pictures on one scale."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from training.worklist.heatmaps import encode_heatmap, legend_colors


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGBA"))


def test_low_is_transparent_and_high_is_bright_and_clipped() -> None:
    heatmap = np.array([[0.0, 0.2, 0.6], [1.0, 5.0, np.nan]])
    pixels = decode(encode_heatmap(heatmap, low=0.2, high=1.0))
    assert pixels.shape == (2, 3, 4)
    opacity = pixels[..., 3]
    assert opacity[0, 0] == opacity[0, 1] == opacity[1, 2] == 0
    assert 0 < opacity[0, 2] < opacity[1, 0] == opacity[1, 1] < 255
    assert (pixels[1, 0] == pixels[1, 1]).all()
    assert pixels[1, 0, :3].tolist() == [253, 231, 37]  # the bright end of viridis


def test_lightness_rises_with_strangeness() -> None:
    pixels = decode(encode_heatmap(np.linspace(0, 1, 50)[None], low=0.0, high=1.0))
    lightness = pixels[0, :, :3] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[-1] > lightness[0] + 100


def test_a_large_map_is_made_smaller_and_keeps_its_shape() -> None:
    heatmap = np.zeros((60, 120))
    heatmap[:30, 80:] = 1.0
    pixels = decode(encode_heatmap(heatmap, low=0.0, high=1.0, max_side_px=40))
    assert pixels.shape == (20, 40, 4)
    assert pixels[2, 35, 3] > 200
    assert pixels[15, 35, 3] == pixels[2, 5, 3] == 0


def test_the_same_map_gives_the_same_bytes() -> None:
    heatmap = np.random.default_rng(0).random((7, 5))
    first = encode_heatmap(heatmap, low=0.1, high=0.9)
    assert first == encode_heatmap(heatmap.copy(), low=0.1, high=0.9)


def test_an_empty_scale_is_refused_and_the_legend_has_its_ends() -> None:
    with pytest.raises(ValueError, match=r"high 0\.5 does not exceed low 0\.5"):
        encode_heatmap(np.zeros((2, 3)), low=0.5, high=0.5)
    assert legend_colors(3)[::2] == ("#440154", "#fde725")
