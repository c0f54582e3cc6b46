"""Small slide files with known pixels: lossless, not square, pyramids of any shape."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pipeline.ingest.run import IngestReport, Outcome
from pipeline.ingest.sources import SourceRead
from pipeline.io.scratch import Scratch
from pipeline.io.staging import stage
from pipeline.io.storage import describe
from pipeline.records import Label, ManifestEntry, Slide, SlideListing, Split
from pipeline.runtime.engines import MapWork, map_serially
from pipeline.slides.ingest import ingest_slides, specify_slides
from pipeline.slides.reader import open_tiles
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey.measure import SlideSurvey, survey_slide
from pipeline.slides.visit import SlideItem, SlideVisit
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.part import Part

TILE_PX = 64
SHAPE = (640, 1152)
# Two islands; the second is off every diagonal.
BOXES = [(64, 64, 320, 448), (384, 704, 576, 1088)]
SETTINGS = SlideSettings(
    tile_size_px=32, mpp_um=1.0, mask_mpp_um=4.0, shard_images=32, chunk_images=16
)
BOMB = (
    b'<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;&b;">]>'
    b"<ASAP_Annotations>&c;</ASAP_Annotations>"
)


def make_pixels(shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """A smooth picture in which every place differs: red grows down, green to the right."""
    y, x = np.mgrid[: shape_yx[0], : shape_yx[1]]
    blue = np.hypot(y - shape_yx[0] * 0.8, x - shape_yx[1] * 0.3)
    channels = [y * 255 / shape_yx[0], x * 255 / shape_yx[1], blue * 255 / blue.max()]
    return np.stack(channels, axis=-1).astype(np.uint8)


def write_pyramid(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    mpp_yx: tuple[float, float] | None = (0.5, 0.5),
    downsamples_yx: Sequence[tuple[int, int]] = ((1, 1),),
) -> Path:
    """Write a tiled TIFF; each level takes every n-th pixel, so that values stay known."""
    per_cm = None if mpp_yx is None else (10_000 / mpp_yx[1], 10_000 / mpp_yx[0])
    with tifffile.TiffWriter(path) as tiff:
        for number, (step_y, step_x) in enumerate(downsamples_yx):
            tiff.write(
                np.ascontiguousarray(pixels[::step_y, ::step_x]),
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                subfiletype=min(number, 1),
                resolution=per_cm,
                resolutionunit="CENTIMETER" if per_cm else None,
                metadata=None,
            )
    return path


def corrupt_tile(path: Path, row: int, column: int, *, level: int = 0) -> None:
    """Overwrite the compressed bytes of one TIFF tile."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        assert isinstance(page, tifffile.TiffPage)
        index = row * -(-page.imagewidth // TILE_PX) + column
        offset, size = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


def paint_tissue(
    shape_yx: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]
) -> NDArray[np.uint8]:
    """Pink rectangles (top, left, bottom, right) on white glass."""
    pixels = np.full((*shape_yx, 3), 243, np.uint8)
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = (205, 120, 170)
    return pixels


def list_slide(
    path: Path,
    *,
    label: Label = Label.UNKNOWN,
    split: Split | None = None,
    annotation: Path | None = None,
) -> Slide:
    """The record of a slide file."""
    url = str(path)
    annotation_url = str(annotation) if annotation else None
    return Slide(path.stem, url, describe(url).version, label, split, annotation_url)


def write_asap(path: Path, outlines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Path:
    """Write ASAP XML: (group, ((x, y), ...)) each."""
    parts = ["<ASAP_Annotations><Annotations>"]
    for group, vertices in outlines:
        parts.append(f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}"><Coordinates>')
        parts += [
            f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>'
            for order, (x, y) in enumerate(vertices)
        ]
        parts.append("</Coordinates></Annotation>")
    path.write_text("".join([*parts, "</Annotations></ASAP_Annotations>"]))
    return path


def write_slide(
    folder: Path, name: str, *, boxes: Sequence[tuple[int, int, int, int]] = BOXES
) -> Path:
    """A textured slide of 0.5 um/px with the islands, and a level of a quarter."""
    pixels = paint_tissue(SHAPE, boxes)
    pixels[::3, ::5] -= 20  # texture
    # No two slides are of the same bytes.
    pixels[-1, -1] -= np.frombuffer(zlib.crc32(name.encode()).to_bytes(4), np.uint8)[:3] % 128
    return write_pyramid(folder / f"{name}.tif", pixels, downsamples_yx=((1, 1), (4, 4)))


def ingest_made(
    url: str | Path,
    slides: Sequence[Slide],
    settings: SlideSettings = SETTINGS,
    *,
    rejected: tuple[ManifestEntry, ...] = (),
    map_work: MapWork = map_serially,
    scratch: Scratch | None = None,
) -> tuple[IngestReport, Dataset]:
    """Ingest the slides here and now, and open the dataset."""
    listing = SlideListing("made", tuple(slides), rejected)
    report = ingest_slides(str(url), listing, settings, map_work, scratch=scratch)
    return report, open_dataset(report.url)


def visit_made(
    url: str | Path,
    slide: Slide,
    settings: SlideSettings = SETTINGS,
    *,
    known: Part | None = None,
    trusts_times: bool = False,
) -> Outcome:
    """Visit a slide here and now."""
    spec = specify_slides(settings, "made")
    return SlideVisit(str(url), spec, settings, trusts_times)(SlideItem(slide, known))


def survey_made(
    slide: Slide, settings: SlideSettings = SETTINGS, scratch: Scratch | None = None
) -> SlideSurvey:
    """Survey a slide here and now."""
    override_um = settings.mpp_override_um if slide.mpp_um is None else slide.mpp_um
    with (
        stage(slide.url, slide.version, slide.companions, scratch=scratch) as path,
        open_slide(path, item=slide.url, mpp_override_um=override_um) as reader,
    ):
        return survey_slide(slide, path, reader, settings)


def read_tiles(
    path: Path, origins_yx: Sequence[tuple[int, int]], settings: SlideSettings = SETTINGS
) -> tuple[NDArray[np.uint8], list[SourceRead], str]:
    """Read tiles of a slide: their images, what was found out about them, and by what decoder."""
    side = settings.tile_size_px
    images = np.zeros((len(origins_yx), side, side, 3), np.uint8)
    with (
        open_slide(path, mpp_override_um=settings.mpp_override_um) as slide,
        open_tiles(path, slide, settings) as tiles,
    ):
        return images, list(tiles.read(np.array(origins_yx, np.int64), images)), tiles.decoder


def coverage_of(part: Part) -> dict[str, float]:
    """The account of a slide's tissue: um^2 by fate."""
    return {
        name.removesuffix("_um2"): float(area)
        for name, area in part.facts.items()
        if name.endswith("_um2")
    }


def expect_balance(coverage: Mapping[str, float]) -> None:
    """The fates of the tissue add up to it."""
    parts = sum(area for fate, area in coverage.items() if fate != "tissue")
    assert parts == pytest.approx(coverage["tissue"])
