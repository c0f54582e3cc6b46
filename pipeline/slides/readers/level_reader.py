"""What readers of slide formats share: um/px, coordinates, errors. A new format derives from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NormscopeError, SourceError
from pipeline.slides.readers.protocol import READ_REMEDY
from pipeline.slides.resolution import StatedMpp, choose_mpp, describe_contradiction

_FORMATS_REMEDY: Final = "Convert it to a tiled pyramid of 8-bit RGB, or leave it out"


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What a file says of its slide.

    Args:
        level_shapes_yx: Height and width of each level in its own pixels, the finest first.
        vendor: Name of the format or of the scanner's maker.
        mpp: Micrometres per level-0 pixel as the file states them.
        level_tiles_yx: Height and width of the stored tiles of each level, None where unknown;
            empty where all are.
        icc_profile: ICC profile of the pixels, or None.
        associated: Names of the pictures beside the slide, e.g. `label`.
        bounds_yxhw: Corner (y, x), height and width in level-0 pixels of the part that was
            scanned; None where that is all, or the file does not say.
    """

    level_shapes_yx: tuple[tuple[int, int], ...]
    vendor: str
    mpp: StatedMpp = field(default_factory=StatedMpp)
    level_tiles_yx: tuple[tuple[int, int] | None, ...] = ()
    icc_profile: bytes | None = None
    associated: tuple[str, ...] = ()
    bounds_yxhw: tuple[int, int, int, int] | None = None


class LevelReader(ABC):
    """A `SlideReader`, but for what its format needs: `can_open`, `open`, `read` and `close`.

    Whatever these raise becomes one error that names the slide, so that a damaged file fails by
    itself and the batch goes on.

    Args:
        path: A local file.
        item: Name of the slide for errors, e.g. the URL that the file was staged from.
        mpp_override_um: um per level-0 pixel, both axes, in place of what the file says.
        mpp_fallback_um: um per level-0 pixel, both axes, where the file has none.

    Raises:
        SourceError: The file cannot be opened, its um/px is absent or impossible or, on entering,
            none of its pixels can be read.
    """

    name: ClassVar[str]

    def __init__(
        self,
        path: Path,
        *,
        item: str | None = None,
        mpp_override_um: float | None = None,
        mpp_fallback_um: float | None = None,
    ) -> None:
        self.item = item or str(path)
        facts = self._try_open(path)
        try:
            self.mpp_yx, self.mpp_source = choose_mpp(
                facts.mpp, mpp_override_um, self.item, fallback_um=mpp_fallback_um
            )
        except SourceError:
            self.close()
            raise
        self.level_shapes_yx = facts.level_shapes_yx
        is_own = self.mpp_source == facts.mpp.source
        self.mpp_remark = describe_contradiction(self.mpp_yx, facts.mpp.power) if is_own else ""
        height, width = facts.level_shapes_yx[0]
        self.bounds_yxhw = facts.bounds_yxhw or (0, 0, height, width)
        self.level_downsamples_yx = tuple((height / h, width / w) for h, w in facts.level_shapes_yx)
        self.level_tiles_yx = facts.level_tiles_yx or (None,) * len(facts.level_shapes_yx)
        self.vendor, self.icc_profile = facts.vendor, facts.icc_profile
        self.associated = facts.associated

    @classmethod
    @abstractmethod
    def can_open(cls, path: Path) -> bool:
        """Tell from a local file's first bytes or tags whether this reader is the one for it."""

    @abstractmethod
    def open(self, path: Path) -> SlideFacts:
        """Open the file and say what it holds.

        Raises:
            SourceError: The file holds what this reader does not read, with its own words; any
                other error counts as damage.
        """

    @abstractmethod
    def read(
        self, level: int, start_yx: tuple[int, int], shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle inside a level.

        Args:
            level: Number of the level; 0 is the finest.
            start_yx: Upper left corner in pixels of that level.
            shape_yx: Height and width in pixels of that level.

        Returns:
            uint8 (height, width, 3), RGB.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        try:
            self._require_readable()
        except SourceError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_region_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a rectangle of one level; see `SlideReader.read_region_yx`."""
        start_yx = self.find_start_yx(origin_yx, level, shape_yx)
        try:
            return self.read(level, start_yx, shape_yx)
        except NormscopeError:
            raise
        except Exception as error:  # a parser of foreign bytes may raise anything
            raise SourceError(
                self.item,
                f"cannot read {shape_yx[0]}x{shape_yx[1]} px at (y={origin_yx[0]}, "
                f"x={origin_yx[1]}) of level {level} ({describe_error(error)})",
                READ_REMEDY,
            ) from error

    def gives_whole_pixels(self, level: int) -> bool:  # noqa: ARG002 - other formats differ by it
        """Tell whether pixels of a level come out as stored, not interpolated."""
        return True

    def find_start_yx(
        self, origin_yx: tuple[int, int], level: int, shape_yx: tuple[int, int]
    ) -> tuple[int, int]:
        """Find where a rectangle begins, in whole pixels of its level.

        Where rounding the origin moves the rectangle out of the level, it is moved back inside.

        Args:
            origin_yx: Upper left corner in level-0 pixels.
            level: Number of the level; 0 is the finest.
            shape_yx: Height and width in pixels of that level.

        Raises:
            ValueError: The rectangle does not lie within the slide.
        """
        starts = []
        for origin, size, downsample, available in zip(
            origin_yx,
            shape_yx,
            self.level_downsamples_yx[level],
            self.level_shapes_yx[level],
            strict=True,
        ):
            start = origin / downsample
            if start < 0 or size < 1 or size > available or start + size >= available + 2:
                raise ValueError(
                    f"a region of {shape_yx} px at origin_yx={origin_yx} (level-0 px) leaves level "
                    f"{level} of {self.item}, which has {self.level_shapes_yx[level]} px: "
                    "keep it inside"
                )
            starts.append(min(round(start), available - size))
        return starts[0], starts[1]

    def refuse(self, found: str) -> SourceError:
        """Make the error that says what was found in place of what is read."""
        problem = f"{found}; only 8-bit RGB of brightfield slides is read"
        return SourceError(self.item, problem, _FORMATS_REMEDY)

    def _try_open(self, path: Path) -> SlideFacts:
        try:
            facts = self.open(path)
        except NormscopeError:
            raise
        except Exception as error:  # a parser of foreign bytes may raise anything
            raise SourceError(
                self.item,
                f"{self.name} cannot open it ({describe_error(error)}): truncated, corrupt or not "
                "a slide",
                READ_REMEDY,
            ) from error
        if not facts.level_shapes_yx or any(min(shape) < 1 for shape in facts.level_shapes_yx):
            self.close()
            raise SourceError(self.item, f"levels of {facts.level_shapes_yx} px", READ_REMEDY)
        return facts

    def _require_readable(self) -> None:
        """Read a pixel at the centre or, failing that, at a corner of the coarsest level."""
        level = len(self.level_shapes_yx) - 1
        (height, width) = self.level_shapes_yx[0]
        bottom, right = (int(d) for d in self.level_downsamples_yx[level])
        far_y, far_x = max(0, height - bottom - 1), max(0, width - right - 1)
        places = [(height // 2, width // 2), (0, 0), (0, far_x), (far_y, 0), (far_y, far_x)]
        errors = []
        for place in places:
            try:
                self.read_region_yx(place, level, (1, 1))
            except SourceError as error:
                errors.append(error)
            else:
                return
        raise errors[0]


def describe_error(error: Exception) -> str:
    """Say in one line what an error of a library says, or its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
