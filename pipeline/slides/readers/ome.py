"""Parses OME-XML, the description inside an OME-TIFF. Pure.

The schema is https://docs.openmicroscopy.org/ome-model/latest/. Only what places a slide's pixels
is read; names of images are the user's own words and may name a patient, so they stay here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

import defusedxml.ElementTree as SafeTree

from pipeline.slides.resolution import parse_power

_UM_PER_UNIT: Final[Mapping[str, float]] = {
    "nm": 1e-3,
    "µm": 1.0,  # the micro sign; the next is the Greek letter
    "μm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
}
_KINDS: Final = ("label", "macro", "overview", "thumbnail")


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One image of an OME-TIFF.

    Args:
        kind: Kind of the picture, e.g. `label` or `macro`; "" where its name does not tell.
        shape_yx: Height and width in pixels.
        channels: Names of the channels, "" for one without a name.
        planes: Number of focal planes times that of points in time.
        pixel_type: Type of the pixels, e.g. `uint8`.
        mpp_yx: Micrometres per pixel, or None where they are not given.
        ifd: Number of the TIFF page that holds the first plane.
        file_name: Name of the file that holds it; "" for this one.
        file_uuid: Identifier of that file, "" where none is given.
        power: Power of the objective that it was taken with; None where none is given.
    """

    kind: str
    shape_yx: tuple[int, int]
    channels: tuple[str, ...]
    planes: int
    pixel_type: str
    mpp_yx: tuple[float, float] | None
    ifd: int
    file_name: str = ""
    file_uuid: str = ""
    power: float | None = None


def parse_ome(text: str) -> tuple[list[OmeImage], str]:
    """Parse the images of an OME-XML, in its order, and the identifier of the file itself.

    Raises:
        ValueError: It is no OME-XML, or a size in it is no number.
        KeyError: A size is absent.
    """
    root = SafeTree.fromstring(text)
    if _tag(root) != "OME":
        raise ValueError(f"its description is <{_tag(root)}>, not <OME>")
    powers = {
        objective.get("ID", ""): parse_power(objective.get("NominalMagnification"))
        for instrument in _children(root, "Instrument")
        for objective in _children(instrument, "Objective")
    }
    images = []
    for image in _children(root, "Image"):
        used = [powers.get(lens.get("ID", "")) for lens in _children(image, "ObjectiveSettings")]
        power = used[0] if used else None
        images += [_parse_image(image, pixels, power) for pixels in _children(image, "Pixels")]
    return images, root.get("UUID", "")


def _parse_image(image: Element, pixels: Element, power: float | None) -> OmeImage:
    size = {axis: int(pixels.attrib[f"Size{axis}"]) for axis in "YXZCT"}
    data = next(iter(_children(pixels, "TiffData")), None)
    uuid = None if data is None else next(iter(_children(data, "UUID")), None)
    name = image.get("Name", "").lower()
    return OmeImage(
        kind=next((kind for kind in _KINDS if kind in name), ""),
        shape_yx=(size["Y"], size["X"]),
        channels=tuple(channel.get("Name", "") for channel in _children(pixels, "Channel")),
        planes=size["Z"] * size["T"],
        pixel_type=pixels.get("Type", "unknown type"),
        mpp_yx=_parse_mpp(pixels),
        ifd=0 if data is None else int(data.get("IFD", "0")),
        file_name="" if uuid is None else uuid.get("FileName", ""),
        file_uuid="" if uuid is None else (uuid.text or "").strip(),
        power=power,
    )


def _parse_mpp(pixels: Element) -> tuple[float, float] | None:
    sides = []
    for axis in "YX":
        um = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = pixels.get(f"PhysicalSize{axis}")
        if um is None or size is None:
            return None
        sides.append(float(size) * um)
    return sides[0], sides[1]


def _children(element: Element, tag: str) -> list[Element]:
    return [child for child in element if _tag(child) == tag]


def _tag(element: Element) -> str:
    """Return the name of an element without its namespace, which has the schema's version."""
    return element.tag.rpartition("}")[2]
