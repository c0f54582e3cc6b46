"""`normscope demo`: the whole chain on synthetic slides and X-rays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.ingest_slides import ingest_slides
from flows.ingest_xrays import ingest_xrays
from flows.promote import promote
from flows.score import score
from flows.shared.reports import ModalityOutcome, publish
from flows.shared.settings import load_settings
from flows.train import train
from pipeline.io.storage import join
from pipeline.synthetic import write_slides, write_xrays
from training.cluster.connection import running_ray


@dataclass(frozen=True)
class _Modality:
    """One half of the demo: what writes its scans and what ingests them."""

    name: str
    write: Callable[..., None]
    ingest: Callable[[str, str], Any]  # a flow, which gives an estimate instead on a dry run


_MODALITIES = (
    _Modality("camelyon16", write_slides, ingest_slides),
    _Modality("chestxray14", write_xrays, ingest_xrays),
)


@flow(name="demo")
def demo(*, folder: str | None = None, seed: int = 0) -> tuple[ModalityOutcome, ...]:
    """Run the whole chain on synthetic slides and X-rays with planted anomalies.

    Needs no data, weights, credentials or GPU. The feature extractor is random, so the figures
    show that everything works, not how good the method is. A second run reuses finished parts.

    Args:
        folder: Output folder, a path or `s3://`; `demo/` in the home folder by default.
        seed: Seed of the synthetic scans and of the training.
    """
    settings = load_settings()
    place = folder or join(str(settings.home), "demo")
    with running_ray(settings.ray_address, 1):  # one start for both trainings
        outcomes = [_run(modality, join(place, modality.name), seed) for modality in _MODALITIES]
    return publish(tuple(outcomes))


def _run(modality: _Modality, place: str, seed: int) -> ModalityOutcome:
    scans, dataset = join(place, "scans"), join(place, "dataset")
    modality.write(scans, seed=seed)
    ingested = modality.ingest(scans, dataset)
    trained = train(dataset, preset="demo", seed=seed, storage=join(place, "training"))
    promotion = promote(trained.name, dataset)
    scored = score(dataset, join(place, "scores"), model_name=trained.name)
    return ModalityOutcome(modality.name, ingested, promotion, scored)
