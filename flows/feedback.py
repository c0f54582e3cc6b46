"""`normscope feedback`: readers' verdicts to a table of labels."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.tasks import resumable
from training.worklist.verdicts import FeedbackReport, import_verdicts


@flow(name="feedback")
def feedback(verdicts: list[str], *, table: str) -> FeedbackReport:
    """Add verdicts that a worklist exported to a table of labels, for the next search.

    The latest of several verdicts on an image counts. Artefacts get no label.

    Args:
        verdicts: JSON files exported by worklists, paths or `s3://`.
        table: CSV table that the labels are added to, made if absent. `ingest images --labels`
            reads it.
    """
    return publish(resumable(import_verdicts)(verdicts, table))
