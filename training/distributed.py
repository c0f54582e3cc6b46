"""The training on any number of workers: Ray Train round `loop.py`.

The driver prepares what all workers share, keeps it beside the checkpoints, starts the workers
and listens to the first one's reports. Checkpoints lie at `<storage>/<run name>/step-...`; a run
that was interrupted, however, goes on from the latest one when it is started again by its name.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import ray.train
import torch
import torch.distributed
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.util.queue import Queue
from torch import Tensor

from pipeline import storage
from pipeline.errors import NormscopeError, SettingsError, StorageError
from pipeline.schema import Dataset, open_dataset
from training.checkpoint import load_checkpoint, read_networks, save_checkpoint
from training.config import TrainSettings, check_run_name
from training.data import TrainingImages, check_trainable
from training.features import FEATURES, keep_features, prepare_features, read_features
from training.listening import OnReport, listening
from training.loop import Report, train
from training.state import Array, Recipe, Team, TrainingState, begin_training, make_recipe
from training.validation import read_validation

RUN: Final = "run.json"
_MAX_FAILURES: Final = 3


class WorkersError(NormscopeError):
    """Workers that failed again and again, for a reason of their machine's."""


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


@dataclass(frozen=True)
class FitResult:
    """What a training has made.

    Attributes:
        checkpoint_url: The last checkpoint.
        features_url: The eyes of the loss, as safetensors.
        networks: The autoencoder's weights.
        reports: All that was reported, galleries left out.
    """

    checkpoint_url: str
    features_url: str
    networks: Mapping[str, Tensor]
    reports: tuple[Report, ...]


def fit(
    settings: TrainSettings,
    *,
    dataset_url: str,
    storage_url: str,
    run_name: str,
    workers: int = 1,
    uses_gpu: bool = False,
    ray_address: str | None = None,
    on_report: OnReport | None = None,
) -> FitResult:
    """Train to the end, or go on where a run of this name was interrupted.

    Args:
        settings: Of the training.
        dataset_url: Sealed dataset.
        storage_url: Where runs are kept: a path, `file://` or `s3://`.
        run_name: Name of the run below it.
        workers: How many processes train together.
        uses_gpu: Whether each has a GPU (NCCL) or cores alone (gloo).
        ray_address: Of a cluster; None starts Ray on this machine and stops it again.
        on_report: Called in this process, from another thread, with each report.

    Raises:
        SchemaError: The dataset cannot be trained on.
        SettingsError: The settings do not fit the dataset, or the run's earlier settings.
        WeightsError: The weights of VGG19 cannot be had.
        DivergenceError: The loss has left all bounds.
        StorageError: The run's folder cannot be written.
        WorkersError: The workers failed more than three times.
    """
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    run_url = claim_run(storage_url, run_name, settings, dataset)
    features_url = storage.join(run_url, FEATURES)
    if not storage.exists(features_url):
        keep_features(features_url, prepare_features(settings, dataset))
    with running_ray(ray_address, workers):
        # Letters are pickled before Ray sees them, so that the queue need not import torch.
        mailbox = Queue(actor_options={"num_cpus": 0})
        job = Job(settings, make_absolute(dataset_url), run_url, mailbox)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if uses_gpu else "gloo"),
            scaling_config=_scale(workers, uses_gpu=uses_gpu),
            run_config=RunConfig(
                name=run_name,
                storage_path=make_absolute(storage_url),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoints_kept),
            ),
        )
        with listening(lambda: mailbox.get_nowait_batch(mailbox.qsize()), on_report) as heard:
            result = _fit_to_the_end(trainer, run_url)
        if heard.error is not None:
            raise heard.error
        if result.checkpoint is None:
            raise WorkersError(run_url, "no checkpoint was registered", "Run it again")
        with result.checkpoint.as_directory() as folder:
            networks = read_networks(Path(folder))
    return FitResult(
        checkpoint_url=storage.join(run_url, Path(result.checkpoint.path).name),
        features_url=features_url,
        networks=networks,
        reports=tuple(heard.reports),
    )


def _fit_to_the_end(trainer: TorchTrainer, run_url: str) -> ray.train.Result:
    try:
        return trainer.fit()
    except TrainingFailedError as error:
        last = str(error).strip().splitlines()[-1]
        remedy = "Run it again under its name: it goes on from its last checkpoint"
        raise WorkersError(run_url, f"the workers failed ({last})", remedy) from error


def claim_run(storage_url: str, run_name: str, settings: TrainSettings, dataset: Dataset) -> str:
    """Write down what the run of a name is, or make sure that it is the same.

    Returns:
        The run's folder or prefix.

    Raises:
        SettingsError: The name was given to other settings or another dataset.
    """
    check_run_name(run_name)
    run_url = storage.join(make_absolute(storage_url), run_name)
    content = {"settings": settings.model_dump(mode="json"), "dataset": dataset.fingerprint}
    url = storage.join(run_url, RUN)
    if not storage.create_bytes(url, json.dumps(content, indent=1).encode()):
        before = json.loads(storage.read_bytes(url))
        if before != json.loads(json.dumps(content)):
            same_data = before["dataset"] == dataset.fingerprint
            what = "with other settings" if same_data else "on another dataset"
            raise SettingsError(
                run_url, f"a run of this name was begun {what}", "Choose another run name"
            )
    return run_url


def make_absolute(url: str) -> str:
    """A plain path as an absolute one, for processes that stand elsewhere."""
    return url if "://" in url else str(Path(url).absolute())


def _scale(workers: int, *, uses_gpu: bool) -> ScalingConfig:
    resources = {"CPU": 1.0, **({"GPU": 1.0} if uses_gpu else {})}
    return ScalingConfig(num_workers=workers, use_gpu=uses_gpu, resources_per_worker=resources)


@contextmanager
def running_ray(address: str | None, workers: int) -> Iterator[None]:
    """Use the Ray that runs, connect to a cluster, or start one here; stop what was begun."""
    if ray.is_initialized():
        yield
        return
    if address is None:
        cpus = max(workers, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


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
        # The same on every worker, and it would be again.
        job.mailbox.put(pickle.dumps(error))


def _train_job(job: Job, team: Team) -> None:
    dataset = open_dataset(job.dataset_url)
    device = get_device()
    features = read_features(storage.join(job.run_url, FEATURES), job.settings)
    recipe = make_recipe(
        job.settings, features, image_channels=dataset.image_shape[2], device=device, team=team
    )
    limit = job.settings.validation_images
    train(
        recipe,
        _begin_or_continue(recipe, job.run_url),
        TrainingImages(dataset, job.settings),
        read_validation(dataset, job.settings.images, limit=limit),
        save=lambda state, metrics: _save(recipe, state, metrics, job.run_url),
        publish=lambda report: job.mailbox.put(pickle.dumps(report)),
    )


def _begin_or_continue(recipe: Recipe, run_url: str) -> TrainingState:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return begin_training(recipe)
    name = storage.join(run_url, Path(checkpoint.path).name)
    with checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder), recipe, name=name)


def _save(recipe: Recipe, state: TrainingState, metrics: Mapping[str, float], run_url: str) -> str:
    """Keep a checkpoint; a barrier, as every worker must report."""
    name = f"step-{state.step:08d}"
    if recipe.team.rank > 0:
        ray.train.report(dict(metrics), checkpoint_dir_name=name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), recipe, state)
            checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name)
    return storage.join(run_url, name)


def _gather(array: Array) -> list[Array]:
    if not torch.distributed.is_initialized():
        return [array]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, array)
    return found
