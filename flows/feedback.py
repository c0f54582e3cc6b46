"""`normscope feedback`: readers' verdicts to a table of labels."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.tasks import resumable
from training.worklist.verdicts import FeedbackReport, import_verdicts


@flow(name="feedback")
def feedback(verdicts: list[str], *, table: str) -> FeedbackReport:
    """Take verdicts that a worklist exported into a table of labels, for the next search.

    Of several verdicts on one image the latest counts. Artefacts get no label.

    Args:
        verdicts: Exported JSON files, paths or `s3://`.
        table: The CSV table: made if absent, and added to. `ingest images --labels` reads it.
    """
    return publish(resumable(import_verdicts)(verdicts, table))
