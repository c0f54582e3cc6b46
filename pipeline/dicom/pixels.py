"""DICOM datasets -> grey images as meant for display. Pure.

Rules: one grey frame a file, of 8 or 16 bits allocated. Multi-frame and colour (RGB, YBR, palette)
are refused; overlays are not drawn; the image is not turned, its orientation is recorded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from pipeline.dicom.codecs import check_codestream, find_decoder
from pipeline.dicom.grey import StoredForm, make_grey_table
from pipeline.dicom.header import COLOURS
from pipeline.dicom.masks import Mask, draw_shutter, read_padding
from pipeline.dicom.parse import parse_dicom, refusing
from pipeline.dicom.voi import Voi
from pipeline.errors import SourceError
from pipeline.grey_range import GreyRange
from pipeline.records import MAX_PIXELS, MIN_SIDE_PX

Stored: TypeAlias = NDArray[np.integer[Any]]
_REMEDY: Final = "Export it again, or leave it out"
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
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


class Rendered(NamedTuple):
    """A file's image as meant for display.

    Args:
        pixels: uint8 (H, W), 0 is black.
        facts: Shape, bits, transfer syntax and orientation by which the pixels were read.
        remark: Words for the manifest where the file is odd and was taken all the same; else "".
    """

    pixels: NDArray[np.uint8]
    facts: PixelFacts
    remark: str


def decode_dicom(
    data: bytes, name: str, *, voi: Voi = 0, grey_range: GreyRange = "full"
) -> Rendered:
    """Decode a DICOM file to grey.

    Args:
        data: The file's bytes.
        name: Public name of the file, for errors; a file's own name may hold a person's.
        voi: Position or explanation of a VOI LUT or window, as `render_pixels` takes it.
        grey_range: Range of greys where the file has no VOI, as `make_grey_table` takes it.

    Raises:
        SourceError: It cannot be parsed or decoded.
    """
    return render_pixels(parse_dicom(data, name), name, voi=voi, grey_range=grey_range)


def render_pixels(
    dataset: Dataset, name: str, *, voi: Voi = 0, grey_range: GreyRange = "full"
) -> Rendered:
    """Decode a dataset's frame and bring it to grey by modality, VOI and presentation.

    Padding, and what a display shutter covers, is black.

    Args:
        dataset: With `file_meta` and pixel data.
        name: Public name of the file, for errors.
        voi: Position of a VOI LUT or window (LUTs first, then windows), or its explanation in the
            file, in any case of letters. Position 0 may be absent, any other may not.
        grey_range: Range of greys where the file has no VOI, as `make_grey_table` takes it.

    Raises:
        SourceError: The frame is not grey, single, whole, of 8 or 16 bits allocated and between
            `MIN_SIDE_PX` and `MAX_PIXELS`, has no decoder, or lacks the VOI asked for.
    """
    facts = describe_pixels(dataset, name)
    stored, bits = _decode(dataset, facts, name)
    remarks = []
    if bits != facts.bits_stored:
        remarks.append(f"its pixels have {bits} bits, its header says {facts.bits_stored}")
        facts = replace(facts, bits_stored=bits)
    form = StoredForm(bits, facts.is_signed)
    low, high = form.limits
    if stored.min() < low or stored.max() > high:
        raise SourceError(
            name, f"pixel values {stored.min()} to {stored.max()} exceed {bits} bits", _REMEDY
        )
    with refusing(name, "the grey-scale attributes are damaged", _REMEDY):
        visible, shutter_remark = draw_shutter(dataset, facts.shape_yx)
        padding, counted, padding_remark = _leave_out_padding(dataset, form, stored, visible)
        table = make_grey_table(
            dataset,
            name,
            form,
            counted,
            is_inverted=facts.is_inverted,
            padding=padding,
            voi=voi,
            grey_range=grey_range,
        )
    # The table has one entry a storable value, negative ones at its end, as NumPy indexes.
    pixels = np.take(table.greys, stored)
    if visible is not None:
        pixels[~visible] = 0
    remarks += [table.remark, padding_remark, shutter_remark]
    return Rendered(pixels, facts, "; ".join(filter(None, remarks)))


def _leave_out_padding(
    dataset: Dataset, form: StoredForm, stored: Stored, visible: Mask | None
) -> tuple[tuple[int, int] | None, Stored, str]:
    """Values of padding, the stored values (pixel,) that show something, and a remark."""
    shown = stored.ravel() if visible is None else stored[visible]
    padding = read_padding(dataset, form)
    if padding is None:
        return None, shown, ""
    counted = shown[(shown < padding[0]) | (shown > padding[1])]
    if len(counted):
        return padding, counted, ""
    return None, shown, "its padding is shown: it would leave nothing of the image"


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
    if photometric in COLOURS or samples != 1:
        called = photometric if photometric in COLOURS else f"{samples} samples a pixel"
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


def _decode(dataset: Dataset, facts: PixelFacts, name: str) -> tuple[Stored, int]:
    """Stored values (H, W), the unused high bits cleared; and the bits that hold them."""
    syntax = UID(facts.transfer_syntax)
    bits = facts.bits_stored
    options: dict[str, Any] = {}
    with refusing(name, f"its pixel data cannot be decoded ({syntax.name})", _REMEDY):
        data = dataset.get("PixelData")
        if not data:
            raise SourceError(name, "it holds no pixel data", _REMEDY)
        if syntax.is_encapsulated:
            frame = get_frame(data, 0, number_of_frames=1)
            stream = check_codestream(frame, syntax, facts.shape_yx, name)
            if stream is not None:
                options = _describe_samples(stream.bits, name)
                bits = stream.bits
        else:
            _check_length(data, dataset, facts, name)
        pixels = find_decoder(syntax).as_array(dataset, index=0, raw=True, **options)[0]
    if pixels.shape != facts.shape_yx:
        raise SourceError(name, f"decoded to {pixels.shape}, not {facts.shape_yx}", _REMEDY)
    return pixels, _judge_bits(pixels, bits, facts)


def _describe_samples(bits: int, name: str) -> dict[str, int]:
    """What pydicom is told of a frame's samples; the header may say otherwise (PS3.5 8.2)."""
    if not 1 <= bits <= 16:
        raise SourceError(name, f"the compressed image has samples of {bits} bits", _REMEDY)
    return {"bits_allocated": 8 if bits <= 8 else 16, "bits_stored": bits, "high_bit": bits - 1}


def _judge_bits(pixels: Stored, bits: int, facts: PixelFacts) -> int:
    """Bits of the values: the frame's, or fewer by the header where all values fit into them.

    Many encoders write words of 16 bits whatever they hold; then the header is right.
    """
    low, high = StoredForm(facts.bits_stored, facts.is_signed).limits
    fits = facts.bits_stored < bits and low <= pixels.min() and pixels.max() <= high
    return facts.bits_stored if fits else bits


def _check_length(data: bytes, dataset: Dataset, facts: PixelFacts, name: str) -> None:
    rows, columns = facts.shape_yx
    expected = rows * columns * int(dataset.BitsAllocated) // 8
    if len(data) < expected:
        raise SourceError(name, f"cut off: {len(data)} of {expected} bytes of pixels", _REMEDY)
