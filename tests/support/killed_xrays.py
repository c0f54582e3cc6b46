"""The driver of an X-ray ingest that the kill test kills; started as a process of its own."""

from __future__ import annotations

import sys
from unittest.mock import patch

from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.runtime.engines import MapWork
from pipeline.sources.xrays import list_xrays
from tests.support.clusters import drive


def run(source: str, dataset: str, engine: MapWork) -> None:
    """List and write the dataset in many small parts, so that there is always one to kill in."""
    settings = ImageSettings(modality="radiograph", size_px=64, colour="grey", equalize=True)
    name, listing = list_xrays(source, map_work=engine)
    with patch("pipeline.images.plan.choose_part", lambda _: (8, 4)):
        ingest_images(dataset, listing, settings, engine, source=name)


if __name__ == "__main__":
    drive(run, *sys.argv[1:])
