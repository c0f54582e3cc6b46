"""Stamps of what makes pixels: format numbers of our readers, and versions of libraries.

The stamp is part of every key of work. A worker compares its own with the driver's and refuses the
task if they differ, so that no dataset mixes the pixels of two library versions. A change of our
own code changes a stamp only through the format number, which is raised by hand;
`tests/pipeline/store/test_stamp.py` holds the bytes that each number stands for.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from types import MappingProxyType
from typing import Final, Literal

from pipeline.errors import SettingsError

Kind = Literal["slides", "images"]
# Raise a number when the same source and settings come to give other pixels or columns.
FORMATS: Final[Mapping[Kind, int]] = MappingProxyType({"slides": 2, "images": 2})
_LIBRARIES: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        "slides": (
            "imagecodecs",
            "numpy",
            "opencv-python-headless",
            "openslide-bin",
            "openslide-python",
            "pillow",
            "scikit-image",
            "scipy",
            "shapely",
            "simplejpeg",
            "tifffile",
        ),
        "images": (
            "highdicom",
            "imagecodecs",
            "imagehash",
            "numpy",
            "pillow",
            "pydicom",
            "python-gdcm",
            "scipy",
            "tifffile",
        ),
    }
)


@cache
def make_stamp(kind: Kind) -> Mapping[str, str]:
    """Make the stamp of this process.

    Args:
        kind: Reader whose pixels the stamp is of.

    Returns:
        Name of the format and of each library -> its number or version.
    """
    libraries = {name: version(name) for name in _LIBRARIES[kind]}
    return MappingProxyType({f"{kind} format": str(FORMATS[kind]), **libraries})


def require_stamp(kind: Kind, expected: Mapping[str, str]) -> None:
    """Refuse work that another process has stamped otherwise.

    Args:
        kind: Reader whose pixels are to be made.
        expected: Stamp of the process that gave the work.

    Raises:
        SettingsError: Names what differs, with both versions.
    """
    own = make_stamp(kind)
    differing = [
        f"{name} {own.get(name, 'absent')}, the driver has {expected.get(name, 'none')}"
        for name in sorted({*own, *expected})
        if own.get(name) != expected.get(name)
    ]
    if differing:
        raise SettingsError(
            f"worker on {platform.node()}",
            f"makes other pixels than the driver ({'; '.join(differing)})",
            "Give workers and driver the same installation, e.g. the same container image",
        )
