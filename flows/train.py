"""`normscope train`: a dataset's normal images to a registered challenger."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from flows.shared.train_form import TrainForm, choose_settings
from pipeline.io.storage import join
from training.cluster.connection import Placement, Share
from training.presets import Preset
from training.train import TrainedModel, train_and_register


@flow(name="train")
def train(
    dataset: str,
    *,
    preset: Preset = "quick",
    vgg_weights: str | None = None,
    model_name: str | None = None,
    run_name: str | None = None,
    storage: str | None = None,
    workers: Annotated[int, Field(ge=1)] = 1,
    min_workers: Annotated[int, Field(ge=1)] | None = None,
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1,
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0,
    placement: Placement = "PACK",
    seed: Annotated[int, Field(ge=0)] = 0,
    train: TrainForm | None = None,
) -> TrainedModel:
    """Train on a dataset's normal images and register the result as challenger.

    Started again with the same settings, an interrupted run goes on from its last checkpoint,
    and one that has finished gives the version that it made.

    Args:
        dataset: A sealed dataset.
        preset: demo (seconds), quick or quick-radiographs (minutes on two cores),
            camelyon16-paper, nih-subset-paper, nih-pa-paper, nih-ap-paper, tiles-256 or
            radiographs-256.
        vgg_weights: torchvision's VGG19 file, `download` to fetch it once, or `random`; the
            preset decides by default.
        model_name: To register under; the dataset's source and `-anomaly` by default.
        run_name: Of the run; made from settings and data by default.
        storage: Where checkpoints are kept, a path or `s3://`; the home folder by default.
        workers: Processes that train together.
        min_workers: With how many to go on where the cluster has lost some; as many as `workers`
            by default.
        cpus_per_worker: Cores of each.
        gpus_per_worker: 1 for a GPU each; with a part of one, e.g. 0.5, several share it.
        placement: Workers on few nodes (PACK, STRICT_PACK for one) or on many (SPREAD,
            STRICT_SPREAD for one each).
        seed: Of weights, order and augmentation.
        train: Settings that differ from the preset; what is left empty stays as it is there.
    """
    settings = load_settings()
    with progress("Steps") as advance:
        trained = resumable(train_and_register)(
            choose_settings(preset, train, seed=seed, vgg_weights=vgg_weights),
            dataset_url=dataset,
            storage_url=storage or join(str(settings.home), "training"),
            tracking_uri=settings.mlflow_tracking_uri,
            run_name=run_name,
            model_name=model_name,
            workers=workers,
            min_workers=min_workers,
            share=Share(cpus_per_worker, gpus_per_worker, placement),
            ray_address=settings.ray_address,
            on_progress=advance,
        )
    return publish(trained)
