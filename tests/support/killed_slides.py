"""The driver of an ingest that the kill test kills; started as a process of its own."""

from __future__ import annotations

import sys

from pipeline.runtime.engines import MapWork
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings
from pipeline.sources.slides import list_slides
from tests.support.clusters import drive

# Many small shards, so that there is always one to be killed in.
SETTINGS = SlideSettings(
    tile_size_px=32, mpp_um=1.0, mask_mpp_um=4.0, shard_images=8, chunk_images=4, stain="macenko"
)


def run(source: str, dataset: str, engine: MapWork) -> None:
    """List the slides and write the dataset, as `normscope ingest slides` does."""
    ingest_slides(dataset, list_slides(source), SETTINGS, engine)


if __name__ == "__main__":
    drive(run, *sys.argv[1:])
