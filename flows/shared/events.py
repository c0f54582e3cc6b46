"""Events that other flows may be triggered by, or a person be told of."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.events import emit_event

from training.score import ScoreReport


def announce_champion(model_name: str, version: str) -> None:
    """Say that a version has become champion: by promotion, by a person's word or a rollback."""
    emit_event(
        "mlflow.model.promoted",
        resource={"prefect.resource.id": f"mlflow.model.{model_name}", "version": version},
    )


def report_ranking(report: ScoreReport) -> None:
    """Keep what another champion has moved in the ranking as an artifact; nothing otherwise."""
    if report.moved is not None and FlowRunContext.get() is not None:
        create_markdown_artifact(
            report.moved.to_markdown(),
            key="ranking",
            description=f"What moved in `{report.worklist_url}`",
        )


def alert_of_drift(report: ScoreReport) -> None:
    """Say that scores have drifted, as an event and as an artifact.

    Where nothing new was scored it has been said already; the page goes on to say it.
    """
    if not report.drift.has_drifted or not report.new_count:
        return
    emit_event(
        "normscope.scores.drifted",
        resource={
            "prefect.resource.id": f"mlflow.model.{report.model_name}",
            "version": report.model_version,
            "output": report.output_url,
        },
        payload={"findings": [str(found) for found in report.drift.findings]},
    )
    if FlowRunContext.get() is not None:
        create_markdown_artifact(
            "\n".join(f"- {note}" for note in report.drift.notes),
            key="drift",
            description=f"Drift in `{report.output_url}`, against the normals of "
            f"`{report.model_name}` version {report.model_version}",
        )
