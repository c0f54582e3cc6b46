"""Data-parallel training on any number of workers, by Ray Train.

The driver prepares what all workers share, stores it next to the checkpoints, starts the workers
and tracks their reports. Checkpoints lie at `<storage>/<run name>/checkpoints` in a format of our
own (docs/adr/0025). Workers that die are started again as long as they make progress. An
interrupted run that is started again by its name continues from its latest checkpoint, with any
number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model

from pipeline.errors import NormscopeError, SettingsError, StorageError
from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from training.cluster.connection import ONE_CORE, Share, WorkersError, running_ray
from training.cluster.reports import (
    ForwardReports,
    OnReport,
    ReportSender,
    Tracker,
    open_queue,
    receiving,
)
from training.data.batches import TrainingImages, check_trainable
from training.learning.checkpoint import Checkpoints
from training.learning.loop import Report, train
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
from training.learning.state import (
    Array,
    Recipe,
    TrainingState,
    Workers,
    begin_training,
    make_recipe,
)
from training.learning.validation import read_validation
from training.settings import TrainSettings

_MAX_FAILURES: Final = 3  # in a row, without a new checkpoint

WatchNode: TypeAlias = Callable[[str], AbstractContextManager[None]]

logger: Final = logging.getLogger(__name__)


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
    watch_node: WatchNode | None = None,
) -> FitResult:
    """Train to the end, or continue an interrupted run of this name.

    Args:
        settings: Settings of the training.
        dataset_url: Path or URL of a sealed dataset.
        storage_url: Storage of all runs: a path, `file://` or `s3://`.
        run_name: Name of the run's folder below `storage_url`.
        workers: Number of processes that train together; batches and their order do not depend
            on it.
        min_workers: Smallest number of workers to start or continue with while there is no room
            for more; `workers` by default.
        share: Cores and GPUs that each worker takes of the cluster. Workers communicate by NCCL
            where each has a GPU of its own, otherwise by gloo.
        ray_address: Address of a Ray cluster; None starts Ray on this machine and stops it again.
        on_report: Function that is called with each report once, in order, from another thread;
            those of the run's earlier parts come first. Its failures do not end the training.
        watch_node: Function that watches a node for as long as a block, given its name; it is
            called on each node by one worker.

    Raises:
        SchemaError: The dataset cannot be trained on.
        SettingsError: The settings do not fit the dataset, or the run's earlier settings.
        WeightsError: The weights of VGG19 cannot be had.
        DivergenceError: The loss has become NaN, infinite or very large.
        StorageError: The run's folder cannot be written.
        WorkersError: No Ray cluster answers, this machine lacks GPUs, or the workers failed more
            than three times without progress.
    """
    _check_workers(settings, workers, min_workers)
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    run_url = claim_run(storage_url, run_name, settings, dataset)
    features_url = storage.join(run_url, FEATURES)
    if not storage.exists(features_url):
        keep_features(features_url, prepare_features(settings, dataset))
    checkpoints = open_checkpoints(run_url, settings)
    latest, tracker = checkpoints.read_latest(), Tracker(on_report)
    if latest is not None and latest.is_last:  # else the workers report it again
        tracker.track(latest.reports)
        tracker.close()
    else:
        with running_ray(ray_address, workers, share, fewest=min_workers):
            queue = open_queue()
            trainer = TorchTrainer(
                _work,
                train_loop_config={
                    "settings": settings,
                    "dataset_url": make_absolute(dataset_url),
                    "run_url": run_url,
                    "watch_node": watch_node,
                },
                torch_config=TorchConfig(backend="nccl" if share.gpus == 1 else "gloo"),
                scaling_config=_scale(workers, min_workers, share),
                run_config=RunConfig(  # type: ignore[call-arg]  # stub of Ray Train V1
                    name=run_name,
                    storage_path=make_absolute(storage_url),
                    logging_config=LoggingConfig("WARNING"),  # below, each report is printed whole
                    callbacks=[ForwardReports(queue)],  # type: ignore[list-item]  # stub of Ray Train V1
                ),
            )
            with receiving(queue, tracker):
                _fit_to_the_end(trainer, checkpoints)
        latest = checkpoints.read_latest()
    if latest is None or not latest.is_last:
        raise WorkersError(run_url, "the workers ended too early", "Run it again")
    return conclude(run_url, settings, latest, tracker.resumptions)


def _fit_to_the_end(trainer: TorchTrainer, checkpoints: Checkpoints) -> None:
    """Fit, and fit again when workers failed, unless they fail too often without progress."""
    failures = 0
    while True:
        before = checkpoints.find_steps()[-1:]
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_own(error)
            failures = failures + 1 if checkpoints.find_steps()[-1:] == before else 0
            if failures > _MAX_FAILURES:
                last = str(error).strip().splitlines()[-1]
                remedy = "Run it again under its name: it continues from its last checkpoint"
                raise WorkersError(
                    checkpoints.url, f"the workers failed ({last})", remedy
                ) from error
            logger.warning("Workers failed and are started again: %s", error)
        else:
            return


def _raise_own(error: TrainingFailedError) -> None:
    """Raise the error that a worker raised for the user, if there is one.

    A storage error may pass: the workers are started again.
    """
    if isinstance(error, WorkerGroupError):
        for failure in error.worker_failures.values():
            raised = getattr(failure, "_base_exc", failure)  # Ray wraps it for its traceback
            if isinstance(raised, NormscopeError) and not isinstance(raised, StorageError):
                raise raised from error


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
    """Train in one worker, and watch its node if it is the node's first."""
    context, watch = ray.train.get_context(), config["watch_node"]
    is_first = watch is not None and context.get_local_rank() == 0
    with watch(f"node-{context.get_node_rank()}") if is_first else nullcontext():
        _train(config)


def _train(config: dict[str, Any]) -> None:
    """Train in one worker; the driver names settings, dataset and the run's folder."""
    settings: TrainSettings = config["settings"]
    dataset, run_url = open_dataset(config["dataset_url"]), config["run_url"]
    torch.set_num_threads(settings.cpu_threads or _count_threads())
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size(), prepare_model, _gather)
    recipe = make_recipe(
        settings,
        read_features(storage.join(run_url, FEATURES), settings),
        image_channels=dataset.image_shape[2],
        device=get_device(),
        workers=workers,
    )
    checkpoints = open_checkpoints(run_url, settings)
    sender = ReportSender(run_url, workers)
    state, reports = _begin_or_continue(recipe, checkpoints, sender)

    def publish(report: Report) -> None:
        reports.append(replace(report, gallery=None, scores=None))
        sender.add(report)

    def save(state: TrainingState, _metrics: Mapping[str, float]) -> str:
        url = checkpoints.url_at(state.step)
        sender.checkpoint_url = url if workers.rank else checkpoints.save(recipe, state, reports)
        return url

    train(
        recipe,
        state,
        TrainingImages(dataset, settings, recipe.device),
        read_validation(dataset, settings.images, limit=settings.validation_images),
        save=save,
        publish=publish,
    )


def _begin_or_continue(
    recipe: Recipe, checkpoints: Checkpoints, sender: ReportSender
) -> tuple[TrainingState, list[Report]]:
    latest = checkpoints.read_latest()
    step = 0 if latest is None else latest.step
    found = [int(other) for other in recipe.workers.gather(np.array(step))]
    if len(set(found)) > 1:  # workers of an earlier attempt may still be writing
        raise StorageError(
            checkpoints.url, f"the workers found different checkpoints, of steps {found}", "Wait"
        )
    if latest is None:
        return begin_training(recipe), []
    state = latest.restore(recipe)
    sender.checkpoint_url = latest.url
    sender.resend(latest.reports, Resumption(latest.url, latest.step, recipe.workers.size))
    return state, list(latest.reports)


def _count_threads() -> int:
    """Divide the cores that Ray counts on this node, as a pod's limit, among its workers here."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    cores = next(node["Resources"].get("CPU", 1.0) for node in nodes if node["NodeID"] == here)
    workers: int = ray.train.get_context().get_local_world_size()
    return max(int(cores) // workers, 1)


def _gather(array: Array) -> list[Array]:
    if not torch.distributed.is_initialized():
        return [array]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, array)
    return found
