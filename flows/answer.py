"""`normscope answer`: a person's word on a challenger that the gate has held."""

from __future__ import annotations

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.events import announce_champion
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.io.storage import join
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
        verdict: Whether it becomes champion.
        name: Who says so, for the ledger.
        reason: Why, for the ledger.
        version: The version that the answer is about; refused if another one is held. Whichever
            is held if left out.
        ledgers: Folder of the ledger of a model that has none yet, a path or `s3://`; below the
            home folder by default.
    """
    place = ledgers or join(str(load_settings().home), "ledgers")
    said = Answer(verdict=verdict, name=name, reason=reason)
    report = resumable(answer_held)(model_name, said, ledgers_url=place, version=version)
    if report.has_new_champion:
        announce_champion(model_name, report.challenger_version)
    return publish(report)
