"""Which Dask to work on: a cluster that is named in the settings, or our own processes."""

from __future__ import annotations

from contextlib import AbstractContextManager

from flows.shared.settings import Settings
from pipeline.runtime.engines import MapWork, dask_engine


def open_engine(settings: Settings) -> AbstractContextManager[MapWork]:
    """Open the engine of an ingest.

    Args:
        settings: Name a scheduler, or say how many processes to start here.
    """
    return dask_engine(address=settings.dask_address, workers=settings.workers)
