from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.slides.colour import convert_to_srgb, name_profile
from pipeline.slides.readers.registry import open_slide
from tests.support.made.slides import make_pixels

# Primaries of sRGB, adapted to D50 (IEC 61966-2-1, ICC.1).
_PRIMARIES = {
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.71410),
}


def make_profile(gamma: float, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of sRGB's primaries and a gamma of its own; ICC.1:2001-04, 6.5."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"a scanner\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": desc + bytes(-len(desc) % 4),
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        **{name: xyz(values) for name, values in _PRIMARIES.items()},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, data = b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value
    size = 132 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def expect_srgb(pixels: NDArray[np.uint8], gamma: float) -> NDArray[np.float64]:
    """IEC 61966-2-1 by hand: linear light by the gamma, and back by sRGB's curve."""
    linear = (pixels / 255) ** gamma
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(curve * 255, np.float64)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_colours_follow_the_profile(gamma: float) -> None:
    pixels = make_pixels((40, 70))
    converted = convert_to_srgb(pixels, make_profile(gamma), "a")
    assert np.abs(converted - expect_srgb(pixels, gamma)).max() < 3
    assert np.abs(converted.astype(int) - pixels).max() > 15


def test_a_batch_is_converted_as_its_tiles_are() -> None:
    tiles = make_pixels((60, 35)).reshape(3, 20, 35, 3)
    profile = make_profile(1.8)
    batch = convert_to_srgb(tiles, profile, "a")
    assert batch.shape == tiles.shape
    for tile, converted in zip(tiles, batch, strict=True):
        np.testing.assert_array_equal(convert_to_srgb(tile, profile, "a"), converted)


def test_without_a_profile_nothing_changes() -> None:
    pixels = make_pixels((40, 70))
    assert convert_to_srgb(pixels, None, "a") is pixels


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"", "cannot open profile"),
        (b"no profile" * 30, "cannot open profile"),
        (make_profile(1.8)[:200], "cannot"),
        (make_profile(1.8, b"GRAY"), "it is of GRAY colours"),
    ],
)
def test_a_bad_profile_is_one_error(profile: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=rf"^a\.svs: its ICC profile cannot be used .*{said}"):
        convert_to_srgb(make_pixels((20, 30)), profile, "a.svs")


def test_a_profile_is_named() -> None:
    assert name_profile(make_profile(1.8)) == "a scanner"
    assert name_profile(b"nothing") == "unreadable"


def test_readers_hand_the_profile_over(shared_data: Path, tmp_path: Path) -> None:
    with open_slide(shared_data / "slides" / "boxes.tiff", mpp_override_um=0.5) as slide:
        assert slide.icc_profile is not None
        assert "sRGB" in name_profile(slide.icc_profile)
    with open_slide(shared_data / "slides" / "cmu-1-small-region.svs") as slide:
        assert slide.icc_profile is None
    profile = make_profile(1.8)
    for name in ("a.jpg", "a.png", "a.tif"):
        Image.fromarray(make_pixels((40, 70))).save(tmp_path / name, icc_profile=profile)
        with open_slide(tmp_path / name, mpp_fallback_um=0.5) as slide:
            assert slide.icc_profile == profile
