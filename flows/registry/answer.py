"""`normscope answer`: a person's decision on a challenger that the gate has held."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.events import announce_champion
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry.promotion import Answer, PromotionReport, Verdict, answer_held


@flow(name="answer")
def answer(
    model_name: str,
    *,
    verdict: Verdict,
    name: str,
    reason: str,
    version: str | None = None,
    ledgers: str | None = None,
) -> PromotionReport:
    """Approve or refuse a challenger that the gate has held; an approval moves the aliases.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        verdict: `approve` makes the challenger champion, `refuse` does not.
        name: Name of the person who decides, kept in the ledger.
        reason: Reason of the decision, kept in the ledger.
        version: Version that the answer is about; refused if another one is held. By default the
            one that is held.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    place = load_settings().place("ledgers", ledgers)
    said = Answer(verdict=verdict, name=name, reason=reason)
    report = resumable(answer_held)(model_name, said, ledgers_url=place, version=version)
    if report.has_new_champion:
        announce_champion(model_name, report.challenger_version)
    return publish(report)
