"""Short trainings with different settings, run as trials of Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ray.tune
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.store.dataset import open_dataset
from training.cluster.connection import ONE_CORE, Share, running_ray
from training.data.batches import TrainingImages
from training.learning.loop import Report, train
from training.learning.perceptual_features import prepare_features
from training.learning.run_folder import make_absolute
from training.learning.state import begin_training, make_recipe
from training.learning.validation import read_validation
from training.networks.vgg import LAYERS
from training.settings import TrainSettings

CHOSEN_BY: Final = "validation_auroc"

# Tune would hand the driver's S3 keys to its trials by a runtime environment, which Ray logs. The
# nodes have keys of their own.
ENV_VARS_TO_PROPAGATE.difference_update(
    name for name in tuple(ENV_VARS_TO_PROPAGATE) if name.startswith("AWS_")
)

Choice: TypeAlias = Mapping[str, Any]


class SearchSpace(BaseModel):
    """The values that a search draws from; each trial draws one of each.

    Attributes:
        learning_rates: Learning rates of the Adam optimiser.
        latent_channels: Numbers of channels of the latent.
        final_layers: Layers of VGG19 that are compared at the final resolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rates: tuple[PositiveFloat, ...]
    latent_channels: tuple[PositiveInt, ...]
    final_layers: tuple[str, ...]

    @classmethod
    def around(cls, settings: TrainSettings) -> SearchSpace:
        """Make a space of neighbours of given settings.

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
    """One trial and its result.

    Attributes:
        settings: Settings that the trial trained with.
        choice: Values that the trial drew from the search space.
        auroc: AUROC on the validation split at the end; None if the trial failed.
        problem: Error that ended the trial; empty if it did not fail.
    """

    settings: TrainSettings
    choice: Choice
    auroc: float | None
    problem: str = ""


def run_trials(
    settings: TrainSettings,
    space: SearchSpace,
    *,
    dataset_url: str,
    storage_url: str,
    run_name: str,
    trials: int,
    share: Share = ONE_CORE,
    ray_address: str | None = None,
) -> list[Trial]:
    """Train once per trial, each alone in its process, and keep only the figures.

    Args:
        settings: Settings that all trials share.
        space: Values that the trials draw from, with the settings' seed.
        dataset_url: Sealed dataset that can be trained on.
        storage_url: Storage of Ray Tune's record: a path, `file://` or `s3://`.
        run_name: Name of the search's folder in the storage.
        trials: Number of trials.
        share: Cores and GPUs that each trial takes of the cluster.
        ray_address: Address of a Ray cluster; None starts Ray on this machine and stops it again.

    Returns:
        One result per trial, in the order of the trials.

    Raises:
        WorkersError: No cluster answers at the address, or this machine lacks GPUs.
    """
    with running_ray(ray_address, 1, share):
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(_run_trial, share.resources()),
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


def apply_choice(settings: TrainSettings, choice: Choice) -> TrainSettings:
    """Replace the three searched settings by the values that a trial drew."""
    content = settings.model_dump()
    content["optimiser"]["learning_rate"] = choice["learning_rate"]
    content["network"]["latent_channels"] = choice["latent_channels"]
    content["loss"]["layers"][settings.growth.final_resolution] = {choice["final_layer"]: 1.0}
    return TrainSettings.model_validate(content)


def _run_trial(config: dict[str, Any]) -> dict[str, float]:
    """Train alone in this process, and give the metrics of the last validation."""
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
