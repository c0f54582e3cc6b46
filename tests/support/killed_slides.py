"""The driver of an ingest that the kill test kills; started as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.ingest.run import ingest
from pipeline.runtime.engines import MapWork
from pipeline.slides.plan import plan_slides
from pipeline.slides.reader import make_tile_reader
from pipeline.slides.settings import SlideSettings
from pipeline.sources.slides import list_slides
from pipeline.store.dataset import read_group_order
from tests.support.clusters import drive

# Many small shards, so that there is always one to be killed in.
SETTINGS = SlideSettings(
    tile_size_px=32, mpp_um=1.0, mask_mpp_um=4.0, shard_images=8, chunk_images=4, stain="macenko"
)


def run(source: Path, dataset: Path, engine: MapWork) -> None:
    """Plan and write the dataset, as `normscope ingest slides` does."""
    url = str(dataset)
    plan = plan_slides(
        list_slides(str(source)).slides,
        SETTINGS,
        engine,
        source="made",
        known_order=read_group_order(url),
        review_url=f"{url}/review",
        survey_url=f"{url}/survey",
    )
    ingest(url, plan, make_tile_reader(SETTINGS), engine)


if __name__ == "__main__":
    drive(run, *sys.argv[1:])
