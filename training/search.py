"""Choosing hyperparameters by the few labelled anomalies of the validation split: Ray Tune.

Each trial is a short training of its own, alone in its process; none is kept but its figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ray.tune
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.errors import SchemaError
from pipeline.records import Label
from pipeline.store.dataset import Dataset, open_dataset
from training.cluster.connection import ONE_CORE, Share, running_ray
from training.data.batches import TrainingImages, check_trainable, choose_rows
from training.learning.loop import Report, train
from training.learning.perceptual_features import prepare_features
from training.learning.run_folder import make_absolute
from training.learning.state import begin_training, make_recipe
from training.learning.validation import read_validation
from training.networks.vgg import LAYERS
from training.registry.runs import tracked_run
from training.settings import TrainSettings

CHOSEN_BY: Final = "validation_auroc"
_WORST: Final = 0.0

Choice: TypeAlias = Mapping[str, Any]


class SearchSpace(BaseModel):
    """What is tried; every trial draws one of each.

    Attributes:
        learning_rates: Adam's.
        latent_channels: Channels of the latent.
        final_layers: Layers of VGG19 compared at the final resolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rates: tuple[PositiveFloat, ...]
    latent_channels: tuple[PositiveInt, ...]
    final_layers: tuple[str, ...]

    @classmethod
    def around(cls, settings: TrainSettings) -> SearchSpace:
        """Neighbours of given settings.

        A third of the rate and three times, half the latent and twice, the layer before.
        """
        rate, latent = settings.optimiser.learning_rate, settings.network.latent_channels
        layer = next(iter(settings.loss.layers[settings.growth.final_resolution]))
        before = LAYERS[max(LAYERS.index(layer) - 1, 0)] if layer in LAYERS else layer
        return cls(
            learning_rates=(rate / 3, rate, rate * 3),
            latent_channels=tuple(sorted({max(latent // 2, 1), latent, latent * 2})),
            final_layers=tuple(dict.fromkeys((before, layer))),
        )


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        settings: What it trained.
        choice: What it drew.
        auroc: On the validation split, at its end; None if it failed.
        problem: Why it failed; empty if it did not.
    """

    settings: TrainSettings
    choice: Choice
    auroc: float | None
    problem: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        best: Settings of the best trial.
        trials: All, the best first.
        run_id: MLflow's, the parent of the trials' runs.
    """

    best: TrainSettings
    trials: tuple[Trial, ...]
    run_id: str


def search(
    settings: TrainSettings,
    *,
    dataset_url: str,
    storage_url: str,
    tracking_uri: str,
    run_name: str,
    trials: int = 6,
    space: SearchSpace | None = None,
    model_name: str | None = None,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
) -> SearchResult:
    """Try settings, and choose by the AUROC on the validation split.

    Args:
        settings: What all trials share.
        dataset_url: Sealed dataset.
        storage_url: Where Ray Tune keeps its record: a path, `file://` or `s3://`.
        tracking_uri: MLflow's server, or `sqlite:///file`.
        run_name: Of the search.
        trials: How many are made.
        space: What is tried; the neighbours of the settings by default.
        model_name: The MLflow experiment; `<source of the dataset>-anomaly` by default.
        share: What each trial takes of the cluster.
        ray_address: Of a cluster; None starts Ray on this machine and stops it again.

    Raises:
        SchemaError: The dataset cannot be trained on, has no labelled anomaly in its validation
            split, or every trial failed.
    """
    dataset = open_dataset(dataset_url)
    check_trainable(dataset, settings)
    _require_labels(dataset)
    tried = space or SearchSpace.around(settings)
    with running_ray(ray_address, 1, share):
        found = _tune(settings, dataset_url, storage_url, run_name, tried, trials, share)
    ranked = tuple(sorted(found, key=lambda trial: -(trial.auroc or _WORST)))
    if ranked[0].auroc is None:
        raise SchemaError(dataset_url, f"every trial failed ({ranked[0].problem})", "Mend that")
    name = model_name or f"{dataset.attributes['source']}-anomaly"
    run_id = _record(ranked, tracking_uri, name, run_name, dataset)
    return SearchResult(ranked[0].settings, ranked, run_id)


def apply_choice(settings: TrainSettings, choice: Choice) -> TrainSettings:
    """Settings of one trial."""
    content = settings.model_dump()
    content["optimiser"]["learning_rate"] = choice["learning_rate"]
    content["network"]["latent_channels"] = choice["latent_channels"]
    content["loss"]["layers"][settings.growth.final_resolution] = {choice["final_layer"]: 1.0}
    return TrainSettings.model_validate(content)


def _tune(
    settings: TrainSettings,
    dataset_url: str,
    storage_url: str,
    run_name: str,
    space: SearchSpace,
    trials: int,
    share: Share,
) -> list[Trial]:
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_make_trial, share.resources()),
        param_space={
            "settings": settings.model_dump(mode="json"),
            "dataset_url": make_absolute(dataset_url),
            "uses_gpu": share.gpus > 0,
            "choice": {
                "learning_rate": ray.tune.choice(space.learning_rates),
                "latent_channels": ray.tune.choice(space.latent_channels),
                "final_layer": ray.tune.choice(space.final_layers),
            },
        },
        tune_config=ray.tune.TuneConfig(
            metric=CHOSEN_BY,
            mode="max",
            num_samples=trials,
            search_alg=BasicVariantGenerator(random_state=settings.seed),
        ),
        run_config=ray.tune.RunConfig(
            name=run_name, storage_path=make_absolute(storage_url), verbose=0
        ),
    )
    found = tuner.fit()
    return [_read_trial(settings, found[number]) for number in range(len(found))]


def _make_trial(config: dict[str, Any]) -> dict[str, float]:
    """Train alone in this process; the last validation is the trial's figure."""
    settings = apply_choice(TrainSettings.model_validate(config["settings"]), config["choice"])
    torch.set_num_threads(settings.cpu_threads or 1)
    dataset = open_dataset(config["dataset_url"])
    device = torch.device("cuda" if config["uses_gpu"] else "cpu")
    recipe = make_recipe(
        settings,
        prepare_features(settings, dataset),
        image_channels=dataset.image_shape[2],
        device=device,
    )
    last: list[Report] = []
    train(
        recipe,
        begin_training(recipe),
        TrainingImages(dataset, settings, device),
        read_validation(dataset, settings.images, limit=settings.validation_images),
        save=lambda _state, _metrics: "",
        publish=last.append,
    )
    return dict(last[-1].metrics)


def _read_trial(settings: TrainSettings, result: ray.tune.Result) -> Trial:
    choice = (result.config or {})["choice"]
    metrics = result.metrics or {}
    problem = str(result.error).strip().splitlines()[-1] if result.error else ""
    return Trial(apply_choice(settings, choice), choice, metrics.get(CHOSEN_BY), problem)


def _record(
    trials: tuple[Trial, ...], tracking_uri: str, name: str, run_name: str, dataset: Dataset
) -> str:
    """The search as one MLflow run, its trials as runs below it."""
    with tracked_run(
        tracking_uri=tracking_uri,
        experiment=name,
        run_name=run_name,
        settings=trials[0].settings,
        dataset=dataset,
    ) as parent:
        parent.log_metrics({f"best_{CHOSEN_BY}": trials[0].auroc or _WORST})
        for number, trial in enumerate(trials):
            with tracked_run(
                tracking_uri=tracking_uri,
                experiment=name,
                run_name=f"{run_name}-{number:02d}",
                settings=trial.settings,
                dataset=dataset,
                tags={"problem": trial.problem} if trial.problem else {},
            ) as run:
                if trial.auroc is not None:
                    run.log_metrics({CHOSEN_BY: trial.auroc})
        return parent.run_id


def _require_labels(dataset: Dataset) -> None:
    for label in (Label.NORMAL, Label.ANOMALOUS):
        if not len(choose_rows(dataset, "validation", label)):
            raise SchemaError(
                dataset.url,
                f"no readable image with label {int(label)} in split `validation` to choose by",
                "Ingest with labels, or train without a search",
            )
