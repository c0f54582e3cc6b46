"""Image bytes -> uint8 arrays of one size: decode, grey, centre crop, equalise, resize. Pure.

The order is that of the paper's public code: grey, crop, equalise, resize.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Final, Literal, NamedTuple, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipeline.errors import NormscopeError, SourceError
from pipeline.grey_range import GreyRange, find_limits
from pipeline.images.tiff import TIFF_MAGICS, open_tiff, require_size, scale_to_bytes
from pipeline.io.stand_ins import require_content
from pipeline.privacy.redaction import withhold_quotes
from pipeline.records import MAX_PIXELS, MIN_SIDE_PX

Resampling: TypeAlias = Literal["antialiased", "area"]

_REMEDY: Final = "Replace or remove the file, or leave it out"
_WITH_ALPHA: Final = frozenset({"LA", "PA", "RGBA", "RGBa"})
_DEEP_GREY: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_RESAMPLINGS: Final[Mapping[Resampling, Image.Resampling]] = {
    "antialiased": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
}
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
# The end of an IHDR (PNG 11.2.1): 8 bits, grey, deflate, adaptive filters, not interlaced.
_PLAIN_GREY: Final = bytes([8, 0, 0, 0, 0])
_PLAIN_CHUNKS: Final = frozenset({b"IHDR", b"IDAT", b"IEND"})
# Beside the critical chunks: transparency, orientation, animation.
_SPEAKING_CHUNKS: Final = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
_TEXT_CHUNKS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTED_TEXT: Final = re.compile(rb"Raw profile type|XML:com\.adobe\.xmp|xmp")
# Editors' histories make an XMP of megabytes; the sum of all texts stays bounded.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# A deep image that uses no more greys than this, of 256, is one that was not scaled.
_NARROW_GREYS: Final = 64


class Decoded(NamedTuple):
    """A file's image.

    Args:
        pixels: uint8 (H, W, C), one channel (grey) or three (red, green, blue).
        remark: Words for the manifest where the file is odd and was taken all the same; else "".
    """

    pixels: NDArray[np.uint8]
    remark: str = ""


def decode_image(data: bytes, name: str, *, grey_range: GreyRange = "full") -> Decoded:
    """Decode a PNG, JPEG or TIFF.

    Grey and colour are scaled from the whole range of a sample's bits (65535 of 16 -> 255), with 0
    as black; grey of more than 8 bits from another range, if one is given. A palette is looked up,
    transparency is laid on black, an EXIF orientation is applied.

    Args:
        data: The file's bytes.
        name: Public name of the file, for errors.
        grey_range: Range of grey of more than 8 bits, as `find_limits` takes it.

    Returns:
        One channel where the file is grey, three otherwise.

    Raises:
        SourceError: The bytes are no such image, are cut off or damaged, hold several frames or
            values without an agreed range, or are smaller or larger than any radiograph.
    """
    if not data:
        raise SourceError(name, "the file is empty", _REMEDY)
    require_content(data, name)
    is_png = data.startswith(_PNG_MAGIC)
    data = _drop_comments(data) if is_png else data
    plain = _decode_plain_png(data) if is_png else None
    if plain is not None:
        return Decoded(plain)
    try:
        image, bits = _open(data, name, grey_range)
        with image:
            remark = _check(image, name)
            image.load()
            pixels = _to_pixels(ImageOps.exif_transpose(image), grey_range)
    except UnidentifiedImageError as error:
        raise SourceError(name, "not a PNG, JPEG or TIFF image", _REMEDY) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SourceError(name, f"more than {MAX_PIXELS} pixels", _REMEDY) from error
    except NormscopeError:
        raise
    except Exception as error:  # a parser of foreign bytes may raise anything
        problem = f"cut off or damaged ({withhold_quotes(str(error))})"
        raise SourceError(name, problem, _REMEDY) from error
    return Decoded(pixels, remark or _describe_range(pixels, bits, grey_range))


def prepare_image(
    pixels: NDArray[np.uint8],
    name: str,
    *,
    size_px: int,
    channels: int,
    crop_px: int | None = None,
    equalize: bool = False,
    resampling: Resampling = "antialiased",
) -> NDArray[np.uint8]:
    """Bring an image to the shape of its dataset.

    Args:
        pixels: uint8 (H, W, 1 or 3).
        name: Public name of the file, for errors.
        size_px: Side of the result. The whole (cropped) image is squeezed into it, so that
            nothing is cut off unasked.
        channels: 1: colour becomes grey by ITU-R BT.601 luma. 3: grey is repeated.
        crop_px: Side of the square that is first cut from the centre, in the file's pixels.
        equalize: Whether to equalise the histogram of the cropped grey image.
        resampling: `antialiased` weighs neighbours by a triangle as wide as the reduction,
            `area` takes the mean of the pixels that fall into one.

    Returns:
        uint8 (size_px, size_px, channels).

    Raises:
        SourceError: The image is smaller than the crop.
        ValueError: Equalising colour, or a number of channels other than 1 and 3.
    """
    if channels not in {1, 3} or (equalize and channels != 1):
        raise ValueError(f"{channels} channels, equalize {equalize}: give 1, or 3 unequalised")
    image = _to_image(pixels, channels)
    if crop_px is not None:
        image = _crop_centre(image, crop_px, name)
    if equalize:
        image = ImageOps.equalize(image)
    small = np.asarray(image.resize((size_px, size_px), _RESAMPLINGS[resampling]))
    small = small.reshape(size_px, size_px, -1)
    return np.repeat(small, channels // small.shape[2], axis=2)


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, C) has no colour: one channel, or three that are equal."""
    return bool((pixels == pixels[..., :1]).all())


def _open(data: bytes, name: str, grey_range: GreyRange) -> tuple[Image.Image, int]:
    """Open an image, and tell its bits a sample; of several pictures in a JPEG the first."""
    if data.startswith(TIFF_MAGICS):
        return open_tiff(data, name, grey_range)
    bits = data[24] if data.startswith(_PNG_MAGIC) else 8
    return Image.open(BytesIO(data), formats=("PNG", "JPEG")), bits


def _list_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and stop of each whole chunk of a PNG."""
    at = len(_PNG_MAGIC)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if at + 12 + length > len(data):
            return
        yield kind, at, at + 12 + length
        at += 12 + length


def _drop_comments(data: bytes) -> bytes:
    """A PNG without the chunks that say nothing of its pixels: text, colour profile, time.

    They may be of any size. What states an orientation stays: EXIF, and texts that hold it or XMP.
    """
    kept, end = [data[: len(_PNG_MAGIC)]], len(_PNG_MAGIC)
    for kind, start, end in _list_chunks(data):
        is_oriented = kind in _TEXT_CHUNKS and _ORIENTED_TEXT.match(data, start + 8)
        is_critical = not kind[0] & 0x20  # PNG 5.4
        if is_critical or kind in _SPEAKING_CHUNKS or is_oriented:
            kept.append(data[start:end])
    return b"".join([*kept, data[end:]])


def _decode_plain_png(data: bytes) -> NDArray[np.uint8] | None:
    """A PNG of 8-bit grey and nothing unusual, by libpng in half of Pillow's time.

    Returns:
        uint8 (H, W, 1) as Pillow gives it, or None where Pillow is to decode or to refuse.
    """
    if data[24:29] != _PLAIN_GREY:
        return None
    width, height = struct.unpack(">II", data[16:24])
    if min(width, height) < MIN_SIDE_PX or width * height > MAX_PIXELS:
        return None
    if any(kind not in _PLAIN_CHUNKS for kind, _, _ in _list_chunks(data)):
        return None
    try:
        pixels: NDArray[np.uint8] = imagecodecs.png_decode(data)
    except (imagecodecs.PngError, UnicodeDecodeError):  # the latter from the former's own words
        return None
    return pixels[..., None] if pixels.shape == (height, width) else None


def _check(image: Image.Image, name: str) -> str:
    """Refuse an image by its shape, and return a remark on one that is taken in part."""
    require_size(*image.size, name)
    if image.format in {"TIFF", None}:  # its picture has been chosen
        return ""
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":  # CIPA DC-007: further views, or data of a phone's own
        return f"holds {frames} pictures, of which the first is taken"
    if frames > 1:
        raise SourceError(name, f"holds {frames} frames", "Give one file a frame")
    return ""


def _describe_range(pixels: NDArray[np.uint8], bits: int, grey_range: GreyRange) -> str:
    """Remark on a deep image that fills little of its range, as values of 12 bits in 16 do."""
    low, high = int(pixels.min()), int(pixels.max())
    if bits <= 8 or grey_range != "full" or not 0 < high - low <= _NARROW_GREYS:
        return ""
    share = round(255 / (high - low))
    used = f"uses 1/{share} of the range of its {bits} bits: greys {low} to {high} of 255"
    return f"{used}; `--grey-range` chooses"


def _to_pixels(image: Image.Image, grey_range: GreyRange) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GREY or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image)
        return scale_to_bytes(values, 16, find_limits(grey_range, values))[..., None]
    if image.mode == "La":  # alpha has been multiplied in, so it lies on black already
        image = image.getchannel("L")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        grey = image.mode in {"L", "LA"}
        image = _lay_on_black(image.convert("RGBA"))
        image = image.convert("L") if grey else image
    if image.mode not in {"L", "RGB"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _lay_on_black(image: Image.Image) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert(
        "RGB"
    )


def _to_image(pixels: NDArray[np.uint8], channels: int) -> Image.Image:
    """As grey or colour; grey stays grey until it has been resized, which is faster."""
    if pixels.shape[2] == 1:
        return Image.fromarray(pixels[..., 0])
    image = Image.fromarray(pixels)
    return image.convert("L") if channels == 1 else image


def _crop_centre(image: Image.Image, side: int, name: str) -> Image.Image:
    width, height = image.size
    if min(width, height) < side:
        raise SourceError(
            name,
            f"{width} x {height} pixels, smaller than the centre crop of {side}",
            "Choose a smaller crop_px, or none",
        )
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
