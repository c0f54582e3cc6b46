"""TIFF slides beside OpenSlide's: OME-TIFF with SubIFDs, and plain TIFF of any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pipeline.errors import SourceError
from pipeline.slides.readers import tiff_level
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.readers.registry import open_slide
from tests.support.made.ome_slides import STEPS_YX, TILE_YX, write_ome
from tests.support.made.slides import make_pixels, write_pyramid

PIXELS = make_pixels((500, 740))


def assert_pixels(slide: SlideReader, *, error: int = 0) -> None:
    """Every level gives every n-th pixel of the picture, across the edges of its tiles."""
    for level, (step_y, step_x) in enumerate(STEPS_YX[: len(slide.level_shapes_yx)]):
        start, shape = (40 // step_y, 216 // step_x), (55, 60)
        region = slide.read_region_yx((40, 216), level, shape).astype(int)
        stepped = PIXELS[::step_y, ::step_x]
        wanted = stepped[start[0] : start[0] + 55, start[1] : start[1] + 60]
        assert region.shape == (*shape, 3)
        assert np.abs(region - wanted).max() <= error, level


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, 0),
        ({"bigtiff": True, "byteorder": ">"}, 0),
        ({"compression": None, "planar": True}, 0),
        ({"compression": "lzw", "byteorder": ">"}, 0),
        ({"compression": "jpeg"}, 4),
        ({"compression": "jpeg2000"}, 0),
    ],
)
def test_a_pyramid_in_subifds_is_read_whole(
    arguments: dict[str, Any], error: int, tmp_path: Path
) -> None:
    with open_slide(write_ome(tmp_path / "a.ome.tif", PIXELS, **arguments)) as slide:
        assert (slide.name, slide.vendor) == ("tifffile", "ome-tiff")
        assert slide.level_shapes_yx == ((500, 740), (250, 185), (125, 93))
        assert slide.level_downsamples_yx[1] == (2.0, 4.0)
        assert slide.level_tiles_yx == (TILE_YX,) * 3
        assert (slide.mpp_yx, slide.mpp_source) == ((0.5, 0.25), "OME metadata")
        assert slide.associated == ("label",)  # and not what its name says beside it
        assert_pixels(slide, error=error)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, 0),
        ({"rowsperstrip": 7}, 0),
        ({"rowsperstrip": 7, "compression": "zlib"}, 0),
        ({"rowsperstrip": 9, "planarconfig": "separate"}, 0),
        ({"rowsperstrip": 9, "planarconfig": "separate", "compression": "packbits"}, 0),
        ({"compression": "lzw", "predictor": True}, 0),
        ({"rowsperstrip": 16, "compression": "jpeg"}, 4),
    ],
)
@pytest.mark.parametrize("form", [{}, {"bigtiff": True, "byteorder": ">"}])
def test_a_plain_tiff_in_strips_is_read(
    arguments: dict[str, Any], error: int, form: dict[str, Any], tmp_path: Path
) -> None:
    is_planar = "planarconfig" in arguments
    pixels = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0)) if is_planar else PIXELS
    with tifffile.TiffWriter(tmp_path / "a.tif", **form) as tiff:
        tiff.write(
            pixels,
            photometric="rgb",
            metadata=None,
            resolution=(20_000, 10_000),
            resolutionunit="CENTIMETER",
            **arguments,
        )
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.name, slide.vendor, slide.level_tiles_yx) == ("tifffile", "tiff", (None,))
        assert (slide.mpp_yx, slide.mpp_source) == ((1.0, 0.5), "TIFF resolution tags")
        assert_pixels(slide, error=error)


def test_smaller_versions_of_a_plain_tiff_are_its_levels_and_other_pages_are_not(
    tmp_path: Path,
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        other = np.zeros((100, 90, 3), np.uint8)
        tiff.write(PIXELS, photometric="rgb", metadata=None)
        tiff.write(other, photometric="rgb", metadata=None)
        tiff.write(PIXELS[::2, ::4].copy(), photometric="rgb", subfiletype=1, metadata=None)
    with open_slide(tmp_path / "a.tif", mpp_fallback_um=0.5) as slide:
        assert slide.level_shapes_yx == ((500, 740), (250, 185))
        assert_pixels(slide)


def test_openslide_stays_the_reader_of_what_it_knows(shared_data: Path, tmp_path: Path) -> None:
    paths = [shared_data / "slides" / name for name in ("cmu-1-small-region.svs", "boxes.tiff")]
    for path in (*paths, write_pyramid(tmp_path / "a.tif", PIXELS)):
        with open_slide(path, mpp_override_um=0.5) as slide:
            assert slide.name == "openslide"


@pytest.mark.parametrize(
    ("pixels", "metadata", "found"),
    [
        (
            np.zeros((2, 70, 90), np.uint16),
            {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC"]}},
            r"2 channels \(DAPI, FITC\) of uint16",
        ),
        (np.zeros((3, 70, 90, 3), np.uint8), {"axes": "ZYXS"}, "3 channels of uint8, 3 planes"),
        (np.zeros((70, 90), np.uint8), {"axes": "YX"}, "1 channel of uint8"),
    ],
)
def test_fluorescence_and_focal_stacks_are_refused_by_what_they_hold(
    pixels: np.ndarray[Any, Any], metadata: dict[str, Any], found: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.ome.tif"
    is_rgb = pixels.shape[-1] == 3
    tifffile.imwrite(path, pixels, photometric="rgb" if is_rgb else "minisblack", metadata=metadata)
    with pytest.raises(SourceError, match=rf"a\.ome\.tif: {found}; only 8-bit RGB of brightfield"):
        open_slide(path, mpp_fallback_um=0.5)


@pytest.mark.parametrize(
    ("dtype", "photometric", "shape", "found"),
    [
        ("uint16", "rgb", (70, 90, 3), "3 channels of 16 bit, RGB"),
        ("uint8", "minisblack", (70, 90), "1 channel of 8 bit, MINISBLACK"),
        ("uint8", "separated", (70, 90, 4), "colours stored as SEPARATED"),
    ],
)
def test_other_kinds_of_plain_tiff_are_refused(
    dtype: str, photometric: Any, shape: tuple[int, ...], found: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros(shape, dtype), photometric=photometric, metadata=None)
    with pytest.raises(SourceError, match=f"a.tif: {found}; only 8-bit RGB"):
        open_slide(path, mpp_fallback_um=0.5)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.full((70, 90, 4), 100, np.uint8)
    pixels[:35, :, 3] = 0
    pixels[35:, :, 3] = 255
    path = tmp_path / "a.tif"
    arguments: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pixels, extrasamples=["unassalpha"], **arguments)
    with open_slide(path, mpp_fallback_um=0.5) as slide:
        assert slide.read_region_yx((30, 7), 0, (10, 1))[:, 0, 0].tolist() == [255] * 5 + [100] * 5


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_plain_tiff_that_lacks_its_end_is_refused(
    compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", compression=compression, metadata=None)
    size = path.stat().st_size - 10
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceError, match=rf"the file at byte {size}.*truncated"):
        open_slide(path, mpp_fallback_um=0.5)


def test_a_damaged_jpeg_tile_is_an_error_in_place_of_paint(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, PIXELS.shape, dtype=np.uint8)
    path = write_ome(tmp_path / "a.ome.tif", noise, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, size = page.dataoffsets[9], page.databytecounts[9]  # row 1, column 1
    with path.open("r+b") as file:
        file.seek(offset + size // 2)
        file.write(bytes(range(64)))
    with open_slide(path) as slide:
        slide.read_region_yx((0, 0), 0, (64, 96))
        with pytest.raises(SourceError, match="cannot read 10x10 px"):
            slide.read_region_yx((70, 100), 0, (10, 10))


def test_a_large_picture_in_one_compressed_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"photometric": "rgb", "rowsperstrip": 500, "metadata": None}
    monkeypatch.setattr(tiff_level, "MOST_SEGMENT_BYTES", 1 << 20)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression="zlib", **arguments)
    with pytest.raises(SourceError, match=r"in pieces of 500 x 740 px, 1 MiB each.*to tiles"):
        open_slide(tmp_path / "a.tif", mpp_fallback_um=0.5)
    tifffile.imwrite(tmp_path / "b.tif", PIXELS, **arguments)  # rows of it can be read apart
    with open_slide(tmp_path / "b.tif", mpp_fallback_um=0.5) as slide:
        assert_pixels(slide)


def test_only_so_many_decoded_tiles_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tiff_level.SegmentCache(most_bytes=1000)
    for number in range(5):
        kept.keep((0, number), np.full(400, number, np.uint8))
        assert kept.find((0, number)) is not None
    assert [kept.find((0, number)) is not None for number in range(5)] == [False] * 3 + [True] * 2


def test_a_slide_whose_pixels_are_in_another_file_is_refused(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", PIXELS)
    with tifffile.TiffFile(path) as tiff:
        text = tiff.ome_metadata or ""
    own = "urn:uuid:00000000-0000-0000-0000-000000000001"
    text = text.replace("<OME ", f'<OME UUID="{own}" ', 1) if "UUID=" not in text else text
    data = text[text.index("<TiffData") :]
    first = data[: data.index(">") + 1]
    other = f'{first.rstrip("/>")}><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
    text = text.replace(first if first.endswith("/>") else f"{first}</TiffData>", other, 1)
    tifffile.tiffcomment(path, text.encode())
    with pytest.raises(SourceError, match=r"in another file \(b\.ome\.tif\)"):
        open_slide(path)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif"])
def test_a_file_cut_off_anywhere_is_read_in_part_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.tif":
        tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=10, metadata=None)
    else:
        write_ome(path, PIXELS)
    whole = path.read_bytes()
    refused = 0
    for share in range(0, 100, 7):
        path.write_bytes(whole[: len(whole) * share // 100])
        try:
            with open_slide(path, mpp_fallback_um=0.5) as slide:
                slide.read_region_yx((0, 0), 0, (5, 5))
        except SourceError:
            refused += 1
    assert refused


def test_a_tile_that_declares_another_size_is_refused_before_it_takes_memory(
    tmp_path: Path,
) -> None:
    path = write_ome(tmp_path / "a.ome.tif", PIXELS, compression="jpeg2000")
    data = bytearray(path.read_bytes())
    start = b"\xff\x4f\xff\x51"
    at = data.index(start)
    while at >= 0:  # every tile, so that no other can be read
        data[at + 8 : at + 16] = (60_000).to_bytes(4, "big") * 2
        at = data.find(start, at + 1)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="JPEG 2000 of 60000 x 60000 px"), open_slide(path):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<OME></OME>", "describes no image"),
        ('<!DOCTYPE a [<!ENTITY b "x">]><OME>&b;</OME>', "EntitiesForbidden"),
        ("<OME><Image><Pixels/></Image></OME>", "SizeY"),
    ],
)
def test_ome_xml_that_describes_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", description=text, metadata=None)
    with pytest.raises(SourceError, match=rf"a\.ome\.tif: tifffile cannot open it .*{said}"):
        open_slide(path, mpp_fallback_um=0.5)


def test_subifds_in_a_circle_end(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", PIXELS)
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first
        tag, here = first.tags["SubIFDs"], first.offset
        size = 8 if tiff.is_bigtiff else 4
    with path.open("r+b") as file:
        file.seek(tag.valueoffset)
        file.write(here.to_bytes(size, "little") * 2)
    with open_slide(path) as slide:
        assert slide.level_shapes_yx == ((500, 740),)
        assert_pixels(slide)
