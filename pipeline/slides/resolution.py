"""Finds a slide's micrometres per pixel (mpp) in the properties of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from pipeline.errors import SourceError

MppSource: TypeAlias = Literal[
    "vendor property", "TIFF resolution tags", "settings", "user table", "fallback"
]

# Outside of these no microscope scans: 72 dots per inch, a writer's default, is 352.8 um/px.
_MPP_LIMITS_UM: Final = (0.01, 100.0)
_UM_PER_RESOLUTION_UNIT: Final[Mapping[str, float]] = {"inch": 25_400.0, "centimeter": 10_000.0}
_MPP_REMEDY: Final = (
    "Give the slide's um/px in a table (`mpp_table`), or every slide's in `mpp_override_um`"
)
_ABSENT_REMEDY: Final = (
    "Give the slide's um/px in a table (`mpp_table`), or in `mpp_fallback_um` that of all slides "
    "without one"
)


def find_mpp(
    properties: Mapping[str, str],
    override_um: float | None,
    item: str,
    *,
    fallback_um: float | None = None,
) -> tuple[tuple[float, float], MppSource]:
    """Find the micrometres per level-0 pixel and their source; refuse rather than guess.

    Args:
        properties: Properties that OpenSlide reads from the file.
        override_um: The user's um/px for both axes, which replaces the file's.
        item: Name of the slide, for errors.
        fallback_um: The user's um/px for both axes, used where the file has none.

    Returns:
        (y, x) in um/px, and its source.

    Raises:
        SourceError: There is no value, or it is impossible.
    """
    if override_um is not None:
        return require_possible_mpp((override_um, override_um), "settings", item), "settings"
    source: MppSource = "vendor property"
    texts = [properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
    per_unit = _UM_PER_RESOLUTION_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    if properties.get("openslide.vendor") == "generic-tiff":
        source = "TIFF resolution tags"  # which is where OpenSlide takes it from
    elif None in texts and per_unit is not None:
        source = "TIFF resolution tags"
        tags = [float(properties.get(f"tiff.{axis}Resolution", 0)) for axis in "YX"]
        texts = [str(per_unit / tag) if tag > 0 else None for tag in tags]
    if texts[0] is None or texts[1] is None:
        if fallback_um is not None:
            return require_possible_mpp((fallback_um, fallback_um), "fallback", item), "fallback"
        power = properties.get("openslide.objective-power")
        known = f", only an objective power of {power}, which does not fix it" if power else ""
        raise SourceError(item, f"no um/px (mpp) in the file{known}", _ABSENT_REMEDY)
    return require_possible_mpp((float(texts[0]), float(texts[1])), source, item), source


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
    low, high = _MPP_LIMITS_UM
    if not all(low <= mpp <= high for mpp in mpp_yx):
        raise SourceError(
            item,
            f"{mpp_yx[0]:g} x {mpp_yx[1]:g} um/px (mpp, from {source}) is impossible for a slide",
            _MPP_REMEDY,
        )
    return mpp_yx
