"""Finds a slide's micrometres per pixel (mpp) in the properties of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median
from typing import Final, Literal, TypeAlias

from pipeline.errors import SourceError

MppSource: TypeAlias = Literal[
    "vendor property", "OME metadata", "TIFF resolution tags", "settings", "user table", "fallback"
]

# Outside of these no microscope scans: 72 dots per inch, a writer's default, is 352.8 um/px.
MPP_LIMITS_UM: Final = (0.01, 100.0)
# An objective of 10x gives about 1 um/px; cameras and adapters make up to three times more or less.
_UM_AT_1X: Final = 10.0
_CAMERA_FACTOR: Final = 3.0
# So much from one slide of a batch to the next is no other objective, or one that nobody mixes in.
_BATCH_FACTOR: Final = 3.0
_LEAST_BATCH: Final = 3
_UM_PER_RESOLUTION_UNIT: Final[Mapping[str, float]] = {"inch": 25_400.0, "centimeter": 10_000.0}
_MPP_REMEDY: Final = (
    "Give the slide's um/px in a table (`mpp_table`), in `mpp_override_um` that of every slide, or "
    "in `mpp_fallback_um` that of slides that say nothing possible"
)
_ABSENT_REMEDY: Final = (
    "Give the slide's um/px in a table (`mpp_table`), or in `mpp_fallback_um` that of all slides "
    "without one"
)


@dataclass(frozen=True, slots=True)
class StatedMpp:
    """What a file says of its micrometres per level-0 pixel.

    Args:
        mpp_yx: (y, x) in um/px as stated, possible or not; None where the file says nothing.
        source: Place in the file that says it.
        power: Power of the objective that the file states, e.g. 40; None where it states none.
    """

    mpp_yx: tuple[float, float] | None = None
    source: MppSource = "vendor property"
    power: float | None = None


def find_mpp(
    properties: Mapping[str, str],
    override_um: float | None,
    item: str,
    *,
    fallback_um: float | None = None,
) -> tuple[tuple[float, float], MppSource]:
    """Find the micrometres per level-0 pixel in OpenSlide's properties; see `choose_mpp`."""
    stated = read_stated_mpp(properties)
    return choose_mpp(stated, override_um, item, fallback_um=fallback_um)


def read_stated_mpp(properties: Mapping[str, str]) -> StatedMpp:
    """Read what OpenSlide's properties say of the micrometres per pixel."""
    source: MppSource = "vendor property"
    power = parse_power(properties.get("openslide.objective-power"))
    texts = [properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
    if properties.get("openslide.vendor") == "generic-tiff":
        source = "TIFF resolution tags"  # which is where OpenSlide takes it from
    elif None in texts:
        tags = [float(properties.get(f"tiff.{axis}Resolution", 0)) for axis in "YX"]
        unit = properties.get("tiff.ResolutionUnit", "")
        if found := convert_resolution((tags[0], tags[1]), unit):
            return StatedMpp(found, "TIFF resolution tags", power)
    if texts[0] is None or texts[1] is None:
        return StatedMpp(power=power)
    return StatedMpp((float(texts[0]), float(texts[1])), source, power)


def parse_power(text: str | None) -> float | None:
    """Parse the power of an objective; None where it is absent or says nothing."""
    try:
        power = float(text or "")
    except ValueError:
        return None
    return power if isfinite(power) and power > 0 else None


def convert_resolution(per_unit_yx: tuple[float, float], unit: str) -> tuple[float, float] | None:
    """Convert TIFF resolution tags to micrometres per pixel.

    Args:
        per_unit_yx: Pixels per unit, (y, x).
        unit: `inch` or `centimeter`; any other says nothing.

    Returns:
        (y, x) in um/px, or None where the tags say nothing.
    """
    um = _UM_PER_RESOLUTION_UNIT.get(unit)
    if um is None or not min(per_unit_yx) > 0:
        return None
    return um / per_unit_yx[0], um / per_unit_yx[1]


def choose_mpp(
    stated: StatedMpp, override_um: float | None, item: str, *, fallback_um: float | None = None
) -> tuple[tuple[float, float], MppSource]:
    """Choose the micrometres per level-0 pixel and their source; refuse rather than guess.

    Args:
        stated: Micrometres per pixel that the file itself states, possible or not.
        override_um: The user's um/px for both axes, which replaces the file's.
        item: Name of the slide, for errors.
        fallback_um: The user's um/px for both axes, used where the file says nothing or what no
            slide has: 0, or one pixel an inch, is what writers put that know nothing.

    Returns:
        (y, x) in um/px, and its source.

    Raises:
        SourceError: There is no value, or it is impossible.
    """
    if override_um is not None:
        return require_possible_mpp((override_um, override_um), "settings", item), "settings"
    if stated.mpp_yx is not None and (fallback_um is None or _is_possible(stated.mpp_yx)):
        return require_possible_mpp(stated.mpp_yx, stated.source, item), stated.source
    if fallback_um is not None:
        return require_possible_mpp((fallback_um, fallback_um), "fallback", item), "fallback"
    power = stated.power
    hint = f", only an objective power of {power:g}, which does not fix it" if power else ""
    raise SourceError(item, f"no um/px (mpp) in the file{hint}", _ABSENT_REMEDY)


def describe_contradiction(mpp_yx: tuple[float, float], power: float | None) -> str:
    """Say that um/px and the power of the objective contradict each other; "" where they do not.

    Args:
        mpp_yx: (y, x) in um/px as the file states them.
        power: Power of the objective that the file states, or None.

    Examples:
        >>> describe_contradiction((0.25, 0.25), 40)
        ''
    """
    if power is None:
        return ""
    usual = _UM_AT_1X / power
    if all(usual / _CAMERA_FACTOR <= mpp <= usual * _CAMERA_FACTOR for mpp in mpp_yx):
        return ""
    return (
        f"its objective power of {power:g} and its {_name_mpp(mpp_yx)} contradict each other "
        f"({power:g}x is about {usual:g} um/px): if the um/px are wrong, give the right ones in "
        "a table (`--mpp-table`)"
    )


def find_odd_scales(scales: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Find slides whose um/px stand out from those of their batch.

    Args:
        scales: Name of each slide -> its (y, x) in um/px.

    Returns:
        Name of each that stands out -> remark for the manifest; empty for fewer than three slides,
        of which none can be told to be the odd one.
    """
    if len(scales) < _LEAST_BATCH:
        return {}
    usual = median(sqrt(y * x) for y, x in scales.values())
    return {
        name: f"its {_name_mpp(mpp_yx)} stand out from the batch, whose median is {usual:g} um/px: "
        "if they are wrong, give the right ones in a table (`--mpp-table`)"
        for name, mpp_yx in scales.items()
        if not usual / _BATCH_FACTOR <= sqrt(mpp_yx[0] * mpp_yx[1]) <= usual * _BATCH_FACTOR
    }


def _name_mpp(mpp_yx: tuple[float, float]) -> str:
    y, x = (f"{mpp:g}" for mpp in mpp_yx)
    return f"{y} um/px" if y == x else f"{y} x {x} um/px (y, x)"


def require_possible_mpp(
    mpp_yx: tuple[float, float], source: MppSource, item: str
) -> tuple[float, float]:
    """Refuse um/px at which no microscope scans.

    Args:
        mpp_yx: (y, x) in um/px.
        source: Origin of the value, for the error.
        item: Name of the slide, for the error.

    Returns:
        The value itself.

    Raises:
        SourceError: The value is impossible, as 0 and NaN are.
    """
    if not _is_possible(mpp_yx):
        raise SourceError(
            item,
            f"{mpp_yx[0]:g} x {mpp_yx[1]:g} um/px (mpp, from {source}) is impossible for a slide",
            _MPP_REMEDY,
        )
    return mpp_yx


def _is_possible(mpp_yx: tuple[float, float]) -> bool:
    low, high = MPP_LIMITS_UM
    return all(low <= mpp <= high for mpp in mpp_yx)
