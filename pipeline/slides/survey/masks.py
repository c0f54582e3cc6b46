"""Makes the tissue mask of a slide: the user's own, where there is one, else by finding the tissue.

An own mask is a picture of the whole slide (TIFF or PNG; 0 is background, all else tissue, as ASAP
and Camelyon16 write `_mask.tif`), or outlines of the tissue (GeoJSON, ASAP XML) in level-0 pixels.
"""

from __future__ import annotations

import warnings
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from pipeline.errors import NormscopeError, SourceError
from pipeline.io.scratch import Scratch
from pipeline.io.staging import stage
from pipeline.io.storage import describe, join_versions, read_range
from pipeline.records import Slide
from pipeline.slides.annotations import choose_corner, parse_annotations
from pipeline.slides.outlines.groups import EXCLUDED_GROUPS, Groups
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey.thumbnail import Thumbnail
from pipeline.slides.survey.tissue import LARGEST_HOLE_PX, LEAST_ISLAND_PX, find_tissue
from pipeline.slides.tiling import PairYX

_Mask: TypeAlias = NDArray[np.bool_]

_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START: Final = b"\x89PNG"
_TEXT_STARTS: Final = (b"{", b"[", b"<")
_START_BYTES: Final = 64
_LOSSY: Final = frozenset({COMPRESSION.OJPEG, COMPRESSION.JPEG})
# A PNG is decoded whole.
_PNG_LIMIT_PX: Final = 1 << 28
# A level's sides are rounded up or down to whole pixels.
_ROUNDING_PX: Final = 1
_REMEDY: Final = "Save the mask again as TIFF, PNG or GeoJSON, or clear the slide's mask"


def make_mask(
    slide: Slide,
    settings: SlideSettings,
    thumbnail: Thumbnail,
    shape_yx: PairYX,
    mpp_yx: tuple[float, float],
    scratch: Scratch | None = None,
    corner_yx: PairYX = (0, 0),
) -> _Mask:
    """Make a slide's tissue mask: read the user's own, or find the tissue on the thumbnail.

    Where the thumbnail is corrupt, so that nothing is known, the area counts as tissue. An own mask
    is taken as it is.

    Args:
        slide: The slide as listed.
        settings: Settings of the dataset.
        thumbnail: The whole slide at low resolution.
        shape_yx: Height and width of the slide in level-0 pixels.
        mpp_yx: Micrometres per level-0 pixel, (y, x).
        scratch: Folder where a mask on object storage is staged; None for the default one.
        corner_yx: Point that the slide's own mask counts from; see `find_corner`.

    Returns:
        bool (y, x), over the whole slide at about the thumbnail's resolution.

    Raises:
        SourceError: The slide's own mask cannot be used.
        StorageError: It cannot be fetched.
    """
    height, width = thumbnail.is_readable.shape
    if slide.mask_url:
        return read_mask(
            slide.mask_url,
            shape_yx,
            (height, width),
            excluded_groups=settings.excluded_groups,
            scratch=scratch,
            corner_yx=corner_yx,
        )
    px_um2 = shape_yx[0] * mpp_yx[0] / height * (shape_yx[1] * mpp_yx[1] / width)
    island_um2, hole_um2 = settings.min_tissue_area_um2, settings.max_hole_area_um2
    found = find_tissue(
        thumbnail.pixels,
        settings.tissue_method,
        min_island_px=LEAST_ISLAND_PX if island_um2 is None else island_um2 / px_um2,
        max_hole_px=LARGEST_HOLE_PX if hole_um2 is None else hole_um2 / px_um2,
    )
    return found.is_tissue | ~thumbnail.is_readable


def find_corner(slide: Slide, bounds_yx: PairYX, settings: SlideSettings) -> PairYX:
    """Find the point of the slide that its own mask counts from; see `annotations.choose_corner`.

    Args:
        slide: The slide as listed.
        bounds_yx: Corner of the part that was scanned, (y, x) in level-0 pixels.
        settings: Settings of the dataset.

    Returns:
        (y, x) in level-0 pixels; (0, 0) for a picture, which is of the whole slide.

    Raises:
        StorageError: The mask cannot be read.
    """
    if not slide.mask_url or bounds_yx == (0, 0):
        return 0, 0
    start = read_range(slide.mask_url, 0, _START_BYTES)
    return (
        choose_corner(start, bounds_yx, settings.annotation_origin) if _is_text(start) else (0, 0)
    )


def _is_text(start: bytes) -> bool:
    return start.removeprefix(BOM_UTF8).lstrip().startswith(_TEXT_STARTS)


def read_mask(
    url: str,
    slide_shape_yx: PairYX,
    mask_shape_yx: PairYX,
    *,
    excluded_groups: Collection[str] = EXCLUDED_GROUPS,
    scratch: Scratch | None = None,
    corner_yx: PairYX = (0, 0),
) -> _Mask:
    """Read a mask of a whole slide from a picture or from outlines.

    Of a pyramid the coarsest level is read that is no coarser than wanted. A pixel of the result is
    what lies at its centre.

    Args:
        url: Plain path or `s3://` URL of a TIFF, a PNG, GeoJSON or ASAP XML.
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        mask_shape_yx: Wanted height and width of the mask, e.g. the thumbnail's.
        excluded_groups: Annotation groups that outline holes.
        scratch: Folder where a mask on object storage is staged; None for the default one.
        corner_yx: Point that outlines count from, (y, x) in level-0 pixels.

    Returns:
        bool (y, x), True for tissue, of `mask_shape_yx` or, where a picture has fewer pixels, of
        the picture's own shape.

    Raises:
        SourceError: It is unreadable, of another shape than the slide, without tissue, or its
            outlines lie outside the slide.
        StorageError: It cannot be fetched.
    """
    with stage(url, join_versions([describe(url)]), scratch=scratch) as path:
        try:
            outlines = _read_outlines(path, url, excluded_groups, corner_yx)
            if outlines is None:
                mask = _read_picture(path, url, slide_shape_yx, mask_shape_yx)
            else:
                _require_inside(outlines, url, slide_shape_yx)
                mask = draw_outlines(outlines, slide_shape_yx, mask_shape_yx)
        except NormscopeError:
            raise
        except Exception as error:  # a decoder of foreign bytes may raise anything
            problem = f"the mask cannot be read ({type(error).__name__}: {error})"
            raise SourceError(url, problem, _REMEDY) from error
    if not mask.any():
        raise SourceError(
            url,
            "an empty mask: it marks no tissue",
            "Mark tissue by any value but 0, clear the slide's mask to have its tissue found, or "
            "leave the slide out",
        )
    return mask


def _read_picture(path: Path, item: str, slide_shape_yx: PairYX, mask_shape_yx: PairYX) -> _Mask:
    start = _read_start(path)
    if start.startswith(_TIFF_STARTS):
        return _read_tiff(path, item, slide_shape_yx, mask_shape_yx)
    if start.startswith(_PNG_START):
        return _read_png(path, item, slide_shape_yx, mask_shape_yx)
    raise SourceError(item, "the mask is neither TIFF, PNG, GeoJSON nor ASAP XML", _REMEDY)


def _read_outlines(
    path: Path, item: str, excluded_groups: Collection[str], corner_yx: PairYX
) -> BaseGeometry | None:
    """Read the tissue that a file outlines; None where the file is a picture."""
    if not _is_text(_read_start(path)):
        return None
    groups = Groups(lesion=(), excluded=excluded_groups)
    tissue: list[BaseGeometry] = []
    holes: list[BaseGeometry] = []
    for each in parse_annotations(path.read_bytes(), item, corner_yx=corner_yx):
        is_hole = each.is_hole or groups.find_role(each) == "excluded"
        (holes if is_hole else tissue).append(each.geometry)
    return shapely.difference(shapely.union_all(tissue), shapely.union_all(holes))


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START_BYTES)


def _require_inside(outlines: BaseGeometry, item: str, slide_shape_yx: PairYX) -> None:
    height, width = slide_shape_yx
    if outlines.is_empty or outlines.intersects(shapely.box(0, 0, width, height)):
        return
    left, top, right, bottom = outlines.bounds
    raise SourceError(
        item,
        f"all outlines of tissue (y {top:.0f} to {bottom:.0f}, x {left:.0f} to {right:.0f}) lie "
        f"outside the slide of {height} x {width} px (y, x)",
        "Give coordinates in level-0 pixels, and check that the mask belongs to this slide",
    )


def draw_outlines(geometry: BaseGeometry, slide_shape_yx: PairYX, mask_shape_yx: PairYX) -> _Mask:
    """Draw polygons: a pixel is set if its centre lies inside.

    Each edge flips the pixels right of where it crosses their row; what is flipped an odd number
    of times is inside (the even-odd rule), so that holes need no care.

    Args:
        geometry: Polygons that do not overlap, (x, y) in level-0 pixels.
        slide_shape_yx: Height and width of the slide in level-0 pixels.
        mask_shape_yx: Height and width of the mask.

    Returns:
        bool (y, x), of `mask_shape_yx`.
    """
    height, width = mask_shape_yx
    flips = np.zeros((height, width + 1), np.uint8)
    scale_xy = np.divide(mask_shape_yx, slide_shape_yx)[::-1]
    for ring in shapely.get_rings(shapely.get_parts(geometry)):
        corners = shapely.get_coordinates(ring) * scale_xy
        (x0, y0), (x1, y1) = corners[:-1].T, corners[1:].T
        # Row r has its centre at r + 0.5; an edge crosses the rows from `first` to before `last`.
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
        edge = np.repeat(np.arange(len(first)), last - first)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
        slope = (x1 - x0)[edge] / (y1 - y0)[edge]
        crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope
        column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        np.bitwise_xor.at(flips, (row, column), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(np.bool_)


def _read_tiff(path: Path, item: str, slide_shape_yx: PairYX, mask_shape_yx: PairYX) -> _Mask:
    with TiffFile(path) as tiff:
        levels = [level.keyframe for series in tiff.series for level in series.levels]
        finest = max(levels, key=lambda page: page.imagelength * page.imagewidth)
        _require_shape(_shape_of(finest), item, slide_shape_yx)
        if finest.compression in _LOSSY:
            raise SourceError(
                item,
                f"the mask is compressed with loss ({COMPRESSION(finest.compression).name}), "
                "which blurs 0",
                "Save the mask again without loss, e.g. by LZW",
            )
        page = min(
            (level for level in levels if _fits(_shape_of(level), slide_shape_yx)),
            key=lambda level: _rank(_shape_of(level), mask_shape_yx),
        )
        return _sample_page(page, _reduce(_shape_of(page), mask_shape_yx))


def _shape_of(page: TiffPage) -> PairYX:
    return page.imagelength, page.imagewidth


def _rank(shape_yx: PairYX, wanted_yx: PairYX) -> tuple[bool, int]:
    """Rank levels: the coarsest of those that are fine enough, else the finest."""
    area = shape_yx[0] * shape_yx[1]
    is_coarse = shape_yx[0] < wanted_yx[0] or shape_yx[1] < wanted_yx[1]
    return is_coarse, -area if is_coarse else area


def _reduce(shape_yx: PairYX, wanted_yx: PairYX) -> PairYX:
    return min(shape_yx[0], wanted_yx[0]), min(shape_yx[1], wanted_yx[1])


def _sample_page(page: TiffPage, shape_yx: PairYX) -> _Mask:
    """Sample a page tile by tile, so that memory stays bounded; absent tiles are background."""
    mask = np.zeros(shape_yx, np.bool_)
    rows, columns = _find_centres(_shape_of(page), shape_yx)
    background = 0
    if page.photometric == PHOTOMETRIC.MINISWHITE:  # stored as its own negative
        background = (1 << int(page.bitspersample)) - 1
    for data, (_, _, y, x, _), (_, height, width, _) in page.segments():
        if data is None:
            continue
        top, bottom = np.searchsorted(rows, (y, y + height))
        left, right = np.searchsorted(columns, (x, x + width))
        taken = data[0][np.ix_(rows[top:bottom] - y, columns[left:right] - x)]
        if page.samplesperpixel in (2, 4) and page.extrasamples:
            taken = taken[..., :-1]  # how opaque it is says nothing of tissue
        mask[top:bottom, left:right] |= (taken != background).any(axis=-1)
    return mask


def _read_png(path: Path, item: str, slide_shape_yx: PairYX, mask_shape_yx: PairYX) -> _Mask:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(path, formats=("PNG",))
    with picture:
        shape_yx = picture.height, picture.width
        if shape_yx[0] * shape_yx[1] > _PNG_LIMIT_PX:
            raise SourceError(
                item, f"a PNG of {_name(shape_yx)} is too large", "Save the mask as a tiled TIFF"
            )
        _require_shape(shape_yx, item, slide_shape_yx)
        is_plain = picture.mode in {"1", "L", "I", "I;16", "RGB"}
        values = np.asarray(picture if is_plain else picture.convert("RGB"))
    rows, columns = _find_centres(shape_yx, _reduce(shape_yx, mask_shape_yx))
    taken = np.atleast_3d(values)[np.ix_(rows, columns)]
    return np.asarray((taken != 0).any(axis=-1), np.bool_)


def _find_centres(shape_yx: PairYX, sampled_yx: PairYX) -> Iterator[NDArray[np.int64]]:
    """For each axis the pixels of a picture at the centres of a smaller one's."""
    return (
        ((np.arange(small) + 0.5) * (size / small)).astype(np.int64)
        for size, small in zip(shape_yx, sampled_yx, strict=True)
    )


def _require_shape(shape_yx: PairYX, item: str, slide_shape_yx: PairYX) -> None:
    if not _fits(shape_yx, slide_shape_yx):
        raise SourceError(
            item,
            f"a mask of another size: it has {_name(shape_yx)}, the slide {_name(slide_shape_yx)}, "
            "which is of other proportions",
            "Give a mask of the whole slide, the right way up, at any resolution",
        )


def _fits(shape_yx: PairYX, slide_shape_yx: PairYX) -> bool:
    """Tell whether a shape is the slide's but for its scale and the rounding of its sides."""
    least, most = (
        [(side + change) / size for side, size in zip(shape_yx, slide_shape_yx, strict=True)]
        for change in (-_ROUNDING_PX, _ROUNDING_PX)
    )
    return max(least) <= min(most)


def _name(shape_yx: PairYX) -> str:
    return f"{shape_yx[0]} x {shape_yx[1]} px (y, x)"
