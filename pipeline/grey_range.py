"""The range of values that is shown from black to white where a file names none. Pure.

Files of 16 bits often hold values of 10 to 14: shown by the range of their bits, they are nearly
black. `percentiles` cuts half a percent off at either end of a file's values; nnU-Net does so with
those of its training images (its documentation, `explanation_normalization.md`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

_NUMBER: Final = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_PERCENTILES: Final = (0.5, 99.5)


def _check(grey_range: str) -> str:
    if "," in grey_range and not _read_limits(grey_range)[0] < _read_limits(grey_range)[1]:
        raise ValueError(f"{grey_range}: give the lower limit first")
    return grey_range


GreyRange: TypeAlias = Annotated[
    str, Field(pattern=f"^(full|percentiles|{_NUMBER},{_NUMBER})$"), AfterValidator(_check)
]


def find_limits(grey_range: str, values: NDArray[np.integer[Any]]) -> tuple[float, float] | None:
    """Find the values that are black and white.

    Args:
        grey_range: `full`; `percentiles`, of the values; or the limits themselves, `LOW,HIGH`.
        values: Values of the pixels that show something, of any shape; never none.

    Returns:
        The lower and the higher limit; None for the whole range that the file's bits can hold.

    Examples:
        >>> find_limits("percentiles", np.arange(1001))
        (5.0, 995.0)
        >>> find_limits("0,4095", np.arange(9))
        (0.0, 4095.0)
    """
    if grey_range == "full":
        return None
    if grey_range != "percentiles":
        return _read_limits(grey_range)
    low, high = np.percentile(values, _PERCENTILES, method="nearest")
    if low == high:  # hardly anything but one value
        low, high = values.min(), values.max()
    return (float(low), float(high)) if low < high else None


def _read_limits(grey_range: str) -> tuple[float, float]:
    low, high = map(float, grey_range.split(","))
    return low, high
