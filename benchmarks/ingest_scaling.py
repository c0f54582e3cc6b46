"""How the time of an ingest grows with slides, tiles and workers, and what Camelyon16 would cost.

Slides are the synthetic ones, side by side as files; each ingest plans and writes a sealed dataset
on Dask workers that run already. Growth is time over work, so 1 is linear and below 1 means that
fixed costs still count. `workers_2` is the gain of a second worker. The figures for Camelyon16 and
for ten thousand slides follow from the seconds of one tile and one slide on one worker; they leave
out the transfer of the slides, which depends on the network alone.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark
from pipeline.ingest.run import ingest
from pipeline.io.storage import list_objects
from pipeline.records import Slide
from pipeline.runtime.engines import MapWork, dask_engine
from pipeline.slides.plan import plan_slides
from pipeline.slides.reader import make_tile_reader
from pipeline.slides.settings import SlideSettings
from pipeline.synthetic.slides import write_slides

# A shard holds as many tiles as a small slide has: many shards even when there is little to do.
SETTINGS: Final = SlideSettings(tile_size_px=128, mpp_um=0.5, shard_images=128, chunk_images=64)
SHAPE_YX: Final = (2304, 3072)
# Camelyon16: 399 slides; Normscope's default tiles (64 um, half of them tissue) in its tissue,
# taken as 8 percent of 200,000 x 100,000 px of 0.25 um.
CAMELYON_SLIDES: Final = 399
CAMELYON_TILES: Final = 0.08 * 200_000 * 100_000 / 256**2


def run_ingest(slides: list[Slide], settings: SlideSettings, engine: MapWork, folder: Path) -> int:
    """Plan and write; the number of tiles."""
    plan = plan_slides(slides, settings, engine, source="benchmark")
    report = ingest(str(folder), plan, make_tile_reader(settings), engine)
    if report.unreadable_count or report.failures:
        raise ValueError(f"{report.unreadable_count} unreadable tiles, {report.failures}")
    return report.image_count


def measure(quick: bool) -> Outcome:
    """Vary slides, tiles and workers, each by itself."""
    count = 8 if quick else 16
    with tempfile.TemporaryDirectory(prefix="normscope-scaling-") as name, ExitStack() as stack:
        folder = Path(name)
        write_slides(
            str(folder / "slides"),
            normal_count=count,
            tumor_count=0,
            test_count=0,
            shape_yx=SHAPE_YX,
        )
        slides = [
            Slide(Path(found.url).stem, found.url, found.version)
            for found in list_objects(str(folder / "slides"))
            if found.url.endswith(".tif")
        ]
        engines = {workers: stack.enter_context(dask_engine(workers=workers)) for workers in (1, 2)}
        return _compare(slides, engines, folder / "dataset", quick)


def _compare(
    slides: list[Slide], engines: dict[int, MapWork], folder: Path, quick: bool
) -> Outcome:
    tiles: dict[str, int] = {}

    def method(name: str, chosen: list[Slide], settings: SlideSettings, workers: int) -> Method:
        def run() -> None:
            tiles[name] = run_ingest(chosen, settings, engines[workers], folder)

        return Method(name, run, 1.0, prepare=lambda: shutil.rmtree(folder, ignore_errors=True))

    few = slides[: len(slides) // 4]
    # Half of the stride on one axis of two gives four times the tiles.
    dense = SETTINGS.model_copy(update={"stride_px": SETTINGS.tile_size_px // 2})
    methods = {
        "all": method("all slides, 1 worker", slides, SETTINGS, 1),
        "few": method("a quarter of the slides", few, SETTINGS, 1),
        "dense": method("a quarter, overlapping tiles", few, dense, 1),
        "two": method("all slides, 2 workers", slides, SETTINGS, 2),
    }
    comparison = compare(
        f"{len(slides)} slides of {SHAPE_YX[0]} x {SHAPE_YX[1]} px",
        list(methods.values()),
        unit="ingests/s",
        rounds=3 if quick else 5,
    )
    names = {key: each.name for key, each in methods.items()}
    counts = {key: tiles[name] for key, name in names.items()}
    return _conclude(comparison, names, counts, len(few))


def _conclude(
    comparison: Comparison, names: dict[str, str], tiles: dict[str, int], few: int
) -> Outcome:
    seconds = {key: 1 / comparison.rate(name) for key, name in names.items()}
    more_tiles = tiles["dense"] / tiles["few"]
    tile_s = max(0.0, seconds["dense"] - seconds["few"]) / (tiles["dense"] - tiles["few"])
    slide_s = max(0.0, seconds["few"] - tiles["few"] * tile_s) / few
    hours = (CAMELYON_SLIDES * (slide_s + CAMELYON_TILES * tile_s)) / 3600
    metrics = {
        "slides_growth": seconds["all"] / seconds["few"] / 4,
        "tiles_growth": seconds["dense"] / seconds["few"] / more_tiles,
        "workers_2": seconds["all"] / seconds["two"],
        "seconds_per_1000_tiles": 1000 * tile_s,
        "seconds_per_slide": slide_s,
        "camelyon16_worker_hours": hours,
    }
    side, mpp = SETTINGS.tile_size_px, SETTINGS.mpp_um
    return Outcome(
        [comparison],
        metrics,
        [
            f"Tiles of {side} px at {mpp} um/px: {tiles['few']} and, overlapping, "
            f"{tiles['dense']} of {few} slides.",
            f"On paper: Camelyon16 has {CAMELYON_SLIDES} slides of about {CAMELYON_TILES:,.0f} "
            f"such tiles: {hours:.1f} worker hours; 10,000 slides {hours * 10_000 / 399:,.0f}.",
        ],
    )


if __name__ == "__main__":
    run_benchmark("ingest_scaling", measure)
