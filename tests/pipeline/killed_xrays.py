"""The driver of an X-ray ingest that the kill test kills; started as a process of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.engines import dask_engine
from pipeline.image_dataset import ImageSettings, make_reader, plan_images
from pipeline.ingest import ingest
from pipeline.sources.xrays import list_xrays


def run(source: Path, dataset: Path, address: str | None) -> None:
    """Plan and write the dataset in many small shards, so that there is always one to kill in."""
    settings = ImageSettings(modality="radiograph", size_px=64, colour="grey", equalize=True)
    with dask_engine(address=address, workers=1) as engine:
        name, listing = list_xrays(str(source), map_work=engine)
        plan = plan_images(listing.images, settings, source=name, rejected=listing.rejected)
        small = replace(plan, spec=replace(plan.spec, shard_images=8, chunk_images=4))
        ingest(str(dataset), small, make_reader(small), engine)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    os._exit(0)  # a client whose workers are killed under it need not say farewell
