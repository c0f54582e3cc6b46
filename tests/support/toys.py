"""A small dataset, made by the ingest itself, and settings that train on it in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.plan import Plan, SourceRead
from pipeline.ingest.run import ingest
from pipeline.records import Array
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec
from training.settings import TrainSettings

HEIGHT, WIDTH = 40, 34  # not square, so that a swapped axis fails


@dataclass(frozen=True)
class ToySource:
    url: str
    version: str = "1"


@dataclass(frozen=True)
class ToyReader:
    """Draws smooth grey waves; anomalies carry a bright square, off the centre."""

    channels: int
    contrast: float = 1.0

    def read(
        self,
        source: ToySource,  # noqa: ARG002
        rows: Mapping[str, Array],
        images: NDArray[np.uint8],
    ) -> Iterator[SourceRead]:
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        for index, (label, name) in enumerate(zip(rows["label"], rows["image_id"], strict=True)):
            draw = np.random.default_rng(int(name))
            fy, fx, shift = draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.3), draw.uniform(0, 6)
            wave = 120 + 60 * np.sin(fy * y + fx * x + shift)
            if label == 1:
                wave[8:20, 18:28] = 255
            images[index] = (120 + self.contrast * (wave - 120)).clip(0, 255)[..., None]
        reasons = tuple("unreadable" if int(n) % 10 == 7 else None for n in rows["image_id"])
        yield SourceRead(reasons, {}, "0" * 64)


def make_dataset(
    url: str,
    *,
    normals: int = 40,
    validation: int = 8,
    channels: int = 1,
    leaks: bool = False,
    contrast: float = 1.0,
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
    spec = DatasetSpec(
        modality="image",
        source="toys",
        image_shape=(HEIGHT, WIDTH, channels),
        image_count=count,
        shard_images=16,
        chunk_images=4,
        columns={
            **BASE_COLUMNS,
            **dict.fromkeys(more or {}, BASE_COLUMNS["image_id"]),
            **dict.fromkeys(measured or {}, np.dtype("float32")),
        },
        mpp_um=None,
        parameters={"normals": normals},
        code_version="1",
    )
    columns: dict[str, Any] = {
        "image_id": np.array([str(row) for row in range(count)], object),
        "group_id": np.array(groups, object),
        "split": split,
        "label": label,
        **{name: np.full(count, text, object) for name, text in (more or {}).items()},
        **(measured or {}),
    }
    plan = Plan(spec, (ToySource("toys"),), np.zeros(count, np.int32), columns, (), None, None)
    ingest(url, plan, ToyReader(channels, contrast), map_serially)
    return open_dataset(url)


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
