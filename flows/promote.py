"""`normscope promote`: compare challenger and champion on the validation split."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

from prefect import flow, runtime
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import (
    RunInput,
    create_flow_run_input,
    filter_flow_run_input,
    read_flow_run_input,
)
from pydantic import Field, TypeAdapter

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.events import announce_decision
from flows.shared.limits import limited
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
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
_HELD: Final = "held"  # names the decision among the run's inputs


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
        wait_s: Seconds to wait for a person's answer where the images do not decide. Without one
            a command refuses the challenger. A deployment's run is suspended meanwhile, with no
            process; without an answer it fails, and the challenger stays held. 0 leaves it held
            at once, for `normscope answer`.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    place = load_settings().place("ledgers", ledgers)
    settings = PromotionSettings(
        criterion=criterion,
        margin=margin,
        level=level,
        subgroup_margin=subgroup_margin,
        max_weights_ratio=max_weights_ratio,
        seed=seed,
    )
    report = _recall_held()
    if report is None:
        with limited(f"promote-{model_name}"), progress("Images") as advance:
            report = resumable(promotion.promote)(
                model_name, dataset, ledgers_url=place, settings=settings, on_progress=advance
            )
        announce_decision(report)
    if report.decision.outcome == "held" and wait_s:
        report = _ask(publish(report), wait_s, place)
        announce_decision(report)
    return publish(report)


def _ask(report: PromotionReport, wait_s: int, ledgers: str) -> PromotionReport:
    """Wait until a person has answered; a run that waits in vain where it stands refuses."""
    question = Question.with_initial_data(description=report.to_markdown())
    try:
        said = _suspend(report, question, wait_s) if _may_suspend() else _pause(question, wait_s)
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


def _pause(question: type[Question], wait_s: int) -> Question:
    """Wait in this process."""
    return pause_flow_run(question, timeout=wait_s, poll_interval=_LOOK_EVERY_S)


def _suspend(report: PromotionReport, question: type[Question], wait_s: int) -> Question:
    """End this process; once answered, a worker starts the run again, which gets here anew."""
    # The answer is looked up, so that a run that crashes after it asks nobody twice.
    known: Any = filter_flow_run_input("suspended-", limit=200)
    answers = [each.value for each in known if each.key.endswith("-response")]
    if answers:
        return Question.model_validate_json(answers[-1])
    if _recall_held() is None:
        # Text, as JSON of the server's has no NaN; Python's has.
        create_flow_run_input(_HELD, json.dumps(asdict(report)))
    return suspend_flow_run(question, timeout=wait_s, key=f"start-{runtime.flow_run.run_count}")


def _may_suspend() -> bool:
    """Whether a worker can start this run again: it is a deployment's, and no other flow's part."""
    is_deployed = runtime.deployment.id is not None
    return is_deployed and runtime.flow_run.parent_flow_run_id is None


def _recall_held() -> PromotionReport | None:
    """The decision that an earlier process of this run has held; None in the first."""
    if not _may_suspend():
        return None
    found: Any = read_flow_run_input(_HELD)
    if found is None:
        return None
    return TypeAdapter(PromotionReport).validate_python(json.loads(found))
