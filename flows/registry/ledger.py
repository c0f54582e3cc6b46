"""`normscope ledger`: the history of a model, every link verified."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry.champion import LedgerReport, read_ledger


@flow(name="ledger")
def ledger(model_name: str, *, ledgers: str | None = None) -> LedgerReport:
    """Verify the ledger of a model and print it: promotions, refusals, rollbacks, scorings.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    place = load_settings().place("ledgers", ledgers)
    return publish(resumable(read_ledger)(model_name, place))
