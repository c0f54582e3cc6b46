"""DICOM's grey-scale transformations (PS3.4 N.2, PS3.3 C.11): stored value -> grey. Pure.

Three stages in this order, each once:

1. modality: the modality LUT, else rescale slope and intercept, else nothing;
2. VOI: a VOI LUT or window, the first (LUTs count before windows) unless another is named; a file
   without any shows the whole range of its stored bits;
3. presentation: inverted where the photometric interpretation is MONOCHROME1 or the presentation
   LUT shape is INVERSE; both together say the same thing and invert once (PS3.3 C.8.11.3.1.2).
   MONOCHROME1 with the shape IDENTITY contradicts itself; it is inverted, as PS3.3 C.7.6.3.1.2
   says of MONOCHROME1 without any condition.

They are applied to every value that can be stored, not to every pixel: the result is a table.
pydicom applies the windows. The LUTs are applied here: docs/adr/0015-grey-lookup-tables.md.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import ExplicitVRBigEndian

from pipeline.errors import SourceError

Voi: TypeAlias = int | str
Values: TypeAlias = NDArray[np.float64]
_REMEDY: Final = "Export it again, or leave it out"


def storable_range(bits_stored: int, *, is_signed: bool) -> tuple[int, int]:
    """Return the least and the greatest value that the stored bits can hold."""
    half = 2 ** (bits_stored - 1)
    return (-half, half - 1) if is_signed else (0, 2 * half - 1)


def make_grey_table(
    dataset: Dataset,
    name: str,
    *,
    bits_stored: int,
    is_signed: bool,
    is_inverted: bool,
    voi: Voi = 0,
) -> NDArray[np.uint8]:
    """Compute the grey of every storable value.

    Args:
        dataset: Header whose modality and VOI attributes are applied.
        name: Public name of the file, for errors.
        bits_stored: Bits that hold a pixel's value, 1 to 16.
        is_signed: Whether stored values are two's complement.
        is_inverted: Whether the presentation stage inverts.
        voi: Position of a VOI LUT or window (LUTs first, then windows), or its explanation in the
            file. Position 0 may be absent.

    Returns:
        uint8 (2 ** bits_stored,): entry for 0 to the greatest value, then for the negative ones
        in ascending order, so that a stored value, negative or not, is its index in NumPy.

    Raises:
        SourceError: The attributes contradict the standard, or lack the VOI asked for.
    """
    low, high = storable_range(bits_stored, is_signed=is_signed)
    stored = np.concatenate([np.arange(high + 1), np.arange(low, 0)]).astype(np.float64)
    values, limits = _apply_modality(dataset, stored, (low, high), name)
    grey = _apply_voi(dataset, values, limits, name, voi)
    if is_inverted:
        grey = 1 - grey
    return np.floor(grey * 255 + 0.5).astype(np.uint8)


def _apply_modality(
    dataset: Dataset, stored: Values, limits: tuple[float, float], name: str
) -> tuple[Values, tuple[float, float]]:
    """Apply stage 1; also return the least and greatest value that can come out of it."""
    if luts := dataset.get("ModalityLUTSequence"):
        values, top = _apply_lut(dataset, luts[0], stored, name)
        return values, (0, top)
    slope = next(iter(_floats(dataset, "RescaleSlope")), 1.0)
    intercept = next(iter(_floats(dataset, "RescaleIntercept")), 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise SourceError(name, f"rescale slope {slope}, intercept {intercept}", _REMEDY)
    low, high = sorted(limit * slope + intercept for limit in limits)
    return stored * slope + intercept, (low, high)


def _apply_voi(
    dataset: Dataset, values: Values, limits: tuple[float, float], name: str, voi: Voi
) -> Values:
    """Apply stage 2, into [0, 1]."""
    luts = list(dataset.get("VOILUTSequence") or ())
    windows = _read_windows(dataset, name)
    words = [str(item.get("LUTExplanation") or "") for item in luts]
    explanations = _list_values(dataset, "WindowCenterWidthExplanation")[: len(windows)]
    at = _find_voi([*words, *map(str, explanations)], len(luts) + len(windows), name, voi)
    if at is None:
        low, high = limits
        return (values - low) / (high - low)
    if at < len(luts):
        grey, top = _apply_lut(dataset, luts[at], values, name)
        return grey / top
    return apply_windowing(values, windows[at - len(luts)])


def _find_voi(words: list[str], count: int, name: str, voi: Voi) -> int | None:
    """Find the position of the VOI asked for; None where the first is, and there is none."""
    held = f"it has {count} VOI LUTs and windows"
    if isinstance(voi, int):
        if voi == 0 and count == 0:
            return None
        if not 0 <= voi < count:
            raise SourceError(name, f"no VOI at position {voi}: {held}", "Choose another `voi`")
        return voi
    folded = [word.strip().casefold() for word in words]
    if voi.strip().casefold() not in folded:
        raise SourceError(name, f"no VOI called {voi!r}: {held}", "Choose another `voi`")
    return folded.index(voi.strip().casefold())


def _read_windows(dataset: Dataset, name: str) -> list[Dataset]:
    """Read the windows, each as a dataset from which pydicom maps values into [0, 1]."""
    centers, widths = _floats(dataset, "WindowCenter"), _floats(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if len(centers) != len(widths):
        raise SourceError(name, f"{len(centers)} window centres, {len(widths)} widths", _REMEDY)
    if centers and function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise SourceError(name, "unknown VOI LUT function", _REMEDY)
    least = 1.0 if function == "LINEAR" else np.nextafter(0, 1)
    if not all(least <= width < np.inf for width in widths) or not np.isfinite(centers).all():
        raise SourceError(name, f"window centres {centers}, widths {widths}", _REMEDY)
    windows = []
    for center, width in zip(centers, widths, strict=True):
        window = Dataset()
        window.add_new("WindowCenter", "FD", center)
        window.add_new("WindowWidth", "FD", width)
        window.VOILUTFunction = function
        # pydicom maps to the stored values' range: that of one unsigned bit is [0, 1].
        window.PhotometricInterpretation = "MONOCHROME2"
        window.BitsStored, window.PixelRepresentation = 1, 0
        windows.append(window)
    return windows


def _apply_lut(dataset: Dataset, item: Dataset, values: Values, name: str) -> tuple[Values, int]:
    """Apply a LUT (PS3.3 C.11.1.1); a value outside it gives the first or last entry.

    Returns:
        The entries, and the greatest value that their bits can hold.

    Raises:
        SourceError: Its data do not fit its descriptor.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = (count & 0xFFFF) or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        # 8-bit entries may be packed two a word (PS3.3 C.11.1.1.1).
        syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        entries = np.frombuffer(data, "u1" if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data))
    if not 8 <= bits <= 16 or len(entries) < count or entries[:count].max() >= 2**bits:
        raise SourceError(
            name, f"a LUT of {len(entries)} entries, described as {count} of {bits} bits", _REMEDY
        )
    # The descriptor's first value may be signed or not, whatever its own type says.
    first = first - 65536 if first > 32767 and values.min() < 0 else first
    at = np.floor(values + 0.5).astype(np.int64) - first
    return entries[np.clip(at, 0, count - 1)].astype(np.float64), 2**bits - 1


def _list_values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


def _floats(dataset: Dataset, keyword: str) -> list[float]:
    return [float(value) for value in _list_values(dataset, keyword)]
