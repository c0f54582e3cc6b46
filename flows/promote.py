"""`normscope promote`: compare challenger and champion on the validation split."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.events import announce_champion
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.io.storage import join
from training.registry import promotion
from training.registry.gate import PromotionSettings
from training.registry.promotion import (
    Answer,
    PromotionReport,
    Verdict,
    answer_held,
    refuse_unanswered,
)

_LOOK_EVERY_S: Final = 2


class Question(RunInput):
    """Form that Prefect shows to a person where the images do not decide."""

    verdict: Annotated[Verdict, Field(description="Decision on the challenger")]
    name: Annotated[str, Field(min_length=1, description="Name of the person who decides")]
    reason: Annotated[str, Field(min_length=1, description="Reason, kept in the ledger")]


@flow(name="promote")
def promote(
    model_name: str,
    dataset: str,
    *,
    criterion: Literal["non_inferiority", "superiority"] = "non_inferiority",
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02,
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95,
    subgroup_margin: Annotated[float, Field(ge=0, le=1)] = 0.05,
    max_weights_ratio: Annotated[float, Field(gt=0)] = 2.0,
    seed: int = 0,
    wait_s: Annotated[int, Field(ge=0)] = 0,
    ledgers: str | None = None,
) -> PromotionReport:
    """Compare the challenger with the champion, and promote it if it is good enough.

    Both score the same validation images; a paired bootstrap decides. The reasons are kept in the
    model's ledger, as an artifact of the flow run and with the version's run in MLflow.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        dataset: Sealed dataset whose validation split decides.
        criterion: `non_inferiority` lets the challenger lose at most the margin, `superiority`
            asks it to gain more than the margin.
        margin: Margin of AUROC; without labelled anomalies, a share of the champion's mean score.
        level: Confidence level of the interval that must show it, e.g. 0.95.
        subgroup_margin: Largest loss of AUROC allowed in any view, sex, site or scanner.
        max_weights_ratio: Refuse a challenger whose weights have more than this many times the
            champion's bytes.
        seed: Seed of the bootstrap's random resampling.
        wait_s: Seconds that the run pauses for a person's answer where the images do not decide;
            without one the challenger is refused. 0 leaves it held, for `normscope answer`.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in the home folder by default.
    """
    place = ledgers or join(str(load_settings().home), "ledgers")
    settings = PromotionSettings(
        criterion=criterion,
        margin=margin,
        level=level,
        subgroup_margin=subgroup_margin,
        max_weights_ratio=max_weights_ratio,
        seed=seed,
    )
    with progress("Images") as advance:
        report = resumable(promotion.promote)(
            model_name, dataset, ledgers_url=place, settings=settings, on_progress=advance
        )
    if report.decision.outcome == "held" and wait_s:
        report = _ask(publish(report), wait_s, place)
    if report.has_new_champion:
        announce_champion(model_name, report.challenger_version)
    return publish(report)


def _ask(report: PromotionReport, wait_s: int, ledgers: str) -> PromotionReport:
    """Pause until a person has answered; without an answer the challenger is refused."""
    question = Question.with_initial_data(description=report.to_markdown())
    try:
        said = pause_flow_run(question, timeout=wait_s, poll_interval=_LOOK_EVERY_S)
    except FlowPauseTimeout:
        # The run then ends as failed, by Prefect's own rule for a pause that nobody ended.
        return resumable(refuse_unanswered)(report, wait_s, ledgers_url=ledgers)
    answer = Answer(verdict=said.verdict, name=said.name, reason=said.reason)
    return resumable(answer_held)(
        report.model_name,
        answer,
        ledgers_url=ledgers,
        version=report.challenger_version,
        entry_digest=report.entry_digest,
    )
