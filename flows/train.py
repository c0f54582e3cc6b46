"""`normscope train`: train on normal images and register the model as challenger."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.driver import drive
from flows.shared.limits import limited
from flows.shared.progress import progress
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from flows.shared.train_form import TrainForm, choose_settings
from flows.shared.weights import share_weights
from pipeline.io.storage import join
from training.cluster.connection import Placement, Share
from training.learning.run_folder import make_absolute
from training.presets import Preset
from training.train import TrainedModel, name_training, train_and_register


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

    Started again with the same settings, an interrupted run continues from its last checkpoint,
    and a finished one returns the version that it made.

    Args:
        dataset: Sealed dataset to train on, a path or an `s3://` URL.
        preset: Set of settings to start from: `demo` takes seconds, `quick` and
            `quick-radiographs` minutes on two cores; the others need a GPU.
        vgg_weights: torchvision's VGG19 file, a path or `s3://`, `download` to fetch it once, or
            `random`; the preset decides by default.
        model_name: Name in the registry; the dataset's source and `-anomaly` by default.
        run_name: Name of the run, which continues it; made from settings and data by default.
        storage: Folder of the checkpoints, a path or `s3://`; `training/` in NORMSCOPE_STATE by
            default.
        workers: Number of processes that train together, data-parallel.
        min_workers: Smallest number of workers to continue with after a cluster has lost some; as
            many as `workers` by default.
        cpus_per_worker: CPU cores of each worker.
        gpus_per_worker: GPUs of each worker; a fraction, e.g. 0.5, shares one among several.
        placement: Placement of workers on nodes: few nodes (PACK), one (STRICT_PACK), many
            (SPREAD) or one worker per node (STRICT_SPREAD).
        seed: Seed of the initial weights, the order of images and the augmentation.
        train: Settings that differ from the preset; an empty field keeps the preset's value.
    """
    settings = load_settings()
    storage = settings.place("training", storage)
    chosen = share_weights(
        choose_settings(preset, train, seed=seed, vgg_weights=vgg_weights), settings
    )
    model_name, run_name = name_training(chosen, dataset, model_name, run_name)
    work = drive(train_and_register, settings, subject=join(storage, run_name))
    gpus = workers * gpus_per_worker
    with limited(f"train-{model_name}", gpus=gpus), progress("Steps") as advance:
        trained = resumable(work)(
            settings=chosen,
            dataset_url=make_absolute(dataset),
            storage_url=storage,
            tracking_uri=settings.mlflow_tracking_uri,
            ledgers_url=settings.place("ledgers"),
            run_name=run_name,
            model_name=model_name,
            workers=workers,
            min_workers=min_workers,
            share=Share(cpus_per_worker, gpus_per_worker, placement, settings.ray_wait_s),
            on_progress=advance,
        )
    return publish(trained)
