"""The feature extractor of the loss, prepared once for a run and stored next to its checkpoints.

Weights come from a file on the driver's disk, a download or a seed, and their statistics from the
training images. All workers and later continuations read the one result, so it cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import safetensors.torch
from torch import Tensor, nn

from pipeline.io import storage
from pipeline.store.dataset import Dataset
from training.data.batches import choose_training_rows, read_centres
from training.networks.inputs import split_batches, to_tensor
from training.networks.vgg import VggFeatures, measure_statistics
from training.networks.vgg_weights import load_vgg
from training.settings import MEASURE, TrainSettings

FEATURES: Final = "features.safetensors"
_BATCH: Final = 64


def prepare_features(settings: TrainSettings, dataset: Dataset) -> VggFeatures:
    """Load VGG19 and, if the settings ask for it, measure its features' statistics.

    Raises:
        WeightsError: A file is missing, cannot be read, or lacks layers.
    """
    loss = settings.loss
    features = load_vgg(
        loss.vgg_weights,
        layers=loss.layer_names(),
        statistics=loss.statistics_file,
        seed=loss.vgg_seed,
        width=loss.vgg_width,
    )
    has_layers = bool(loss.layer_names())  # pixels alone need none
    if loss.feature_statistics == MEASURE and has_layers and not len(features.normalizations):
        statistics = measure_statistics(features, _sample_batches(settings, dataset))
        features.normalize_by(statistics)
    return features


def keep_features(url: str, features: nn.Module) -> None:
    """Write a feature extractor as one file, atomically."""
    storage.write_bytes(url, safetensors.torch.save(_contiguous(features.state_dict())))


def read_features(url: str, settings: TrainSettings) -> VggFeatures:
    """Read the feature extractor that `keep_features` wrote."""
    state = safetensors.torch.load(storage.read_bytes(url))
    return VggFeatures.from_state(state, layers=settings.loss.layer_names())


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in state.items()}


def _sample_batches(settings: TrainSettings, dataset: Dataset) -> Iterator[Tensor]:
    """Read normal training images at the final resolution, evenly spaced over the dataset."""
    rows = choose_training_rows(dataset, settings).space_evenly(settings.loss.statistics_images)
    final = settings.growth.final_resolution
    for images in split_batches(read_centres(dataset, rows, settings.images), _BATCH):
        yield to_tensor(images, resolution=final)
