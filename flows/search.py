"""`normscope search`: choose hyperparameters by a few labelled anomalies."""

from __future__ import annotations

from typing import Annotated

from prefect import flow, runtime
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.driver import drive
from flows.shared.limits import limited
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from flows.shared.train_form import TrainForm, choose_settings
from flows.shared.weights import share_weights
from pipeline.io.storage import join
from training import search as tuning
from training.cluster.connection import Share
from training.learning.run_folder import make_absolute
from training.presets import Preset


@flow(name="search")
def search(
    dataset: str,
    *,
    preset: Preset = "quick",
    trials: Annotated[int, Field(ge=1)] = 6,
    vgg_weights: str | None = None,
    model_name: str | None = None,
    run_name: str | None = None,
    storage: str | None = None,
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1,
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0,
    seed: Annotated[int, Field(ge=0)] = 0,
    train: TrainForm | None = None,
) -> tuning.SearchResult:
    """Choose hyperparameters by the few labelled anomalies of the validation split.

    Each trial is a training with another learning rate, latent size or feature layer. All are
    runs in MLflow under one parent; the report says how to train with the best.

    Args:
        dataset: Sealed dataset with labelled anomalies in its validation split.
        preset: Set of settings that the trials share; see `normscope train`.
        trials: Number of trainings.
        vgg_weights: torchvision's VGG19 file, a path or `s3://`, `download` to fetch it once, or
            `random`; the preset decides by default.
        model_name: Name of the experiment in MLflow; the dataset's source and `-anomaly` by
            default.
        run_name: Name of the search; made from the flow run's name by default.
        storage: Folder of Ray Tune's records, a path or `s3://`; `search/` in NORMSCOPE_STATE by
            default.
        cpus_per_worker: CPU cores of each trial.
        gpus_per_worker: GPUs of each trial; a fraction, e.g. 0.5, shares one among several.
        seed: Seed of the choice of trials and of each training.
        train: Settings that differ from the preset; an empty field keeps the preset's value.
    """
    settings = load_settings()
    storage = settings.place("search", storage)
    run_name = run_name or f"search-{runtime.flow_run.name}"
    work = drive(tuning.search, settings, subject=join(storage, run_name))
    chosen = choose_settings(preset, train, seed=seed, vgg_weights=vgg_weights)
    with limited(gpus=gpus_per_worker):  # of one trial: how many run at once is Ray's to choose
        found = resumable(work)(
            settings=share_weights(chosen, settings),
            dataset_url=make_absolute(dataset),
            storage_url=storage,
            tracking_uri=settings.mlflow_tracking_uri,
            run_name=run_name,
            trials=trials,
            model_name=model_name,
            share=Share(cpus_per_worker, gpus_per_worker, wait_s=settings.ray_wait_s),
        )
    return publish(found)
