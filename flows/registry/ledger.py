"""`normscope ledger`: the history of a model, every link verified."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry.champion import LedgerReport, move_ledger, read_ledger


@flow(name="ledger")
def ledger(model_name: str, *, ledgers: str | None = None, move: str | None = None) -> LedgerReport:
    """Verify the ledger of a model and print it: promotions, refusals, rollbacks, scorings.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
        move: Folder of ledgers to move this one to, a path or `s3://`. Where it was moved by other
            means, or restored there, the registry learns of it. All entries must be there.
    """
    place = load_settings().place("ledgers", move or ledgers)
    work = resumable(move_ledger if move else read_ledger)
    return publish(work(model_name, place))
