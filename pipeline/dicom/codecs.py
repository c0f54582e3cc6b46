"""Compressed DICOM frames: codecs that pydicom does not bring, and a check of the stream.

imagecodecs decodes JPEG, JPEG-LS and JPEG 2000 of every depth. Of pydicom's own plug-ins some
refuse a part of these, and one ends the whole process on a damaged stream.

A decoder paints what it cannot read: libjpeg fills a cut-off image with grey and only warns. So
a stream that does not say of itself that it is whole and of the right size is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID

from pipeline.errors import SourceError

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

_REMEDY: Final = "Export it again, uncompressed or by another codec, or leave it out"
_JPEG_2000: Final = frozenset(
    {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL}
)
_JPEG: Final = frozenset({*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes})
_SIZE_MARKER: Final = re.compile(rb"\xff\x4f\xff\x51")  # SOC, SIZ (ISO 15444-1, A.4, A.5)
# Frame headers by their second byte (ITU-T T.81, table B.1; T.87 for JPEG-LS).
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_DCT: Final = frozenset({0xC0, 0xC1})
_SCAN_MARKER: Final = 0xDA
_END_MARKER: Final = b"\xff\xd9"  # EOI or EOC
_PADDING: Final = b"\x00\xff "
_MAX_TAIL_BYTES: Final = 6  # of whatever else some writers leave behind the end marker

_DECODERS: Final[Mapping[str, Callable[[bytes], NDArray[Any]]]] = {
    **dict.fromkeys(uid.JPEGTransferSyntaxes, imagecodecs.jpeg8_decode),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, imagecodecs.jpegls_decode),
    **dict.fromkeys(_JPEG_2000, imagecodecs.jpeg2k_decode),
}
# What pydicom asks a plug-in for.
DECODER_DEPENDENCIES: Final = dict.fromkeys(_DECODERS, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Whether this module decodes a transfer syntax; pydicom asks."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Decode JPEG, JPEG-LS or JPEG 2000; pydicom calls it.

    Args:
        frame: The compressed frame.
        runner: pydicom's account of the image; its container size is set to what is returned.

    Returns:
        The samples, little-endian.
    """
    pixels = _DECODERS[runner.transfer_syntax](frame)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return bytearray(np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes())


@cache
def find_decoder(syntax: UID) -> Decoder:
    """Return the decoder of a transfer syntax: one with our plug-in, or pydicom's own.

    Raises:
        NotImplementedError: There is none.
    """
    if not is_available(syntax):
        return get_decoder(syntax)
    decoder = Decoder(syntax)  # apart from pydicom's own, which other code in the process uses
    decoder.add_plugin("imagecodecs", (__name__, decode_frame.__name__))
    return decoder


class Codestream(NamedTuple):
    """What a compressed frame says of itself.

    Args:
        shape_yx: Rows and columns of the image.
        components: Samples a pixel.
        bits: Bits of a sample.
    """

    shape_yx: tuple[int, int]
    components: int
    bits: int


def check_codestream(
    frame: bytes, syntax: UID, shape_yx: tuple[int, int], name: str
) -> Codestream | None:
    """Check that a compressed frame is whole and as large as the header says.

    Args:
        frame: The compressed frame.
        syntax: Transfer syntax of the frame.
        shape_yx: Rows and columns by the DICOM header.
        name: Public name of the file, for errors.

    Returns:
        What the frame says of itself; None where its syntax says nothing (run lengths).

    Raises:
        SourceError: It is cut off, in colour, of another size (a small header may hide a large
            image), or its scan header breaks the standard.
    """
    if syntax in _JPEG:
        stream = _read_jpeg(frame, name)
    elif syntax in _JPEG_2000:
        stream = _read_jpeg_2000(frame, name)
    else:
        return None
    if not _is_whole(frame):
        raise SourceError(name, "the compressed image is cut off: no end marker", _REMEDY)
    if stream.shape_yx != shape_yx:
        height, width = stream.shape_yx
        raise SourceError(
            name,
            f"the compressed image is {width} x {height} pixels, the header says "
            f"{shape_yx[1]} x {shape_yx[0]}",
            _REMEDY,
        )
    if stream.components != 1:
        problem = f"the compressed image has {stream.components} samples a pixel, not 1"
        raise SourceError(name, problem, _REMEDY)
    return stream


def _is_whole(frame: bytes) -> bool:
    """Whether nothing but padding follows the end marker, which occurs nowhere inside a scan."""
    tail = frame[frame.rfind(_END_MARKER) + 2 :]
    return _END_MARKER in frame and (len(tail) <= _MAX_TAIL_BYTES or not tail.strip(_PADDING))


def _read_jpeg(frame: bytes, name: str) -> Codestream:
    """Size and depth of a JPEG or JPEG-LS stream, whose scan header must be lawful."""
    stream, is_sequential = None, False
    for marker, body in _segments(frame, name):
        if marker in _FRAME_MARKERS and len(body) >= 6:
            height, width = (int.from_bytes(body[at : at + 2], "big") for at in (1, 3))
            stream = Codestream((height, width), components=body[5], bits=body[0])
            is_sequential = marker in _SEQUENTIAL_DCT
        if marker == _SCAN_MARKER:
            # T.81, table B.3: a sequential scan holds all 64 coefficients, 0 to 63.
            if is_sequential and body[-3:-1] != b"\x00\x3f":
                first, last = tuple(body[-3:-1]) or (-1, -1)
                raise SourceError(
                    name,
                    f"damaged JPEG: a sequential scan of coefficients {first} to {last}, not "
                    "0 to 63",
                    _REMEDY,
                )
            break
    if stream is None:
        raise SourceError(name, "damaged JPEG: no frame header", _REMEDY)
    return stream


def _segments(frame: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each header segment of a JPEG, the first scan header last."""
    if not frame.startswith(b"\xff\xd8"):
        raise SourceError(name, "the compressed image is no JPEG", _REMEDY)
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            raise SourceError(name, f"damaged JPEG: no marker at byte {at}", _REMEDY)
        if frame[at + 1] == 0xFF:  # markers may be padded
            at += 1
            continue
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        yield frame[at + 1], frame[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _read_jpeg_2000(frame: bytes, name: str) -> Codestream:
    """Size and depth of a JPEG 2000 stream, with or without the JP2 boxes before it."""
    found = _SIZE_MARKER.search(frame, 0, 4096)
    if not found or len(frame) < found.end() + 39:
        raise SourceError(name, "damaged JPEG 2000: no size marker", _REMEDY)
    at = found.end() + 4
    width, height, left, top = (
        int.from_bytes(frame[at + 4 * i : at + 4 * i + 4], "big") for i in range(4)
    )
    components = int.from_bytes(frame[at + 32 : at + 34], "big")
    bits = (frame[at + 34] & 0x7F) + 1  # the highest bit is the sign's
    return Codestream((height - top, width - left), components, bits)
