"""A small dataset, made by the ingest itself, and settings that train on it in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.dataset import Dataset
from tests.support.written import Columns, write_dataset
from training.settings import TrainSettings

HEIGHT, WIDTH = 40, 34  # not square, so that a swapped axis fails


@dataclass(frozen=True)
class _Waves:
    """Draws smooth grey waves; anomalies carry a bright square, off the centre."""

    contrast: float = 1.0

    def __call__(self, rows: Columns, images: NDArray[np.uint8]) -> list[str | None]:
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        for index, (label, name) in enumerate(zip(rows["label"], rows["image_id"], strict=True)):
            draw = np.random.default_rng(int(name))
            fy, fx, shift = draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.3), draw.uniform(0, 6)
            wave = 120 + 60 * np.sin(fy * y + fx * x + shift)
            if label == 1:
                wave[8:20, 18:28] = 255
            images[index] = (120 + self.contrast * (wave - 120)).clip(0, 255)[..., None]
        return ["unreadable" if int(n) % 10 == 7 else None for n in rows["image_id"]]


def make_dataset(
    url: str,
    *,
    normals: int = 40,
    validation: int = 8,
    channels: int = 1,
    leaks: bool = False,
    contrast: float = 1.0,
    part_images: int = 1024,
    more: Mapping[str, str] | None = None,
    measured: Mapping[str, NDArray[np.float32]] | None = None,
) -> Dataset:
    """Normals to train on, normals and as many anomalies to validate; every tenth unreadable.

    `more` adds columns of text, the same in every row, `measured` such of numbers.
    """
    split = np.array(["train"] * normals + ["validation"] * (2 * validation), object)
    label = np.repeat(np.array([0, 0, 1], np.int8), [normals, validation, validation])
    count = len(split)
    groups = [f"g{row}" for row in range(count)]
    if leaks:
        groups[-1] = groups[0]
    columns: dict[str, Any] = {
        "image_id": np.array([str(row) for row in range(count)], object),
        "group_id": np.array(groups, object),
        "split": split,
        "label": label,
        "source_digest": np.full(count, "0" * 64, object),
        **{name: np.full(count, text, object) for name, text in (more or {}).items()},
        **(measured or {}),
    }
    return write_dataset(
        url,
        columns,
        _Waves(contrast),
        image_shape=(HEIGHT, WIDTH, channels),
        part_images=part_images,
        source="toys",
        parameters={"normals": normals},
    )


def make_settings(**changes: Any) -> TrainSettings:
    """Three resolutions, 8 to 32 px, in 26 steps of 12 images."""
    content: dict[str, Any] = {
        "network": {
            "form": "residual9",
            "latent_resolution": 4,
            "latent_channels": 6,
            "channels": 6,
        },
        "growth": {
            "initial_resolution": 8,
            "final_resolution": 32,
            "fade_in_iterations": 4,
            "stabilize_iterations": 6,
            "batch_sizes": {8: 12, 16: 12, 32: 10},
        },
        "loss": {
            "layers": {8: {"relu1_1": 1}, 16: {"relu1_2": 1}, 32: {"relu2_1": 1}},
            "vgg_weights": "random",
            "vgg_width": 8,
        },
        "log_every": 2,
        "validate_every": 5,
        "checkpoint_every": 5,
        "seed": 3,
    }
    return TrainSettings.model_validate({**content, **changes})
