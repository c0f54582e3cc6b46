"""Events that trigger other flows, and artifacts that a person should look at."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Final

from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.events import emit_event

from pipeline.io.storage import join, read_bytes
from pipeline.slides.survey.review import shrink_review
from pipeline.store.dataset import open_dataset
from training.registry.promotion import PromotionReport
from training.score import ScoreReport

PROMOTED: Final = "mlflow.model.promoted"
HELD: Final = "normscope.promotion.held"
REFUSED: Final = "normscope.promotion.refused"
DRIFTED: Final = "normscope.scores.drifted"

_PUBLISHED_REVIEWS: Final = 50


def announce_champion(model_name: str, version: str) -> None:
    """Emit the event that a version has become champion, by whatever way."""
    emit_event(PROMOTED, resource=_name_version(model_name, version))


def announce_decision(report: PromotionReport) -> None:
    """Emit the event of a decision on a challenger: promoted, held for a person, or refused."""
    if report.has_new_champion:
        announce_champion(report.model_name, report.challenger_version)
    outcome = report.decision.outcome
    if outcome != "promoted":
        emit_event(
            HELD if outcome == "held" else REFUSED,
            resource=_name_version(report.model_name, report.challenger_version),
            payload={"outcome": outcome, "reasons": list(report.decision.reasons)},
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
        DRIFTED,
        resource={
            **_name_version(report.model_name, report.model_version),
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


def publish_reviews(dataset_url: str) -> None:
    """Keep small copies of the first slides' review pictures as image artifacts.

    The copy travels in the artifact itself, so that the page shows it wherever the picture lies.
    `review/` in the dataset has the pictures of all slides.

    Args:
        dataset_url: URL of the dataset.
    """
    if FlowRunContext.get() is None:
        return
    for part in open_dataset(dataset_url).parts[:_PUBLISHED_REVIEWS]:
        picture = join(dataset_url, str(part.facts["review"]))
        small = b64encode(shrink_review(read_bytes(picture))).decode()
        create_image_artifact(
            image_url=f"data:image/jpeg;base64,{small}",
            key=name_artifact(part.name),
            description=f"`{part.name}`: tissue green, tiles blue, lesions red. Whole: `{picture}`",
        )


def name_artifact(slide_id: str) -> str:
    """A key as Prefect wants it, of lower-case letters, digits and hyphens; no two slides' alike.

    An id that had to be altered is told from others by the start of its digest.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", slide_id.lower()).strip("-")
    if plain != slide_id:
        plain = f"{plain}-{sha256(slide_id.encode()).hexdigest()[:8]}".lstrip("-")
    return f"review-{plain}"


def _name_version(model_name: str, version: str) -> dict[str, str]:
    """A version of a model, as the resource of an event."""
    return {"prefect.resource.id": f"mlflow.model.{model_name}", "version": version}
