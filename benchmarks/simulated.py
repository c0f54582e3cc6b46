"""Slides that are simulated: tiny files, and a reader that paints what they would show.

The reader is found as that of another package is, by an entry point, so that the ingest and its
workers are the real ones. The file holds nothing but its own number; its pixels are noise of the
colour of stained tissue, the same for all slides but begun at another place.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.slides.readers.level_reader import LevelReader, SlideFacts
from pipeline.slides.readers.registry import GROUP
from pipeline.slides.resolution import StatedMpp
from pipeline.slides.settings import SlideSettings

SUFFIX: Final = ".simulated"
# A strip, as the review picture of a square would take longer than all the rest.
SHAPE_YX: Final = (256, 32)
MPP_UM: Final = 0.5
TILES: Final = 128  # of each slide
# Tiles of 8 px: a slide has as many as matter, and painting them takes next to no time.
SETTINGS: Final = SlideSettings(
    tile_size_px=8, mpp_um=MPP_UM, mask_mpp_um=MPP_UM, min_tissue_fraction=0.0
)
_TISSUE_RGB: Final = (190, 70, 150)


class SimulatedReader(LevelReader):
    """One open simulated slide: a `SlideReader` of one level."""

    name: ClassVar[str] = "simulated"

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell by the suffix."""
        return path.suffix == SUFFIX

    def open(self, path: Path) -> SlideFacts:
        """Read the slide's number, which chooses the place in the painted tissue."""
        self._start = int(path.read_text()) % SHAPE_YX[0]
        return SlideFacts((SHAPE_YX,), self.name, StatedMpp((MPP_UM, MPP_UM)))

    def read(
        self,
        level: int,  # noqa: ARG002 - there is one
        start_yx: tuple[int, int],
        shape_yx: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """Cut a rectangle out of the painted tissue."""
        y, x = self._start + start_yx[0], self._start + start_yx[1]
        return _paint()[y : y + shape_yx[0], x : x + shape_yx[1]]

    def close(self) -> None:
        """Nothing is open."""


@lru_cache(maxsize=1)
def _paint() -> NDArray[np.uint8]:
    """Noise of the colour of stained tissue: uint8 (y, x, 3)."""
    random = np.random.default_rng(0)
    return random.normal(_TISSUE_RGB, 12.0, (2 * SHAPE_YX[0], 2 * SHAPE_YX[0], 3)).astype(np.uint8)


def write_simulated(folder: Path, count: int) -> None:
    """Write so many slides.

    Args:
        folder: Folder of the files, which is made.
        count: Number of slides.
    """
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"slide-{number:06d}{SUFFIX}").write_text(str(number))


def install_reader(folder: Path) -> None:
    """Install the reader for every process that has a folder in its PYTHONPATH.

    Args:
        folder: Folder that gets what the installer of a package would write.
    """
    place = folder / "simulated-1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: simulated\nVersion: 1\n")
    entry = f"[{GROUP}]\nsimulated = {__name__}:{SimulatedReader.__name__}\n"
    (place / "entry_points.txt").write_text(entry)
