"""Tile a slide with Normscope, or only decode its JPEG tiles, or write: see `benchmarks.tiling`.

`python -m benchmarks.tiling_run METHOD WORKERS SLIDE ORIGINS.npy SIDE FOLDER [RUNS]`, where METHOD
is `normscope`, `limit` or `write`. One worker stays on one core, its threads included. Prints one
line of JSON for each of the RUNS.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import repeat
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.io.atomic_files import written_beside
from pipeline.io.storage import describe
from pipeline.records import Slide, SlideListing
from pipeline.runtime.engines import MapWork, dask_engine, map_serially
from pipeline.runtime.malloc import set_freed_memory
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings

MPP_UM = 0.25


def make_settings(side_px: int) -> SlideSettings:
    """All tissue of level 0 in tiles side by side."""
    return SlideSettings(tile_size_px=side_px, mpp_um=MPP_UM)


def list_slide(path: Path) -> Slide:
    """The slide as a source would list it."""
    return Slide(path.stem, str(path), describe(str(path)).version)


def tile(path: Path, side_px: int, folder: Path, map_work: MapWork) -> int:
    """Write a sealed dataset; the number of its tiles."""
    listing = SlideListing("benchmark", (list_slide(path),), ())
    report = ingest_slides(str(folder), listing, make_settings(side_px), map_work)
    if report.unreadable_count:
        raise ValueError(f"{report.unreadable_count} tiles of {path} are unreadable")
    return report.image_count


def decode(path: Path, side_px: int, origins_yx: NDArray[np.int64]) -> int:
    """Decode every JPEG tile of level 0 that a tile touches once, and do nothing else."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
    height, width = page.tilelength, page.tilewidth
    across = -(-page.imagewidth // width)
    numbers = {
        row * across + column
        for y, x in origins_yx.tolist()
        for row in range(y // height, (y + side_px - 1) // height + 1)
        for column in range(x // width, (x + side_px - 1) // width + 1)
    }
    with path.open("rb", buffering=0) as file:
        for number in sorted(numbers):
            file.seek(page.dataoffsets[number])
            data = file.read(page.databytecounts[number])
            imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")
    return len(origins_yx)


def write(count: int, side_px: int, folder: Path) -> int:
    """Write as many bytes as these tiles have, as fast as the disk takes them."""
    chunk = memoryview(bytes(64 * side_px**2 * 3))
    with written_beside(folder / "tiles", repeat(chunk, count // 64), is_large=True):
        return count


def measure_peak_mib() -> float:
    """Peak memory of this process; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(
    method: str, workers: str, path: str, origins: str, side: str, folder: str, runs: str = "1"
) -> None:
    """Do the work, and say how long it took."""
    engine: AbstractContextManager[MapWork] = nullcontext(map_serially)
    if workers == "1":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    else:
        engine = dask_engine(workers=int(workers))
    set_freed_memory(is_kept=True)  # as workers do
    with engine as map_work:
        for run in range(int(runs)):
            place = Path(folder) / str(run)
            began, core_began = time.perf_counter(), time.process_time()
            if method == "limit":
                parts = np.array_split(np.load(origins), int(workers))
                count = sum(map_work(partial(decode, Path(path), int(side)), parts))
            elif method == "write":
                count = write(len(np.load(origins)), int(side), place)
            else:
                count = tile(Path(path), int(side), place, map_work)
            seconds, core_seconds = time.perf_counter() - began, time.process_time() - core_began
            result = {
                "seconds": seconds,
                "core_seconds": core_seconds,
                "tiles": count,
                "peak_memory_mib": measure_peak_mib(),
            }
            print(json.dumps(result), flush=True)
    # Not before: a file system looks at each place of a file just deleted when it makes one.
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
