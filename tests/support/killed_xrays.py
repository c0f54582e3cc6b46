"""The driver of an X-ray ingest that the kill test kills; started as a process of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pipeline.images.plan import ImageSettings, make_reader, plan_images
from pipeline.ingest.run import ingest
from pipeline.runtime.engines import MapWork
from pipeline.sources.xrays import list_xrays
from tests.support.clusters import drive


def run(source: Path, dataset: Path, engine: MapWork) -> None:
    """Plan and write the dataset in many small shards, so that there is always one to kill in."""
    settings = ImageSettings(modality="radiograph", size_px=64, colour="grey", equalize=True)
    name, listing = list_xrays(str(source), map_work=engine)
    plan = plan_images(listing.images, settings, source=name, rejected=listing.rejected)
    small = replace(plan, spec=replace(plan.spec, shard_images=8, chunk_images=4))
    ingest(str(dataset), small, make_reader(small), engine)


if __name__ == "__main__":
    drive(run, *sys.argv[1:])
