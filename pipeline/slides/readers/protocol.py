"""What every reader of a slide format offers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.slides.resolution import MppSource

READ_REMEDY: Final = "Copy the file again from its archive, or leave it out"


class SlideReader(Protocol):
    """One open slide. Coordinates are (y, x); level 0 is the finest.

    Entering it as a context reads a pixel; leaving it closes the file. It belongs to one thread.

    Attributes:
        name: Name of the reader, e.g. `openslide`; it stands in the dataset as the decoder.
        item: Name of the slide for errors, e.g. the URL that the file was staged from.
        level_shapes_yx: Height and width of each level in its own pixels.
        level_downsamples_yx: Level-0 pixels per pixel of each level, for each axis by itself.
        level_tiles_yx: Height and width of the stored tiles of each level in its own pixels;
            None where the format does not say.
        mpp_yx: Micrometres per level-0 pixel.
        mpp_source: Origin of `mpp_yx`.
        mpp_remark: Remark on um/px that something else in the file contradicts; "" where nothing
            does.
        vendor: Name of the format or of the scanner's maker, e.g. `aperio` or `ome-tiff`.
        icc_profile: ICC profile of the pixels; None where the file has none.
        associated: Names of the pictures that the file holds beside the slide, e.g. `label` and
            `macro`. They may show a patient's name, and nothing reads their pixels.
        bounds_yxhw: Corner (y, x), height and width in level-0 pixels of the part that was
            scanned; the whole slide where the file does not say.
    """

    name: ClassVar[str]
    item: str
    level_shapes_yx: tuple[tuple[int, int], ...]
    level_downsamples_yx: tuple[tuple[float, float], ...]
    level_tiles_yx: tuple[tuple[int, int] | None, ...]
    mpp_yx: tuple[float, float]
    mpp_source: MppSource
    mpp_remark: str
    vendor: str
    icc_profile: bytes | None
    associated: tuple[str, ...]
    bounds_yxhw: tuple[int, int, int, int]

    @classmethod
    def can_open(cls, path: Path) -> bool:
        """Tell from a local file's first bytes or tags whether this reader is the one for it."""

    def __init__(
        self,
        path: Path,
        *,
        item: str | None = None,
        mpp_override_um: float | None = None,
        mpp_fallback_um: float | None = None,
    ) -> None:
        """Open a file; see `registry.open_slide` for the arguments."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read_region_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Args:
            origin_yx: Upper left corner in level-0 pixels.
            level: Number of the level; 0 is the finest.
            shape_yx: Height and width in pixels of that level.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            ValueError: The rectangle does not lie within the slide.
            SourceError: The file is corrupt there.
        """

    def find_start_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> tuple[int, int]:
        """Find where a rectangle begins, in whole pixels of its level.

        Args:
            origin_yx: Upper left corner in level-0 pixels.
            level: Number of the level; 0 is the finest.
            shape_yx: Height and width in pixels of that level.

        Raises:
            ValueError: The rectangle does not lie within the slide.
        """

    def gives_whole_pixels(self, level: int) -> bool:
        """Tell whether pixels of a level come out as stored, not interpolated."""
