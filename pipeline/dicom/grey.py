"""DICOM's grey-scale transformations (PS3.4 N.2, PS3.3 C.11): stored value -> grey. Pure.

Three stages in this order, each once:

1. modality: the modality LUT, else rescale slope and intercept, else nothing;
2. VOI: a VOI LUT or window, as `voi.choose_voi` chooses; a file without any shows the whole range
   of its stored bits, or a part of it as the user or `_choose_limits` says;
3. presentation: inverted where the photometric interpretation is MONOCHROME1 or the presentation
   LUT shape is INVERSE; both together say the same thing and invert once (PS3.3 C.8.11.3.1.2).
   MONOCHROME1 with the shape IDENTITY contradicts itself; it is inverted, as PS3.3 C.7.6.3.1.2
   says of MONOCHROME1 without any condition.

Padding takes no part in them (PS3.3 C.7.5.1.1.2): it is black, inverted or not.

They are applied to every value that can be stored, not to every pixel: the result is a table.
pydicom applies the windows. The LUTs are applied here: docs/adr/0015-grey-lookup-tables.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dicom.luts import Values, read_lut
from pipeline.dicom.voi import Voi, choose_voi, read_floats
from pipeline.errors import SourceError
from pipeline.grey_range import GreyRange, find_limits

_REMEDY: Final = "Export it again, or leave it out"
# A picture whose values span less than this share of what they could looks nearly black.
_NARROW: Final = 0.25


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How values are stored.

    Args:
        bits: Bits that hold a pixel's value, 1 to 16.
        is_signed: Whether stored values are two's complement.
    """

    bits: int
    is_signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value that the bits can hold."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.is_signed else (0, 2 * half - 1)

    def list_values(self) -> NDArray[np.int64]:
        """Every value that the bits can hold, each at its index in NumPy, negative ones last."""
        low, high = self.limits
        return np.concatenate([np.arange(high + 1), np.arange(low, 0)])

    def read(self, number: int) -> int | None:
        """Read a stored value that a header gives, of either sign whatever it means.

        Returns:
            The value, or None where the bits cannot hold it.
        """
        low, high = self.limits
        readings = (number, number - 2**16, number + 2**16, number - 2**self.bits)
        allowed = readings if self.is_signed else readings[:3]
        return next((value for value in allowed if low <= value <= high), None)


class GreyTable(NamedTuple):
    """The grey of every storable value.

    Args:
        greys: uint8 (2 ** bits,): entry for 0 to the greatest value, then for the negative ones in
            ascending order, so that a stored value, negative or not, is its index in NumPy.
        remark: Words for the manifest where the header is odd; else "".
    """

    greys: NDArray[np.uint8]
    remark: str


class _Limits(NamedTuple):
    """Values after the modality stage that are black and white, and a remark."""

    low: float
    high: float
    remark: str = ""


def make_grey_table(
    dataset: Dataset,
    name: str,
    form: StoredForm,
    counted: NDArray[np.integer[Any]],
    *,
    is_inverted: bool,
    padding: tuple[int, int] | None = None,
    voi: Voi = 0,
    grey_range: GreyRange = "full",
) -> GreyTable:
    """Compute the grey of every storable value.

    Args:
        dataset: Header whose modality and VOI attributes are applied.
        name: Public name of the file, for errors.
        form: Bits and sign of the stored values.
        counted: Stored values (pixel,) of the pixels that show something; never none.
        is_inverted: Whether the presentation stage inverts.
        padding: The least and the greatest value of pixels that show nothing and are black; None
            where there are none.
        voi: Position of a VOI LUT or window (LUTs first, then windows), or its explanation in the
            file. Position 0 may be absent.
        grey_range: Range of a file without a VOI, as `find_limits` takes it; limits are of the
            values after the modality stage, which a window is of, too.

    Raises:
        SourceError: The attributes contradict the standard, or lack the VOI asked for.
    """
    stored = form.list_values()
    values, limits, modality_remark = _apply_modality(dataset, stored, form.limits, name)
    stage = choose_voi(dataset, name, voi)
    if stage.apply is not None:
        grey, remark = stage.apply(values), ""
    else:
        given = _find_given(grey_range, counted, values)
        low, high, remark = given or _choose_limits(dataset, form, counted, values, limits)
        grey = np.clip((values - low) / (high - low), 0, 1)
        remark = "; ".join(filter(None, [modality_remark, remark]))
    if is_inverted:
        grey = 1 - grey
    greys = np.floor(grey * 255 + 0.5).astype(np.uint8)
    if padding is not None:
        greys[(stored >= padding[0]) & (stored <= padding[1])] = 0
    return GreyTable(greys, "; ".join(filter(None, [stage.remark, remark])))


def _apply_modality(
    dataset: Dataset, stored: NDArray[np.int64], limits: tuple[int, int], name: str
) -> tuple[Values, tuple[float, float], str]:
    """Apply stage 1; also return the least and greatest value that can come out, and a remark."""
    if luts := dataset.get("ModalityLUTSequence"):
        lut = read_lut(dataset, luts[0], name)
        return lut.apply(stored.astype(np.float64)), (0, lut.top), lut.remark
    slope = next(iter(read_floats(dataset, "RescaleSlope")), 1.0)
    intercept = next(iter(read_floats(dataset, "RescaleIntercept")), 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise SourceError(name, f"rescale slope {slope}, intercept {intercept}", _REMEDY)
    low, high = sorted(limit * slope + intercept for limit in limits)
    return stored.astype(np.float64) * slope + intercept, (low, high), ""


def _find_given(
    grey_range: GreyRange, counted: NDArray[np.integer[Any]], values: Values
) -> _Limits | None:
    """Limits that the user wants; None where the whole range is to be shown."""
    found = find_limits(grey_range, counted)
    if found is None:
        return None
    if grey_range == "percentiles":  # of stored values
        ends = [float(values[int(limit)]) for limit in found]
        found = min(ends), max(ends)
    return _Limits(*found) if found[0] < found[1] else None


def _choose_limits(
    dataset: Dataset,
    form: StoredForm,
    counted: NDArray[np.integer[Any]],
    values: Values,
    limits: tuple[float, float],
) -> _Limits:
    """Choose what is black and white in a file without a VOI: all that its bits can hold.

    Pixels that use a small part of that make a picture which is nearly black. Then Smallest and
    Largest Image Pixel Value count, if the file gives them and the pixels lie between them.
    """
    used = int(counted.min()), int(counted.max())
    ends = values[list(used)]
    if float(np.ptp(ends)) >= _NARROW * (limits[1] - limits[0]):
        return _Limits(*limits)
    said = f"no window, and its pixels use {used[0]} to {used[1]} of {2**form.bits} values"
    stated = [
        form.read(int(dataset.get(keyword) or 0))
        for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue")
    ]
    low, high = (used[1] if number is None else number for number in stated)
    if low <= used[0] and used[1] <= high and values[low] != values[high]:
        black, white = sorted((float(values[low]), float(values[high])))
        note = f"{said}: black and white are the {low} and {high} that it names"
        return _Limits(black, white, note)
    return _Limits(*limits, f"{said}: it may look black, `--grey-range` chooses")
