"""DICOM datasets -> grey images as meant for display. Pure.

Rules: one grey frame a file, of 8 or 16 bits allocated. Multi-frame and colour (RGB, YBR, palette)
are refused; overlays are not drawn; the image is not turned, its orientation is recorded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from pipeline.dicom.codecs import check_codestream, find_decoder
from pipeline.dicom.grey import Voi, make_grey_table, storable_range
from pipeline.dicom.parse import parse_dicom, refusing
from pipeline.errors import SourceError
from pipeline.records import MAX_PIXELS, MIN_SIDE_PX

_REMEDY: Final = "Export it again, or leave it out"
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR: Final = frozenset(
    {"RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"}
)
_ORIENTATION: Final = re.compile(r"[APRLHF]{1,3}")


@dataclass(frozen=True, slots=True)
class PixelFacts:
    r"""How a file's pixels are to be understood; nothing in it tells of a person.

    Args:
        shape_yx: Rows and columns of the image.
        transfer_syntax: UID of the transfer syntax.
        photometric: `MONOCHROME1` or `MONOCHROME2`.
        bits_stored: 1 to 16.
        is_signed: Whether stored values are two's complement.
        is_inverted: Whether the presentation stage inverts.
        orientation: Directions of rows and columns in the patient, e.g. `L\F` (towards left,
            towards the feet); empty where unknown.
    """

    shape_yx: tuple[int, int]
    transfer_syntax: str
    photometric: str
    bits_stored: int
    is_signed: bool
    is_inverted: bool
    orientation: str


def decode_dicom(data: bytes, name: str, *, voi: Voi = 0) -> NDArray[np.uint8]:
    """Decode a DICOM file to grey.

    Args:
        data: The file's bytes.
        name: Public name of the file, for errors; a file's own name may hold a person's.
        voi: Position or explanation of a VOI LUT or window, as `render_pixels` takes it.

    Returns:
        uint8 (H, W); 0 is black.

    Raises:
        SourceError: It cannot be parsed or decoded.
    """
    return render_pixels(parse_dicom(data, name), name, voi=voi)[0]


def render_pixels(
    dataset: Dataset, name: str, *, voi: Voi = 0
) -> tuple[NDArray[np.uint8], PixelFacts]:
    """Decode a dataset's frame and bring it to grey by modality, VOI and presentation.

    Args:
        dataset: With `file_meta` and pixel data.
        name: Public name of the file, for errors.
        voi: Position of a VOI LUT or window (LUTs first, then windows), or its explanation in the
            file, in any case of letters. Position 0 may be absent, any other may not.

    Returns:
        uint8 (H, W), 0 is black, and the facts.

    Raises:
        SourceError: The frame is not grey, single, whole, of 8 or 16 bits allocated and between
            `MIN_SIDE_PX` and `MAX_PIXELS`, has no decoder, or lacks the VOI asked for.
    """
    facts = describe_pixels(dataset, name)
    with refusing(name, "the grey-scale attributes are damaged", _REMEDY):
        table = make_grey_table(
            dataset,
            name,
            bits_stored=facts.bits_stored,
            is_signed=facts.is_signed,
            is_inverted=facts.is_inverted,
            voi=voi,
        )
    stored = _decode(dataset, facts, name)
    # The table has one entry a storable value, negative ones at its end, as NumPy indexes.
    low, high = storable_range(facts.bits_stored, is_signed=facts.is_signed)
    if stored.min() < low or stored.max() > high:
        raise SourceError(
            name,
            f"pixel values {stored.min()} to {stored.max()} exceed {facts.bits_stored} bits stored",
            _REMEDY,
        )
    return np.take(table, stored), facts


def describe_pixels(dataset: Dataset, name: str) -> PixelFacts:
    """Read from the header alone what its pixels are, and refuse what will not be decoded.

    Args:
        dataset: With `file_meta`; pixel data need not be there.
        name: Public name of the file, for errors.

    Raises:
        SourceError: As `render_pixels`, as far as the header tells.
    """
    with refusing(name, "the image attributes are damaged", _REMEDY):
        syntax = _check_syntax(dataset, name)
        photometric = _check_grey(dataset, name)
        shape = _check_size(dataset, name)
        bits, is_signed = _check_bits(dataset, name)
        shape_word = str(dataset.get("PresentationLUTShape") or "").strip().upper()
        return PixelFacts(
            shape_yx=shape,
            transfer_syntax=str(syntax),
            photometric=photometric,
            bits_stored=bits,
            is_signed=is_signed,
            is_inverted=photometric == "MONOCHROME1" or shape_word == "INVERSE",
            orientation=_read_orientation(dataset),
        )


def _check_syntax(dataset: Dataset, name: str) -> UID:
    syntax = UID(str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or ""))
    if not syntax:
        raise SourceError(name, "no transfer syntax in the meta header", _REMEDY)
    # An unknown UID is not quoted: anything may stand there.
    called = "unknown" if syntax.name == str(syntax) else syntax.name
    try:
        is_available = find_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise SourceError(name, f"no decoder for its transfer syntax ({called})", _REMEDY)
    return syntax


def _check_grey(dataset: Dataset, name: str) -> str:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise SourceError(name, f"holds {frames} frames", "Give one file a frame")
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    samples = _read_number(dataset, "SamplesPerPixel", name, 1)
    if photometric in _COLOUR or samples != 1:
        called = photometric if photometric in _COLOUR else f"{samples} samples a pixel"
        raise SourceError(
            name, f"a colour image ({called}), no radiograph", "Leave it out, or export it as grey"
        )
    if photometric not in _GREY:
        raise SourceError(name, "no or an unknown photometric interpretation", _REMEDY)
    return photometric


def _check_size(dataset: Dataset, name: str) -> tuple[int, int]:
    rows, columns = _read_number(dataset, "Rows", name), _read_number(dataset, "Columns", name)
    if rows * columns > MAX_PIXELS:
        raise SourceError(
            name, f"{columns} x {rows} pixels, at most {MAX_PIXELS} are read", "Leave it out"
        )
    if min(rows, columns) < MIN_SIDE_PX:
        raise SourceError(
            name, f"{columns} x {rows} pixels, a side needs at least {MIN_SIDE_PX}", "Leave it out"
        )
    return rows, columns


def _check_bits(dataset: Dataset, name: str) -> tuple[int, bool]:
    """Bits stored, and whether they are signed."""
    allocated = _read_number(dataset, "BitsAllocated", name)
    stored = _read_number(dataset, "BitsStored", name)
    high_bit = _read_number(dataset, "HighBit", name, stored - 1)
    if allocated not in {8, 16} or not 1 <= stored <= allocated or high_bit != stored - 1:
        raise SourceError(
            name,
            f"{stored} bits stored of {allocated} allocated, high bit {high_bit}: not 8 or 16 "
            "allocated with the stored bits lowest (PS3.5 8.1.1)",
            _REMEDY,
        )
    return stored, _read_number(dataset, "PixelRepresentation", name, 0) == 1


def _read_number(dataset: Dataset, keyword: str, name: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is None:
        raise SourceError(name, f"no {keyword} in the header", _REMEDY)
    return int(default if value is None else value)  # type: ignore[arg-type]  # one is no None


def _read_orientation(dataset: Dataset) -> str:
    values = dataset.get("PatientOrientation") or ()
    words = [str(value).strip().upper() for value in values]
    is_lawful = len(words) == 2 and all(_ORIENTATION.fullmatch(word) for word in words)
    return "\\".join(words) if is_lawful else ""


def _decode(dataset: Dataset, facts: PixelFacts, name: str) -> NDArray[np.integer[Any]]:
    """Stored values (H, W), the unused high bits cleared."""
    syntax = UID(facts.transfer_syntax)
    problem = f"its pixel data cannot be decoded ({syntax.name})"
    with refusing(name, problem, _REMEDY):
        data = dataset.get("PixelData")
        if not data:
            raise SourceError(name, "it holds no pixel data", _REMEDY)
        if syntax.is_encapsulated:
            frame = get_frame(data, 0, number_of_frames=1)
            check_codestream(frame, syntax, *facts.shape_yx, name)
        else:
            _check_length(data, dataset, facts, name)
        pixels = find_decoder(syntax).as_array(dataset, index=0, raw=True)[0]
    if pixels.shape != facts.shape_yx:
        raise SourceError(name, f"decoded to {pixels.shape}, not {facts.shape_yx}", _REMEDY)
    return pixels


def _check_length(data: bytes, dataset: Dataset, facts: PixelFacts, name: str) -> None:
    rows, columns = facts.shape_yx
    expected = rows * columns * int(dataset.BitsAllocated) // 8
    if len(data) < expected:
        raise SourceError(name, f"cut off: {len(data)} of {expected} bytes of pixels", _REMEDY)
