"""Image files that no encoder would make, and images to compare."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def claim_png(width_px: int, height_px: int) -> bytes:
    """A PNG whose header claims a size that its few bytes of pixels do not fill."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def make_image(seed: int) -> NDArray[np.uint8]:
    """A smooth image (64, 96, 1) of no symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 36), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC))[..., None]


def recompress(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image after JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "JPEG", quality=60)
    return np.array(Image.open(buffer))[..., None]
