"""What an ingest gets from the settings: an engine to work with, and the key of pseudonyms."""

from __future__ import annotations

from contextlib import AbstractContextManager

from flows.shared.settings import Settings
from pipeline.privacy.key import PseudonymKey
from pipeline.runtime.engines import MapWork, dask_engine


def open_engine(settings: Settings) -> AbstractContextManager[MapWork]:
    """Open Dask: the scheduler that the settings name, or processes started here."""
    return dask_engine(address=settings.dask_address, workers=settings.workers)


def open_key(settings: Settings) -> PseudonymKey | None:
    """Read the key that NORMSCOPE_PSEUDONYM_KEY holds, or None; it is never a parameter.

    Raises:
        SettingsError: The variable does not hold a key.
    """
    secret = settings.pseudonym_key
    return PseudonymKey.parse(secret.get_secret_value()) if secret else None
