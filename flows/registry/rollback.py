"""`normscope rollback`: the champion before this one becomes champion again."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.events import announce_champion
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry import champion as champions
from training.registry.champion import RollbackReport


@flow(name="rollback")
def rollback(model_name: str, *, reason: str, ledgers: str | None = None) -> RollbackReport:
    """Make the champion before this one champion again; asked again, the one before that.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        reason: Reason of the rollback, kept in the ledger.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    place = load_settings().place("ledgers", ledgers)
    report = resumable(champions.rollback)(model_name, place, reason=reason)
    announce_champion(model_name, report.champion)
    return publish(report)
