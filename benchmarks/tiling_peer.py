"""Read tiles of a slide with one library, in its own environment: see `benchmarks.tiling`.

`python tiling_peer.py LIBRARY SLIDE ORIGINS.npy SIDE PROBES.npy` reads tiles of SIDE pixels at
origins (n, 2), (y, x), of level 0, one after the other, as the library is meant to be used. The
first few go to PROBES. Prints `{"seconds": ..., "core_seconds": ..., "peak_memory_mib": ...}`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Read = Callable[[int, int, int], Any]  # y, x, side -> (side, side, 3 or 4) uint8
PROBES = 32
CACHE_MIB = 512


def load_openslide(path: str) -> Read:
    """OpenSlide's own Python binding."""
    slide = import_module("openslide").OpenSlide(path)
    return lambda y, x, side: np.asarray(slide.read_region((x, y), 0, (side, side)))


def load_tiffslide(path: str) -> Read:
    """OpenSlide's interface over tifffile."""
    slide = import_module("tiffslide").TiffSlide(path)
    return lambda y, x, side: slide.read_region((x, y), 0, (side, side), as_array=True)


def load_cucim(path: str) -> Read:
    """NVIDIA's reader, on the processor, with its cache."""
    cucim = import_module("cucim.clara")
    cucim.CuImage.cache("per_process", memory_capacity=CACHE_MIB)
    slide = cucim.CuImage(path)
    return lambda y, x, side: np.asarray(slide.read_region((x, y), (side, side), 0))


def load_fastslide(path: str) -> Read:
    """A C++ reader with a cache."""
    slide = import_module("fastslide").FastSlide.from_file_path(path)
    return lambda y, x, side: slide.read_region(location=(x, y), level=0, size=(side, side)).numpy()


def load_histoprep(path: str) -> Read:
    """Tiles as HistoPrep's reader reads them."""
    slide = import_module("histoprep").SlideReader(path)
    return lambda y, x, side: slide.read_region((x, y, side, side), level=0)


def load_histolab(path: str) -> Read:
    """Tiles as histolab's own tilers extract them."""
    coordinates = import_module("histolab.types").CoordinatePair
    slide = import_module("histolab.slide").Slide(path, processed_path="unused")
    # It wants the last pixel to be inside the slide, hence -1.
    return lambda y, x, side: np.asarray(
        slide.extract_tile(
            coordinates(x, y, x + side - 1, y + side - 1), (side, side), level=0
        ).image
    )


def load_tiatoolbox(path: str) -> Read:
    """TIAToolbox's reader for this kind of file."""
    slide = import_module("tiatoolbox.wsicore.wsireader").WSIReader.open(path)
    return lambda y, x, side: slide.read_rect((x, y), (side, side), 0, "level")


def load_pyvips(path: str) -> Read:
    """Libvips on the TIFF's own tiles, with its cache of them."""
    vips = import_module("pyvips")
    region = vips.Region.new(vips.Image.tiffload(path, page=0))
    return lambda y, x, side: np.frombuffer(region.fetch(x, y, side, side), np.uint8).reshape(
        side, side, -1
    )


def load_tifffile(path: str) -> Read:
    """The TIFF's tiles by tifffile and imagecodecs, those decoded last kept."""
    page = import_module("tifffile").TiffFile(path).pages[0]
    file, across = page.parent.filehandle, -(-page.imagewidth // page.tilewidth)
    height, width = page.tilelength, page.tilewidth

    @lru_cache(maxsize=512)
    def decode(number: int) -> Any:
        file.seek(page.dataoffsets[number])
        data = file.read(page.databytecounts[number])
        return page.decode(data, number, jpegtables=page.jpegtables)[0][0]

    def read(y: int, x: int, side: int) -> Any:
        tile = np.empty((side, side, 3), np.uint8)
        for row in range(y // height, (y + side - 1) // height + 1):
            for column in range(x // width, (x + side - 1) // width + 1):
                top, left = row * height - y, column * width - x
                decoded = decode(row * across + column)
                tile[max(top, 0) : top + height, max(left, 0) : left + width] = decoded[
                    max(-top, 0) : side - top, max(-left, 0) : side - left
                ]
        return tile

    return read


def main(library: str, path: str, origins_file: str, side_px: str, probes_file: str) -> None:
    """Read every tile, and say how long that took."""
    origins, side = np.load(origins_file).tolist(), int(side_px)
    read: Read = globals()[f"load_{library}"](path)
    began, core_began = time.perf_counter(), time.process_time()
    total = 0
    for y, x in origins:
        total += read(y, x, side).shape[0]
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - core_began
    if total != side * len(origins):
        raise ValueError(f"{library} gave {total} rows of pixels, not {side * len(origins)}")
    status = Path("/proc/self/status").read_text()
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    probes = [read(y, x, side)[..., :3] for y, x in origins[:: -(-len(origins) // PROBES)]]
    np.save(probes_file, np.stack(probes))
    result = {"seconds": seconds, "core_seconds": core_seconds, "peak_memory_mib": peak_mib}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
