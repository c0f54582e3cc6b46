"""`normscope lineage`: from a score back to its model, data and code."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry.lineage import Lineage, trace


@flow(name="lineage")
def lineage(scores: str, image_id: str) -> Lineage:
    """Trace a score to model version, run, datasets, source bytes, code and ledger.

    Args:
        scores: Output folder of a scoring, or its scores.parquet; a path or `s3://`.
        image_id: Value in the table's column `image_id`.
    """
    load_settings()
    return publish(resumable(trace)(scores, image_id))
