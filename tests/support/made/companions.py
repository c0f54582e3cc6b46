"""Slides of several files, written here: MIRAX, Hamamatsu and DICOM, lossless, of two levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from struct import pack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

TILE_PX = 64
MPP_UM = 0.5


def _cut(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Tiles row by row; both sides are multiples of theirs."""
    for y in range(0, pixels.shape[0], TILE_PX):
        for x in range(0, pixels.shape[1], TILE_PX):
            yield pixels[y : y + TILE_PX, x : x + TILE_PX]


def write_dicom_slide(
    folder: Path, pixels: NDArray[np.uint8], *, series: str = "1.2.3.1"
) -> list[Path]:
    """Write a DICOM slide: `0.dcm` has all pixels, `1.dcm` every other of each axis."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for level, step in enumerate((1, 2)):
        path = folder / f"{level}.dcm"
        made = _make_level(pixels[::step, ::step], level, step, series)
        made.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _make_level(pixels: NDArray[np.uint8], level: int, step: int, series: str) -> Dataset:
    instance = generate_uid(entropy_srcs=[series, str(level)])
    measures, lens, shared, found = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [MPP_UM * step / 1000] * 2  # mm
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = [measures]
    lens.ObjectiveLensPower = 20
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = instance
    found.SOPClassUID, found.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, instance
    found.SeriesInstanceUID, found.Modality = UID(series), "SM"
    kind = ["ORIGINAL", "NONE"] if level == 0 else ["DERIVED", "RESAMPLED"]
    found.ImageType = [kind[0], "PRIMARY", "VOLUME", kind[1]]
    found.DimensionOrganizationType = "TILED_FULL"
    found.TotalPixelMatrixRows, found.TotalPixelMatrixColumns = pixels.shape[:2]
    found.Rows = found.Columns = TILE_PX
    found.SamplesPerPixel, found.PhotometricInterpretation = 3, "RGB"
    found.PlanarConfiguration, found.PixelRepresentation = 0, 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.SharedFunctionalGroupsSequence = [shared]
    found.OpticalPathSequence = [lens]
    tiles = list(_cut(pixels))
    found.NumberOfFrames = len(tiles)
    found.add_new(0x7FE00010, "OB", b"".join(tile.tobytes() for tile in tiles))
    return found


def write_mirax(path: Path, pixels: NDArray[np.uint8]) -> list[Path]:
    """Write a MIRAX slide, `path` and its folder; each level has a data file of its own.

    By OpenSlide's reader and https://openslide.org/formats/mirax/: no positions, no overlap.
    """
    folder, slide_id = path.with_suffix(""), "made"
    folder.mkdir(parents=True)
    path.write_bytes(b"not read")
    root = 5 + len(slide_id)
    index = bytearray(b"01.02" + slide_id.encode() + bytes(8))
    index[root : root + 4] = pack("<i", len(index))
    index += bytes(8)  # where the levels' records are
    for level in (0, 1):
        entries, data = [], bytearray()
        across, step = pixels.shape[1] // TILE_PX, 2**level
        for number, tile in enumerate(_cut(pixels[::step, ::step])):
            row, column = divmod(number, across // step)
            buffer = BytesIO()
            Image.fromarray(tile).save(buffer, "PNG")
            place = (row * across + column) * step
            entries.append(pack("<4i", place, len(data), buffer.tell(), level))
            data += buffer.getvalue()
        index[root + 8 + 4 * level : root + 12 + 4 * level] = pack("<i", len(index))
        index += pack("<4i", 0, len(index) + 8, len(entries), 0) + b"".join(entries)
        (folder / f"Data000{level}.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(index)
    (folder / "Slidedat.ini").write_text(_describe(pixels.shape, slide_id), "utf-8-sig")
    return [path, *sorted(folder.iterdir())]


def _describe(shape: tuple[int, ...], slide_id: str) -> str:
    general: dict[str, object] = {
        "SLIDE_VERSION": "01.02",
        "SLIDE_ID": slide_id,
        "OBJECTIVE_MAGNIFICATION": 20,
        "IMAGENUMBER_X": shape[1] // TILE_PX,
        "IMAGENUMBER_Y": shape[0] // TILE_PX,
    }
    hierarchical: dict[str, object] = {
        "HIER_COUNT": 1,
        "NONHIER_COUNT": 0,
        "INDEXFILE": "Index.dat",
        "HIER_0_COUNT": 2,
        "HIER_0_NAME": "Slide zoom level",
        "HIER_0_VAL_0_SECTION": "LEVEL_0",
        "HIER_0_VAL_1_SECTION": "LEVEL_1",
    }
    levels: dict[str, dict[str, object]] = {
        f"LEVEL_{level}": {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "IMAGE_FORMAT": "PNG",
            "MICROMETER_PER_PIXEL_X": MPP_UM * 2**level,
            "MICROMETER_PER_PIXEL_Y": MPP_UM * 2**level,
            "IMAGE_FILL_COLOR_BGR": 0xFFFFFF,
            "DIGITIZER_WIDTH": TILE_PX,
            "DIGITIZER_HEIGHT": TILE_PX,
            "IMAGE_CONCAT_FACTOR": level,
        }
        for level in (0, 1)
    }
    data: dict[str, object] = {"FILE_COUNT": 2, "FILE_0": "Data0000.dat", "FILE_1": "Data0001.dat"}
    sections = {"GENERAL": general, "HIERARCHICAL": hierarchical, "DATAFILE": data, **levels}
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in values.items())]
    return "\n".join(lines)


def write_vmu(path: Path, pixels: NDArray[np.uint8]) -> list[Path]:
    """Write a Hamamatsu slide of 12 bits, uncompressed, in columns; each level is a file.

    By OpenSlide's reader and https://openslide.org/formats/hamamatsu/.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"ImageFile": f"{path.stem}.ngr", "MapFile": f"{path.stem}_map2.ngr"}
    for name, level in zip(names.values(), (pixels, pixels[::2, ::2]), strict=True):
        height, width = level.shape[:2]
        header = b"GN" + pack("<h3i8xi", 0, width, height, TILE_PX, 28)
        columns = [level[:, x : x + TILE_PX].astype("<u2") << 4 for x in range(0, width, TILE_PX)]
        (path.parent / name).write_bytes(header + b"".join(map(np.ndarray.tobytes, columns)))
    write_index(path, "Uncompressed Virtual Microscope Specimen", pixels, names)
    return [path, *sorted(path.with_name(name) for name in names.values())]


def write_vms(path: Path, pixels: NDArray[np.uint8]) -> list[Path]:
    """Write a Hamamatsu slide of two JPEG files side by side and one of half their size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    middle = 10 * TILE_PX
    parts = {
        "ImageFile": (f"{path.stem}.jpg", pixels[:, :middle]),
        "ImageFile(1,0)": (f"{path.stem}(1,0).jpg", pixels[:, middle:]),
        "MapFile": (f"{path.stem}_map2.jpg", pixels[::2, ::2]),
    }
    for name, part in parts.values():
        Image.fromarray(part).save(
            path.with_name(name),
            "JPEG",
            quality=100,
            subsampling=0,
            restart_marker_blocks=TILE_PX // 8,
        )
    names = {key: name for key, (name, _) in parts.items()}
    write_index(path, "Virtual Microscope Specimen", pixels, names)
    return [path, *sorted(path.with_name(name) for name in names.values())]


def write_index(
    path: Path, section: str, pixels: NDArray[np.uint8], names: Mapping[str, str]
) -> None:
    """The file that Hamamatsu's others are named in; lengths are nm."""
    values = {
        "NoLayers": 1,
        "NoJpegColumns": 2,
        "NoJpegRows": 1,
        "BitsPerPixel": 36,
        "PixelOrder": "RGB",
        "PhysicalWidth": round(pixels.shape[1] * MPP_UM * 1000),
        "PhysicalHeight": round(pixels.shape[0] * MPP_UM * 1000),
        "SourceLens": 20,
        **names,
    }
    lines = [f"[{section}]", *(f"{key}={value}" for key, value in values.items())]
    path.write_text("\n".join(lines))
