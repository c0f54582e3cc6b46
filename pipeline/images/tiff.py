"""TIFF bytes -> the page that is the picture, in 8 bits a sample. Pure.

Pillow decodes samples of 1, 2, 4 and 8 bits. Deeper and odder ones come from tifffile: Pillow
passes over where black lies, how many bits are meant, and planes that are stored apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tifffile import (
    EXTRASAMPLE,
    PHOTOMETRIC,
    SAMPLEFORMAT,
    TiffFile,
    TiffFileError,
    TiffPage,
)

from pipeline.errors import SourceError
from pipeline.grey_range import GreyRange, find_limits
from pipeline.records import MAX_PIXELS, MIN_SIDE_PX

TIFF_MAGICS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_BITS: Final = frozenset({1, 2, 4, 8})
_MOST_BITS: Final = 16
_MOST_PAGES: Final = 1000
_ORIENTATION: Final = 274
# Samples that make up a colour -> Pillow's mode.
_MODES: Final[Mapping[int, str]] = {
    PHOTOMETRIC.MINISWHITE: "L",
    PHOTOMETRIC.MINISBLACK: "L",
    PHOTOMETRIC.RGB: "RGB",
    PHOTOMETRIC.SEPARATED: "CMYK",
}
_KINDS: Final[Mapping[int, str]] = {
    SAMPLEFORMAT.UINT: "",
    SAMPLEFORMAT.INT: "signed ",
    SAMPLEFORMAT.IEEEFP: "floating-point ",
    SAMPLEFORMAT.VOID: "",  # "undefined data", which TIFF 6.0 lets a reader take for the first
}
_REMEDY: Final = "Save it as grey or RGB of 8 or 16 bits a sample, from black to white"


def open_tiff(data: bytes, name: str, grey_range: GreyRange = "full") -> tuple[Image.Image, int]:
    """Open the one picture of a TIFF.

    Pages that say they are reduced copies of another, or masks, are none, unless there is no other.

    Args:
        data: Bytes of the file.
        name: Public name of the file, for errors.
        grey_range: Range of grey of more than 8 bits, as `find_limits` takes it.

    Returns:
        The picture, whose pixels may not have been decoded yet; and its bits a sample in the file.
        Samples of other than 1, 2, 4 and 8 bits have been scaled from the whole range of their
        bits, or from another that was given, and 0 is black.

    Raises:
        SourceError: It holds several pictures, or samples without an agreed range.
        Exception: It is damaged; the parsers may raise anything.
    """
    with TiffFile(BytesIO(data), _multifile=False) as file:
        number, page = _choose_page(file, name)
        bits = _find_bits(page, name)
        require_size(int(page.imagewidth), int(page.imagelength), name)
        if bits not in _PLAIN_BITS:
            return _decode(page, bits, len(data), name, grey_range), bits
        try:
            image = Image.open(BytesIO(data), formats=("TIFF",))
            image.seek(number)
        except (UnidentifiedImageError, SyntaxError) as error:  # Pillow's word for unknown forms
            raise _refuse_form(page, bits, name) from error
        return image, bits


def require_size(width: int, height: int, name: str) -> None:
    """Refuse an image that is smaller or larger than any radiograph, before it takes memory.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        name: Public name of the file, for errors.

    Raises:
        SourceError: It is.
    """
    if width * height > MAX_PIXELS:
        problem = f"{width} x {height} pixels, at most {MAX_PIXELS} are read"
        raise SourceError(name, problem, "Replace or remove the file, or leave it out")
    if min(width, height) < MIN_SIDE_PX:
        problem = f"{width} x {height} pixels, a side needs at least {MIN_SIDE_PX}"
        raise SourceError(name, problem, "Replace or remove the file, or leave it out")


def _choose_page(file: TiffFile, name: str) -> tuple[int, TiffPage]:
    pages: dict[int, tuple[int, TiffPage]] = {}
    for number, page in enumerate(islice(file.pages, _MOST_PAGES)):
        pages.setdefault(page.offset, (number, page.aspage()))  # a chain of pages may lead back
    full = [(at, page) for at, page in pages.values() if not (page.is_reduced or page.is_mask)]
    candidates = full or list(pages.values())
    if len(candidates) > 1:
        raise SourceError(name, f"holds {len(candidates)} frames", "Give one file a frame")
    return candidates[0]


def _find_bits(page: TiffPage, name: str) -> int:
    """Find the bits of every sample, which must be whole numbers from 0."""
    bits = page.bitspersample
    if not isinstance(bits, int):
        raise SourceError(name, f"samples of different bits, {tuple(bits)}", _REMEDY)
    kind = _KINDS.get(page.sampleformat, "complex ")
    if kind or not 0 < bits <= _MOST_BITS:
        problem = f"{kind}{bits}-bit values, which have no agreed range"
        raise SourceError(name, problem, _REMEDY)
    return bits


def _decode(
    page: TiffPage, bits: int, size_bytes: int, name: str, grey_range: GreyRange
) -> Image.Image:
    photometric, samples = page.photometric, int(page.samplesperpixel)
    mode = _MODES.get(photometric, "")
    extra = page.extrasamples[0] if samples == len(mode) + 1 and page.extrasamples else None
    if not mode or not len(mode) <= samples <= len(mode) + 1 or page.imagedepth != 1:
        raise _refuse_form(page, bits, name)
    values = _read_samples(page, size_bytes)
    is_deep_grey = mode == "L" and bits > 8
    limits = find_limits(grey_range, values[..., 0]) if is_deep_grey else None
    pixels = scale_to_bytes(values, bits)
    if limits is not None:  # not of alpha
        pixels[..., 0] = scale_to_bytes(values[..., 0], bits, limits)
    if photometric == PHOTOMETRIC.MINISWHITE:
        pixels[..., 0] = 255 - pixels[..., 0]
    if extra == EXTRASAMPLE.UNASSALPHA and mode != "CMYK":
        mode += "A"  # colours that alpha has been multiplied into lie on black already
    pixels = pixels[..., : len(mode)]
    shape = pixels.shape[:2] if mode == "L" else pixels.shape
    image = Image.frombytes(mode, shape[1::-1], pixels.tobytes())
    image.getexif()[_ORIENTATION] = page.tags.valueof(_ORIENTATION, 1)
    return image


def _refuse_form(page: TiffPage, bits: int, name: str) -> SourceError:
    kind = getattr(page.photometric, "name", str(page.photometric))
    problem = f"{page.samplesperpixel} samples a pixel of {bits} bits, stored as {kind}"
    return SourceError(name, problem, _REMEDY)


def _read_samples(page: TiffPage, size_bytes: int) -> NDArray[np.unsignedinteger]:
    """Read a page of which nothing is missing: tifffile leaves black what is not there.

    Returns:
        (height, width, samples).
    """
    counts = page.databytecounts
    is_whole = len(page.dataoffsets) == len(counts) == np.prod(page.chunked) and all(counts)
    if not is_whole:
        raise TiffFileError("strips or tiles are missing")
    end = max(map(sum, zip(page.dataoffsets, counts, strict=True)))
    if end > size_bytes:
        raise TiffFileError(f"its pixels end at byte {end}, the file at byte {size_bytes}")
    stored = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (plane, height, width, sample)
    return np.concatenate(list(stored), axis=-1)


def scale_to_bytes(
    values: NDArray[np.integer[Any]], bits: int, limits: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Scale values so that the lower limit becomes 0 and the higher 255.

    Args:
        values: Unsigned integers of any shape.
        bits: Bits of each value, 1 to 16.
        limits: Lower and higher limit; None for 0 and the greatest value that the bits can hold.
    """
    if limits is not None:
        low, high = limits
        unit = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
        return np.floor(unit * 255 + 0.5).astype(np.uint8)
    full = (1 << bits) - 1
    return ((values.astype(np.uint32) * 510 + full) // (2 * full)).astype(np.uint8)
