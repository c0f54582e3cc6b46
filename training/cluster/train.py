"""The training on any number of workers: Ray Train round `loop.py`.

The driver prepares what all workers share, keeps it beside the checkpoints, starts the workers
and listens to the first one's reports. Checkpoints lie at `<storage>/<run name>/checkpoints`; they
are ours, not Ray's, whose list of them can be torn by a kill. Workers that die are started again
as long as they get further; a run that was interrupted, however, goes on from its latest
checkpoint when it is started again by its name, with as many workers as there are then.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import NormscopeError, SettingsError, StorageError
from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from training.cluster.connection import ONE_CORE, Share, WorkersError, running_ray
from training.cluster.listening import OnReport, listening
from training.data.batches import TrainingImages, check_trainable
from training.learning.checkpoint import Checkpoints
from training.learning.loop import DivergenceError, Report, train
from training.learning.perceptual_features import (
    FEATURES,
    keep_features,
    prepare_features,
    read_features,
)
from training.learning.run_folder import (
    FitResult,
    Resumption,
    claim_run,
    conclude,
    make_absolute,
    open_checkpoints,
)
from training.learning.state import Array, Recipe, Team, TrainingState, begin_training, make_recipe
from training.learning.validation import read_validation
from training.settings import TrainSettings

_MAX_FAILURES: Final = 3


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        settings: Of the training.
        dataset_url: Sealed dataset.
        run_url: Folder or prefix of the run.
        mailbox: Takes letters to the driver: reports, or an error, pickled.
    """

    settings: TrainSettings
    dataset_url: str
    run_url: str
    mailbox: Queue


def fit(
    settings: TrainSettings,
    *,
    dataset_url: str,
    storage_url: str,
    run_name: str,
    workers: int = 1,
    min_workers: int | None = None,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
    on_report: OnReport | None = None,
) -> FitResult:
    """Train to the end, or go on where a run of this name was interrupted.

    Args:
        settings: Of the training.
        dataset_url: Sealed dataset.
        storage_url: Where runs are kept: a path, `file://` or `s3://`.
        run_name: Name of the run below it.
        workers: How many processes train together; batches and their order do not depend on it.
        min_workers: With how many to begin or go on while there is no room for more; `workers`
            by default.
        share: What each takes of the cluster. They speak by NCCL where each has a GPU of its own,
            else by gloo.
        ray_address: Of a cluster; None starts Ray on this machine and stops it again.
        on_report: Called with each report, those of the run's earlier parts first; then from
            another thread. A step may come twice where workers repeat it.

    Raises:
        SchemaError: The dataset cannot be trained on.
        SettingsError: The settings do not fit the dataset, or the run's earlier settings.
        WeightsError: The weights of VGG19 cannot be had.
        DivergenceError: The loss has left all bounds.
        StorageError: The run's folder cannot be written.
        WorkersError: No Ray cluster answers, this machine lacks GPUs, or the workers failed more
            than three times without getting further.
    """
    _check_workers(settings, workers, min_workers)
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    run_url = claim_run(storage_url, run_name, settings, dataset)
    features_url = storage.join(run_url, FEATURES)
    if not storage.exists(features_url):
        keep_features(features_url, prepare_features(settings, dataset))
    checkpoints = open_checkpoints(run_url, settings)
    latest = checkpoints.read_latest()
    if latest is not None and on_report is not None:
        for report in latest.reports:
            on_report(report)
    resumptions: list[Resumption] = []
    if latest is None or not latest.is_last:
        with running_ray(ray_address, workers, share, fewest=min_workers):
            job = Job(settings, make_absolute(dataset_url), run_url, _open_mailbox())
            trainer = TorchTrainer(
                _work,
                train_loop_config={"job": job},
                torch_config=TorchConfig(backend="nccl" if share.gpus == 1 else "gloo"),
                scaling_config=_scale(workers, min_workers, share),
                run_config=RunConfig(
                    name=run_name,
                    storage_path=make_absolute(storage_url),
                    failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                ),
            )
            resumptions = _fit_to_the_end(trainer, job, on_report)
        latest = checkpoints.read_latest()
    if latest is None or not latest.is_last:
        raise WorkersError(run_url, "the workers ended before the training", "Run it again")
    return conclude(run_url, settings, latest, resumptions)


def _fit_to_the_end(
    trainer: TorchTrainer, job: Job, on_report: OnReport | None
) -> list[Resumption]:
    """Fit, and fit again while the workers get further before they fail."""
    checkpoints = open_checkpoints(job.run_url, job.settings)
    mailbox = job.mailbox
    with listening(lambda: mailbox.get_nowait_batch(mailbox.qsize()), on_report) as heard:
        is_running = True
        while is_running:
            before = checkpoints.find_steps()[-1:]
            try:
                trainer.fit()
                is_running = False
            except TrainingFailedError as error:
                if heard.error is not None:
                    raise heard.error from error
                if checkpoints.find_steps()[-1:] == before:
                    last = str(error).strip().splitlines()[-1]
                    remedy = "Run it again under its name: it goes on from its last checkpoint"
                    raise WorkersError(
                        job.run_url, f"the workers failed ({last})", remedy
                    ) from error
    if heard.error is not None:
        raise heard.error
    return heard.resumptions


def _open_mailbox() -> Queue:
    """Beside the driver, so that no other node's end takes it along.

    Letters are pickled before Ray sees them, so that the queue need not import torch.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _check_workers(settings: TrainSettings, workers: int, min_workers: int | None) -> None:
    if min_workers is not None and not 1 <= min_workers <= workers:
        raise SettingsError(
            "min_workers", f"{min_workers}, with {workers} workers", f"Give 1 to {workers}"
        )
    smallest = min(stage.batch_size for stage in settings.growth.plan())
    if workers > smallest:
        raise SettingsError(
            "workers",
            f"{workers}, but a batch has {smallest} images at the least",
            f"Give at most {smallest}, or raise growth.batch_sizes",
        )


def _scale(workers: int, min_workers: int | None, share: Share) -> ScalingConfig:
    count = workers if min_workers in {None, workers} else (min_workers, workers)
    return ScalingConfig(
        num_workers=count,  # type: ignore[arg-type]  # the stub is of Ray Train's first version
        use_gpu=share.gpus > 0,
        resources_per_worker=share.resources(),
        placement_strategy=share.placement,
    )


# What the workers do.


def _work(config: dict[str, Any]) -> None:
    job: Job = config["job"]
    context = ray.train.get_context()
    cores = (os.cpu_count() or 1) // max(context.get_local_world_size(), 1)
    torch.set_num_threads(job.settings.cpu_threads or max(cores, 1))
    team = Team(context.get_world_rank(), context.get_world_size(), prepare_model, _gather)
    try:
        _train_job(job, team)
    except StorageError:
        raise  # may pass: Ray starts the workers again, and they go on from the last checkpoint
    except NormscopeError as error:
        job.mailbox.put(pickle.dumps(error))
        # Divergence is seen by all at once. Other errors may be this worker's alone, as of memory:
        # the others, who wait for it in the midst of a step, are ended by raising it.
        if team.size > 1 and not isinstance(error, DivergenceError):
            raise


def _train_job(job: Job, team: Team) -> None:
    dataset = open_dataset(job.dataset_url)
    features = read_features(storage.join(job.run_url, FEATURES), job.settings)
    recipe = make_recipe(
        job.settings,
        features,
        image_channels=dataset.image_shape[2],
        device=get_device(),
        team=team,
    )
    checkpoints = open_checkpoints(job.run_url, job.settings)
    state, reports = _begin_or_continue(recipe, checkpoints, job.mailbox)

    def publish(report: Report) -> None:
        reports.append(replace(report, gallery=None, scores=None))
        job.mailbox.put(pickle.dumps(report))

    def save(state: TrainingState, _metrics: Mapping[str, float]) -> str:
        if team.rank > 0:
            return checkpoints.url_at(state.step)
        return checkpoints.save(recipe, state, reports)

    train(
        recipe,
        state,
        TrainingImages(dataset, job.settings, recipe.device),
        read_validation(dataset, job.settings.images, limit=job.settings.validation_images),
        save=save,
        publish=publish,
    )


def _begin_or_continue(
    recipe: Recipe, checkpoints: Checkpoints, mailbox: Queue
) -> tuple[TrainingState, list[Report]]:
    latest = checkpoints.read_latest()
    step = 0 if latest is None else latest.step
    found = [int(other) for other in recipe.team.gather(np.array(step))]
    if len(set(found)) > 1:  # workers of an earlier attempt may still be writing
        raise StorageError(
            checkpoints.url, f"the workers found different checkpoints, of steps {found}", "Wait"
        )
    if latest is None:
        return begin_training(recipe), []
    state = latest.restore(recipe)
    if recipe.team.rank == 0:
        mailbox.put(pickle.dumps(Resumption(latest.url, latest.step, recipe.team.size)))
    return state, list(latest.reports)


def _gather(array: Array) -> list[Array]:
    if not torch.distributed.is_initialized():
        return [array]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, array)
    return found
