"""Where the tiles of each slide lie, in the formats of other tools: a file for each slide.

- `parquet`: all columns and facts of the tiles.
- `geojson`: the tiles' outlines, which QuPath opens over the slide (RFC 7946, but in pixels).
- `clam`: HDF5 with `coords`, as CLAM's feature extraction reads it (mahmoodlab/CLAM).
- `trident`: HDF5 with `coords`, as TRIDENT's does (mahmoodlab/TRIDENT).

Coordinates of `geojson`, `clam` and `trident` are (x, y) in level-0 pixels, as these tools want.
Those of `geojson` count from the corner of the scanned part, which QuPath shows alone; all others
from that of the slide.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Final, Literal, TypeAlias, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SchemaError, SourceError
from pipeline.io import storage
from pipeline.records import ManifestEntry, Progress, ignore_progress
from pipeline.slides.bounds import find_bounds_yx
from pipeline.slides.tiling import PairYX, measure_tile_extent_yx
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.part import OpenPart, Part

ExportFormat: TypeAlias = Literal["parquet", "geojson", "clam", "trident"]
FORMATS: Final[tuple[ExportFormat, ...]] = get_args(ExportFormat)
_MEASURES: Final = ("tissue_fraction", "lesion_fraction")
# An objective of 10x gives about 1 um/px; these tools tell magnifications, not um/px.
_UM_AT_1X: Final = 10.0


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export.

    Args:
        output_url: Folder or prefix of the files.
        export_format: Format of the files.
        tile_count: Number of tiles in all files.
        manifest: One entry for each slide.
    """

    output_url: str
    export_format: ExportFormat
    tile_count: int
    manifest: tuple[ManifestEntry, ...]

    @property
    def failures(self) -> tuple[ManifestEntry, ...]:
        """The slides that failed."""
        return tuple(entry for entry in self.manifest if entry.state == "failed")


def export_tiles(
    dataset_url: str,
    output_url: str,
    export_format: ExportFormat,
    *,
    on_progress: Progress = ignore_progress,
) -> ExportReport:
    """Write a file for each slide of a dataset that says where its tiles lie.

    A file is named by the stem of the slide's file, as the other tools look for it; where two
    slides share one, by the whole path with `__` in place of `/`. Running it again writes the
    same bytes.

    Args:
        dataset_url: Path or URL of a sealed dataset of slides.
        output_url: Folder or prefix of the files; created if absent.
        export_format: `parquet`, `geojson`, `clam` or `trident`.
        on_progress: Function that gets slides done and slides in all.

    Raises:
        SchemaError: The dataset is not one of slides.
        StorageError: The files cannot be written.
    """
    dataset = open_dataset(dataset_url)
    if dataset.attributes["modality"] != "histology" or "origin_yx" not in dataset.column_names:
        raise SchemaError(
            dataset.url, "its images are no tiles of slides", "Export a dataset of slides"
        )
    names = name_files([part.name for part in dataset.parts])
    encode = _ENCODERS[export_format]
    entries, tiles = [], 0
    for number, part in enumerate(dataset.parts):
        try:
            entries.append(_export(dataset, number, output_url, names[part.name], encode))
            tiles += part.image_count
        except SourceError as error:
            entries.append(ManifestEntry(part.name, "failed", str(error)))
        on_progress(number + 1, len(dataset.parts))
    return ExportReport(output_url, export_format, tiles, tuple(entries))


def name_files(slide_ids: list[str]) -> dict[str, str]:
    """Name the files of slides by their stem where that is unique, else by their whole path."""
    stems = Counter(PurePosixPath(slide_id).stem for slide_id in slide_ids)
    return {
        slide_id: stem
        if stems[stem := PurePosixPath(slide_id).stem] == 1
        else slide_id.replace("/", "__")
        for slide_id in slide_ids
    }


def _export(
    dataset: Dataset, number: int, output_url: str, name: str, encode: Callable[[_Tiles], _File]
) -> ManifestEntry:
    part = dataset.parts[number]
    if not part.image_count:
        return ManifestEntry(part.name, "skipped", str(part.facts["remark"]))
    file = encode(_Tiles(dataset, number, part, dataset.open_part(number)))
    storage.write_bytes(storage.join(output_url, f"{name}{file.suffix}"), file.data)
    return ManifestEntry(part.name, "done")


@dataclass(frozen=True)
class _File:
    suffix: str
    data: bytes


@dataclass(frozen=True)
class _Tiles:
    """The tiles of one slide."""

    dataset: Dataset
    number: int
    part: Part
    opened: OpenPart

    @property
    def origins_xy(self) -> NDArray[np.int64]:
        """(n, 2) int64, upper left corners as (x, y) in level-0 pixels."""
        return np.ascontiguousarray(self.opened.column("origin_yx")[:, ::-1])

    @property
    def extent_yx(self) -> PairYX:
        """Height and width of a tile in level-0 pixels."""
        parameters = self.dataset.attributes["parameters"]
        return measure_tile_extent_yx(self.mpp_yx, parameters["mpp_um"], self.side_px)

    @property
    def mpp_yx(self) -> tuple[float, float]:
        """Micrometres per level-0 pixel."""
        return float(self.part.facts["mpp_y_um"]), float(self.part.facts["mpp_x_um"])

    @property
    def side_px(self) -> int:
        """Height and width of a tile in its own pixels."""
        return self.dataset.image_shape[0]

    def require_square(self) -> int:
        """Side of a tile in level-0 pixels; HDF5 of these tools knows one number for both."""
        height, width = self.extent_yx
        if height != width:
            raise SourceError(
                self.part.name,
                f"its tiles are {height} x {width} px of level 0 (y, x), and this format holds "
                "squares",
                "Export it as `parquet` or `geojson`",
            )
        return height


def _encode_parquet(tiles: _Tiles) -> _File:
    frame = import_module("pipeline.store.frames").make_part_frame(tiles.dataset, tiles.number)
    height, width = tiles.extent_yx
    buffer = BytesIO()
    frame.assign(tile_height_px=height, tile_width_px=width).to_parquet(buffer, index=False)
    return _File(".parquet", buffer.getvalue())


def _encode_geojson(tiles: _Tiles) -> _File:
    height, width = tiles.extent_yx
    measures = {name: tiles.opened.column(name) for name in _MEASURES}
    top, left = find_bounds_yx(tiles.part.facts)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_outline(x - left, y - top, height, width)],
            },
            "properties": {
                "objectType": "tile",
                "name": f"y{y}_x{x}",
                "measurements": {
                    name: float(values[row])
                    for name, values in measures.items()
                    if np.isfinite(values[row])
                },
            },
        }
        for row, (x, y) in enumerate(tiles.origins_xy.tolist())
    ]
    whole = {"type": "FeatureCollection", "features": features}
    return _File(".geojson", (json.dumps(whole, separators=(",", ":")) + "\n").encode())


def _outline(x: int, y: int, height: int, width: int) -> list[list[int]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]


def _encode_clam(tiles: _Tiles) -> _File:
    shape_xy = [int(tiles.part.facts["width_px"]), int(tiles.part.facts["height_px"])]
    attributes = {
        "patch_level": 0,  # sides are in pixels of this level
        "patch_size": tiles.require_square(),
        "downsample": [1.0, 1.0],
        "level_dim": shape_xy,
        "downsampled_level_dim": shape_xy,
        "name": PurePosixPath(tiles.part.name).stem,
    }
    return _File(".h5", _encode_hdf5(tiles.origins_xy, attributes))


def _encode_trident(tiles: _Tiles) -> _File:
    stride_px = tiles.dataset.attributes["parameters"]["stride_px"] or tiles.side_px
    attributes = {
        "patch_size": tiles.side_px,
        "patch_size_level0": tiles.require_square(),
        "level0_magnification": round(_UM_AT_1X / tiles.mpp_yx[0]),
        "target_magnification": _UM_AT_1X / tiles.dataset.attributes["parameters"]["mpp_um"],
        "overlap": max(0, tiles.side_px - stride_px),
        "level0_width": int(tiles.part.facts["width_px"]),
        "level0_height": int(tiles.part.facts["height_px"]),
        "name": PurePosixPath(tiles.part.name).stem,
    }
    return _File("_patches.h5", _encode_hdf5(tiles.origins_xy, attributes))


def _encode_hdf5(coords: NDArray[np.int64], attributes: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    with h5py.File(buffer, "w", libver="earliest", track_order=True) as file:
        dataset = file.create_dataset("coords", data=coords, track_times=False)
        for name, value in attributes.items():
            dataset.attrs[name] = value
    return buffer.getvalue()


_ENCODERS: Final[Mapping[ExportFormat, Callable[[_Tiles], _File]]] = {
    "parquet": _encode_parquet,
    "geojson": _encode_geojson,
    "clam": _encode_clam,
    "trident": _encode_trident,
}
