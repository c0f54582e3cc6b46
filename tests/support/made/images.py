"""Image files for tests that no encoder should have to make."""

from __future__ import annotations

import struct
import zlib


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
