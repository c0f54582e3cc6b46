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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian

from pipeline.errors import SourceError

Voi: TypeAlias = int | str
Values: TypeAlias = NDArray[np.float64]
_REMEDY: Final = "Export it again, or leave it out"


@dataclass(frozen=True)
class _Lut:
    """A look-up table (PS3.3 C.11.1.1); a value outside it gives the first or last entry."""

    entries: Values
    first: int
    top: int

    def apply(self, values: Values) -> Values:
        # The descriptor's first value may be signed or not, whatever its own type says.
        first = self.first - 65536 if self.first > 32767 and values.min() < 0 else self.first
        at = np.floor(values + 0.5).astype(np.int64) - first
        return self.entries[np.clip(at, 0, len(self.entries) - 1)]


@dataclass(frozen=True)
class _Window:
    """A window (PS3.3 C.11.2.1.2), in the values that the modality stage gives."""

    center: float
    width: float
    function: str

    def apply(self, values: Values) -> Values:
        """Into [0, 1]."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
        # LINEAR counts whole values, so that a width of 1 is a step; LINEAR_EXACT measures.
        shift = 0.5 if self.function == "LINEAR" else 0.0
        center, width = self.center - shift, self.width - 2 * shift
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


def storable_range(bits_stored: int, *, is_signed: bool) -> tuple[int, int]:
    """The least and the greatest value that the stored bits can hold."""
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
    """The grey of every storable value.

    Args:
        dataset: Its modality and VOI attributes are used.
        name: What errors call it.
        bits_stored: Up to 16.
        is_signed: Whether stored values are two's complement.
        is_inverted: Whether the presentation stage inverts.
        voi: As of `dicom_pixels.render_pixels`.

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
    """Stage 1, and the least and greatest value that can come out of it."""
    luts = dataset.get("ModalityLUTSequence") or ()
    if luts:
        lut = _read_lut(dataset, luts[0], name)
        return lut.apply(stored), (0, lut.top)
    slope, intercept = (
        (_floats(dataset, keyword) or [default])[0]
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise SourceError(name, f"rescale slope {slope}, intercept {intercept}", _REMEDY)
    ends = sorted(limit * slope + intercept for limit in limits)
    return stored * slope + intercept, (ends[0], ends[1])


def _apply_voi(
    dataset: Dataset, values: Values, limits: tuple[float, float], name: str, voi: Voi
) -> Values:
    """Stage 2, into [0, 1]."""
    luts = list(dataset.get("VOILUTSequence") or ())
    windows = _read_windows(dataset, name)
    words = [str(item.get("LUTExplanation") or "") for item in luts]
    words += _texts(dataset, "WindowCenterWidthExplanation")[: len(windows)]
    at = _find_voi(words, len(luts) + len(windows), name, voi)
    if at is None:
        low, high = limits
        return (values - low) / (high - low)
    if at < len(luts):
        lut = _read_lut(dataset, luts[at], name)
        return lut.apply(values) / lut.top
    return windows[at - len(luts)].apply(values)


def _find_voi(words: Sequence[str], count: int, name: str, voi: Voi) -> int | None:
    """Position of the VOI asked for, or None where the first is, and there is none."""
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


def _read_windows(dataset: Dataset, name: str) -> list[_Window]:
    centers, widths = _floats(dataset, "WindowCenter"), _floats(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if len(centers) != len(widths):
        raise SourceError(name, f"{len(centers)} window centres, {len(widths)} widths", _REMEDY)
    if not centers:
        return []
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise SourceError(name, "unknown VOI LUT function", _REMEDY)
    least = 1.0 if function == "LINEAR" else np.nextafter(0, 1)
    wrong = [width for width in widths if not least <= width < np.inf]
    if wrong or not np.isfinite(centers).all():
        raise SourceError(name, f"window centres {centers}, widths {widths}", _REMEDY)
    return [_Window(*pair, function) for pair in zip(centers, widths, strict=True)]


def _read_lut(dataset: Dataset, item: Dataset, name: str) -> _Lut:
    """One LUT of a sequence.

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
    return _Lut(entries[:count].astype(np.float64), first, 2**bits - 1)


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


def _floats(dataset: Dataset, keyword: str) -> list[float]:
    return [float(value) for value in _values(dataset, keyword)]


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    return [str(value) for value in _values(dataset, keyword)]
