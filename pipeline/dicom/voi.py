"""The VOI stage of a DICOM header (PS3.3 C.11.2): which LUT or window counts, and its grey. Pure.

LUTs count before windows, and the first that can be applied before the others. One that says
nothing (a window of width 0, a centre that is no number, an empty item) is as good as absent. One
that is damaged is passed over only where a good one stands beside it: without any, nobody knows
how the picture is to be seen, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, Final, TypeAlias

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_windowing

from pipeline.dicom.luts import Lut, Values, read_lut
from pipeline.errors import SourceError

Voi: TypeAlias = int | str
_REMEDY: Final = "Export it again, or leave it out"
_FUNCTIONS: Final = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})


@dataclass(frozen=True)
class VoiStage:
    """The VOI stage that was chosen.

    Args:
        apply: Values after the modality stage, float64 of any shape -> grey in [0, 1]; None where
            the file has no VOI.
        remark: Words for the manifest where something odd was passed over or mended; else "".
    """

    apply: Callable[[Values], Values] | None
    remark: str = ""


@dataclass(frozen=True)
class _Held:
    """A LUT or window that a file holds.

    Args:
        word: Explanation of it in the file.
        apply: Function of `VoiStage.apply`; None where it cannot be applied.
        said: Reason why it cannot be applied, or a remark where it can.
        is_void: Whether it says nothing at all.
    """

    word: str
    apply: Callable[[Values], Values] | None
    said: str = ""
    is_void: bool = False


def choose_voi(dataset: Dataset, name: str, voi: Voi) -> VoiStage:
    """Choose the LUT or window of a file.

    Args:
        dataset: Header with the VOI attributes.
        name: Public name of the file, for errors.
        voi: Position of a VOI LUT or window (LUTs first, then windows), or its explanation in the
            file; 0 stands for the first that can be applied, and may be absent.

    Raises:
        SourceError: The one asked for is absent or cannot be applied; or all are damaged.
    """
    held = [*_hold_luts(dataset, name), *_hold_windows(dataset)]
    if voi != 0:
        one = held[_find(held, name, voi)]
        if one.apply is None:
            raise SourceError(name, one.said, "Choose another `voi`")
        return VoiStage(one.apply, one.said)
    at = next((at for at, one in enumerate(held) if one.apply), len(held))
    damaged = [one for one in held[:at] if not one.is_void]
    if at == len(held) and damaged:
        raise SourceError(name, damaged[0].said, _REMEDY)
    remarks = [f"{one.said}, which is passed over" for one in held[:at]]
    if at == len(held):
        return VoiStage(None, "; ".join(remarks))
    return VoiStage(held[at].apply, "; ".join(filter(None, [*remarks, held[at].said])))


def _find(held: Sequence[_Held], name: str, voi: Voi) -> int:
    """Find the position of the VOI asked for."""
    count = f"it has {len(held)} VOI LUTs and windows"
    if isinstance(voi, int):
        if not 0 <= voi < len(held):
            raise SourceError(name, f"no VOI at position {voi}: {count}", "Choose another `voi`")
        return voi
    folded = [one.word.strip().casefold() for one in held]
    if voi.strip().casefold() not in folded:
        raise SourceError(name, f"no VOI called {voi!r}: {count}", "Choose another `voi`")
    return folded.index(voi.strip().casefold())


def _hold_luts(dataset: Dataset, name: str) -> Iterator[_Held]:
    for item in dataset.get("VOILUTSequence") or ():
        if not {"LUTDescriptor", "LUTData"} & set(item.dir()):
            yield _Held("", None, "an empty VOI LUT", is_void=True)
            continue
        word = str(item.get("LUTExplanation") or "")
        try:
            lut = read_lut(dataset, item, name)
        except SourceError as error:
            yield _Held(word, None, error.problem)
        except Exception as error:  # noqa: BLE001 - foreign bytes may raise anything
            yield _Held(word, None, f"a damaged VOI LUT ({type(error).__name__})")
        else:
            yield _Held(word, partial(_apply_lut, lut), lut.remark)


def _apply_lut(lut: Lut, values: Values) -> Values:
    return lut.apply(values) / lut.top


def _hold_windows(dataset: Dataset) -> Iterator[_Held]:
    try:
        centers, widths = read_floats(dataset, "WindowCenter"), read_floats(dataset, "WindowWidth")
        function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
        words = [str(word) for word in _list_values(dataset, "WindowCenterWidthExplanation")]
    except Exception as error:  # noqa: BLE001 - foreign bytes may raise anything
        yield _Held("", None, f"a damaged window ({type(error).__name__})")
        return
    pairs = list(zip_longest(centers, widths, fillvalue=np.nan))
    words += [""] * len(pairs)
    for (center, width), word in zip(pairs, words, strict=False):
        yield _hold_window(center, width, function, word)


def _hold_window(center: float, width: float, function: str, word: str) -> _Held:
    if not np.isfinite([center, width]).all() or width == 0:
        problem = f"a window that says nothing (centre {center:g}, width {width:g})"
        return _Held(word, None, problem, is_void=True)
    if width < 0:
        return _Held(word, None, f"a window of negative width ({width:g})")
    if function not in _FUNCTIONS:
        return _Held(word, None, "a window of an unknown VOI LUT function")
    said = ""
    if function == "LINEAR" and width < 1:  # PS3.3 C.11.2.1.2.1 has no meaning for it
        function, said = "LINEAR_EXACT", f"its window's width {width:g} is taken as LINEAR_EXACT"
    window = Dataset()
    window.add_new("WindowCenter", "FD", center)
    window.add_new("WindowWidth", "FD", width)
    window.VOILUTFunction = function
    # pydicom maps to the stored values' range: that of one unsigned bit is [0, 1].
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 1, 0
    return _Held(word, partial(_apply_window, window), said)


def _apply_window(window: Dataset, values: Values) -> Values:
    return apply_windowing(values, window)


def _list_values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]


def read_floats(dataset: Dataset, keyword: str) -> list[float]:
    """Numbers of an element; one that is left empty is NaN."""
    return [
        np.nan if value is None or value == "" else float(value)
        for value in _list_values(dataset, keyword)
    ]
