"""What the items of the GPU check work on: a small dataset, settings, a detector, images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.ingest.parts import Draft, make_part
from pipeline.ingest.sources import SourceRead
from pipeline.records import Split
from pipeline.store.dataset import Dataset
from pipeline.store.part import Part, name_place
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec
from training.data.batches import TrainingImages
from training.learning.loop import Report, Save, train
from training.learning.perceptual_features import prepare_features
from training.learning.state import (
    Recipe,
    TrainingState,
    Workers,
    begin_training,
    build_autoencoder,
    make_recipe,
)
from training.learning.validation import ValidationImages, read_validation
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset
from training.scoring.detector import Detector, DetectorDescription
from training.settings import TrainSettings

SHAPE: Final = (40, 36, 3)  # not square, and larger than what is trained on
BATCH: Final = 24  # images a step; a stage has two epochs, so that the second reads what was kept
_CHUNK_IMAGES: Final = 16


def paint(count: int, shape: tuple[int, int, int], *, seed: int) -> NDArray[np.uint8]:
    """Paint smooth blobs with noise: uint8 (count, H, W, C).

    Args:
        count: Number of images.
        shape: (height, width, channels) of each, in pixels.
        seed: Seed of blobs and noise.
    """
    height, width, channels = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, channels, 5, 4), generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    noise = 0.05 * torch.randn(blobs.shape, generator=generator)
    pixels = ((blobs + noise) * 255).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def make_dataset(normals: int = 96, validation: int = 16) -> Dataset:
    """Make a dataset in memory: normals to train on, normals and anomalies to validate.

    It has a part of each split and no seal, which only readers by URL ask for.

    Args:
        normals: Images of split `train`.
        validation: Normal, and as many anomalous, images of split `validation`.
    """
    spec = DatasetSpec(
        modality="image",
        source="gpu-check",
        image_shape=SHAPE,
        shard_images=4 * _CHUNK_IMAGES,
        chunk_images=_CHUNK_IMAGES,
        columns=BASE_COLUMNS,
        mpp_um=None,
        parameters={},
        stamp={},
    )
    url = "memory://gpu-check/painted"
    labels = {"train": np.zeros(normals, np.int8), "validation": np.repeat([0, 1], validation)}
    parts = [
        _make_split(url, spec, "train", labels["train"], seed=1),
        _make_split(url, spec, "validation", labels["validation"].astype(np.int8), seed=2),
    ]
    return Dataset(url, spec.attributes(), tuple(parts))


def _make_split(
    url: str, spec: DatasetSpec, split: Split, labels: NDArray[np.int8], *, seed: int
) -> Part:
    painted = paint(len(labels), SHAPE, seed=seed)
    painted[labels == 1] //= 2  # anomalies are darker

    def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        images[:] = painted[start:stop]
        yield SourceRead((None,) * len(images), {})

    ids = np.array([f"{split}-{row}" for row in range(len(labels))], object)
    draft = Draft(split, name_place(split), "painted", {"image_id": ids, "label": labels})
    return replace(make_part(url, spec, draft, read), group_id=split, split=split)


def make_settings(*changes: Mapping[str, Any]) -> TrainSettings:
    """Make settings of a short training: 16 px, a fade-in, 32 px; every step is reported.

    Args:
        *changes: Settings that differ, nested as `TrainSettings` is; later ones win.
    """
    growth = {
        "initial_resolution": 16,
        "final_resolution": 32,
        "fade_in_iterations": 3,
        "stabilize_iterations": 8,
        "batch_sizes": BATCH,
    }
    loss = {
        "layers": {16: {"relu2_2": 1.0}, 32: {"relu3_2": 1.0}},
        "vgg_weights": "random",
        "vgg_width": 8,
    }
    return load_preset(
        "demo",
        {"growth": growth, "loss": loss, "log_every": 1, "precision": "fp32"},
        {"validate_every": 1000, "checkpoint_every": 1000},
        *changes,
    )


@dataclass(frozen=True)
class Training:
    """A short training on a dataset, ready to begin.

    Args:
        recipe: Settings, loss and device.
        images: Images that batches are drawn from.
        validation: Images that are scored at the end of each stage.
    """

    recipe: Recipe
    images: TrainingImages
    validation: ValidationImages

    def run(
        self, state: TrainingState | None = None, save: Save | None = None
    ) -> tuple[TrainingState, list[Report]]:
        """Train to the end.

        Args:
            state: State to continue from; None begins.
            save: Stores a state; None stores nothing.

        Returns:
            The state at the end, and a report of each step.
        """
        state, reports = state or begin_training(self.recipe), list[Report]()
        keep: Callable[..., str] = save or (lambda *_: "")
        train(self.recipe, state, self.images, self.validation, save=keep, publish=reports.append)
        return state, reports


def prepare_training(
    settings: TrainSettings, device: torch.device, workers: Workers | None = None
) -> Training:
    """Prepare a training on a small dataset.

    Args:
        settings: Settings that `make_settings` made.
        device: Device that trains.
        workers: Workers that train together; one alone if None.
    """
    dataset = make_dataset()
    features = prepare_features(settings, dataset)
    recipe = make_recipe(
        settings, features, image_channels=SHAPE[2], device=device, workers=workers
    )
    images = TrainingImages(dataset, settings, device)
    return Training(recipe, images, read_validation(dataset, settings.images))


def read_losses(reports: list[Report]) -> torch.Tensor:
    """Training losses of the reports: float64 (n,)."""
    losses = [report.metrics["train_loss"] for report in reports]
    return torch.tensor(losses, dtype=torch.float64)


def make_detector(device: torch.device | str, *, is_small: bool, **changes: Any) -> Detector:
    """Make an untrained detector with random features; the same weights on every device.

    Args:
        device: Device that scores.
        is_small: Whether it is one of 32 px and narrow features; otherwise it has the published
            sizes, 64 px and VGG19 to relu4_2.
        **changes: Settings that differ from the preset's, by group.
    """
    loss = {"vgg_weights": "random", **({"vgg_width": 16} if is_small else {})}
    name, side = ("demo", 32) if is_small else ("camelyon16-paper", 64)
    settings = load_preset(name, {"loss": loss, "images": {"crop_px": 0}}, changes)
    layers, width = settings.loss.layer_names(), settings.loss.vgg_width
    features = load_vgg("random", layers=layers, width=width)
    return Detector.make(
        DetectorDescription(image_shape=(side, side, 3), settings=settings),
        network=build_autoencoder(settings, image_channels=3).state_dict(),
        features=features.state_dict(),
        device=device,
    )


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative difference of two tensors: the norm of the difference over the expected norm."""
    exact = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - exact).norm() / exact.norm())


def differ_most(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of an element, relative to the root mean square of what is expected."""
    exact = expected.detach().cpu().double()
    return float((found.detach().cpu().double() - exact).abs().max() / exact.square().mean().sqrt())
