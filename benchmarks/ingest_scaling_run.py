"""Ingest a folder or prefix of slides with two workers: see `benchmarks.ingest_scaling`.

`python -m benchmarks.ingest_scaling_run KIND SOURCE DATASET [WARM_UP]`, where KIND is `simulated`
or `real`. Workers start before the clock, and warm up on the slides of another folder. Prints one
line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import psutil

from benchmarks.simulated import SETTINGS
from benchmarks.tiling_run import measure_peak_mib
from pipeline.io.storage import list_objects, name_of
from pipeline.records import Slide, SlideListing
from pipeline.runtime.engines import DaskMap, MapWork, dask_engine
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings

WORKERS: Final = 2
KINDS: Final = {"simulated": SETTINGS, "real": SlideSettings(tile_size_px=128, mpp_um=0.5)}


def list_slides(source: str) -> SlideListing:
    """List all files below a folder or prefix as slides, all of them normal."""
    found = sorted(list_objects(f"{source}/"), key=lambda info: info.url)
    slides = [Slide(name_of(info.url), info.url, info.version) for info in found]
    return SlideListing("benchmark", tuple(slides), ())


def _count_sent(engine: MapWork) -> int:
    """Bytes that the client has sent to the scheduler: tasks, and all that is said about them."""
    assert isinstance(engine, DaskMap)  # noqa: S101 -- dask_engine's
    comm: Any = engine.client.scheduler_comm
    return int(comm.byte_count)


def _spend() -> float:
    """Processor seconds of this process and its workers."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def run(settings: SlideSettings, source: str, dataset: str, warm_up: str) -> dict[str, Any]:
    """Ingest once, and say what it took."""
    listing = list_slides(source)
    with dask_engine(workers=WORKERS) as engine:
        if warm_up:
            ingest_slides(f"{dataset}-warm-up", list_slides(warm_up), settings, engine)
        sent, spent, began = _count_sent(engine), _spend(), time.perf_counter()
        report = ingest_slides(dataset, listing, settings, engine)
        seconds, core_seconds = time.perf_counter() - began, _spend() - spent
        sent = _count_sent(engine) - sent
        # The scheduler of a local cluster lives in the driver's process.
        peak_mib = measure_peak_mib()
    if report.failures:
        raise ValueError(f"{len(report.failures)} slides failed: {report.failures[0].reason}")
    count = len(listing.slides)
    return {
        "seconds": seconds,
        "core_seconds": core_seconds,
        "made": report.parts_made,
        "kept": report.parts_kept,
        "tiles": report.image_count,
        "objects": sum(1 for _ in list_objects(f"{dataset}/")),
        "sent_bytes_a_task": sent / count,
        "peak_memory_mib": peak_mib,
    }


def main(kind: str, source: str, dataset: str, warm_up: str = "") -> None:
    """Do the work, and say how it went."""
    print(json.dumps(run(KINDS[kind], source, dataset, warm_up)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
