"""`normscope promote`: the challenger faces the champion on the sealed validation split."""

from __future__ import annotations

from typing import Annotated, Literal

from prefect import flow
from prefect.events import emit_event
from pydantic import Field

import flows.environment  # noqa: F401 -- sets variables, before the rest
from flows.progress import progress
from flows.reports import publish
from flows.settings import load_settings
from flows.tasks import resumable
from pipeline.storage import join
from training import promotion
from training.gate import PromotionSettings
from training.promotion import PromotionReport


@flow(name="promote")
def promote(
    model_name: str,
    dataset: str,
    *,
    criterion: Literal["non_inferiority", "superiority"] = "non_inferiority",
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02,
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95,
    subgroup_margin: Annotated[float, Field(ge=0, le=1)] = 0.05,
    slowest: Annotated[float, Field(gt=0)] = 2.0,
    largest: Annotated[float, Field(gt=0)] = 2.0,
    seed: int = 0,
    ledgers: str | None = None,
) -> PromotionReport:
    """Let the challenger face the champion, and move the aliases if it wins.

    Both score the same validation images; a paired bootstrap decides. The reasons are kept in the
    model's ledger, as an artifact of the flow run and with the version's own run in MLflow.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        dataset: The sealed dataset whose validation split decides.
        criterion: The challenger loses at most the margin, or gains more than it.
        margin: In AUROC; without labelled anomalies, a share of the champion's mean score.
        level: Of the interval that must show it.
        subgroup_margin: In AUROC; no view, sex, site or scanner may lose more.
        slowest: So many times the champion's seconds an image are too many.
        largest: So many times the champion's bytes of weights are too many.
        seed: Of the resamples.
        ledgers: Folder of the ledger of a model that has none yet, a path or `s3://`; below the
            home folder by default.
    """
    place = ledgers or join(str(load_settings().home), "ledgers")
    settings = PromotionSettings(
        criterion=criterion, margin=margin, level=level, subgroup_margin=subgroup_margin,
        slowest=slowest, largest=largest, seed=seed,
    )  # fmt: skip
    with progress("Images") as advance:
        report = resumable(promotion.promote)(
            model_name, dataset, ledgers_url=place, settings=settings, on_progress=advance
        )
    if report.has_new_champion:
        emit_event(
            "mlflow.model.promoted",
            resource={
                "prefect.resource.id": f"mlflow.model.{model_name}",
                "version": report.challenger_version,
            },
        )
    return publish(report)
