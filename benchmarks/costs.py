"""What a large archive costs, on paper: `python -m benchmarks.costs` prints tables in Markdown.

From measured rates (given with their benchmark and date), from operations counted by PyTorch, and
from assumptions that are named: no GPU and no network of a hospital has been measured.

    ingest    cores: tiles / rate; network: the bytes of the slides, once
    training  a step on n GPUs takes t(batch) / n and a ring all-reduce of the gradients, which does
              not shrink with n (`benchmarks.scaling`); the batch is the preset's, for any n
    scoring   forward passes alone, divided among the GPUs
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from benchmarks.scaling import LINK_BYTES_S, LINK_LATENCY_S, count_gradient_bytes, predict_exchange
from benchmarks.training import count_flops
from training.learning.state import begin_training, make_recipe
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset

# Measured: `python -m benchmarks.tiling`, 2026-11-27, one core, painted slides, 256 px tiles. Those
# of 64 px have a sixteenth of the pixels, so for them it is a lower bound.
TILES_A_CORE_SECOND: Final = 2_484
# Measured: `python -m benchmarks.ingest_scaling`, 2026-11-27: objects of a slide with one shard.
OBJECTS_A_SLIDE: Final = 18
SHARD_TILES: Final = 2_048
RANGE_BYTES: Final = 8 * 2**20  # of one request of boto3's download
TILE_PX: Final = 64
TILE_BYTES: Final = TILE_PX * TILE_PX * 3
PRESET: Final = "camelyon16-paper"
# Assumed: a card of 989 TFLOP/s in bfloat16, of which the feature network reaches three tenths;
# `make gpu-check` measures both.
CARD_FLOPS: Final = 989e12
CARD_SHARE: Final = 0.3
GPUS: Final = (1, 8, 64)
DASK_WORKERS: Final = (8, 64, 256)
NETWORK_BYTES_S: Final = 1.25e9  # assumed: 10 Gb/s between storage and workers


@dataclass(frozen=True)
class Archive:
    """An archive of slides.

    Args:
        name: Name for the tables.
        slides: Number of slides.
        tiles_a_slide: Tiles of 64 px at 1 um/px.
        slide_bytes: Mean size of a slide.
    """

    name: str
    slides: int
    tiles_a_slide: int
    slide_bytes: float

    @property
    def tiles(self) -> int:
        """Tiles of all slides."""
        return self.slides * self.tiles_a_slide


# Camelyon16 has 399 slides of about 700 GB; 24,400 is the mean of the tiles that we cut from its
# slides at 1 um/px.
CAMELYON16: Final = Archive("Camelyon16", 399, 24_400, 700e9 / 399)
ARCHIVES: Final = (CAMELYON16, Archive("10,000 slides like them", 10_000, 24_400, 700e9 / 399))


@dataclass(frozen=True)
class Stage:
    """Steps of one resolution.

    Args:
        steps: Number of optimiser steps.
        batch: Images of a step.
        flops: Operations of a step on one image, forward and backward.
    """

    steps: int
    batch: int
    flops: float


def list_ingest(archive: Archive) -> Iterator[tuple[str, ...]]:
    """Rows of the ingest's table: workers, hours, and what limits."""
    core_s = archive.tiles / TILES_A_CORE_SECOND
    network_s = archive.slides * archive.slide_bytes / NETWORK_BYTES_S
    for workers in DASK_WORKERS:
        hours = max(core_s / workers, network_s) / 3600
        limit = "network" if network_s > core_s / workers else "cores"
        yield archive.name, str(workers), f"{hours:.2f}", limit


def count_requests(archive: Archive) -> tuple[int, int]:
    """S3 requests of an ingest: reads of slides, and objects written."""
    reads = archive.slides * (1 + -(-int(archive.slide_bytes) // RANGE_BYTES))
    shards = -(-archive.tiles_a_slide // SHARD_TILES)
    return reads, archive.slides * (OBJECTS_A_SLIDE - 1 + shards)


def list_stages() -> tuple[tuple[Stage, ...], int, float]:
    """Stages of the preset, bytes of its gradients, and operations of scoring an image."""
    settings = load_preset(PRESET, {"seed": 0, "loss": {"vgg_weights": "random"}}, None)
    features = load_vgg("random", layers=settings.loss.layer_names())
    recipe = make_recipe(settings, features, image_channels=3, device=torch.device("cpu"))
    network = begin_training(recipe).autoencoder
    flops = {}
    for resolution, layers in settings.loss.layers.items():
        images = torch.zeros(1, 3, resolution, resolution)
        call = partial(network, images, resolution=resolution)
        flops[resolution] = count_flops(call), count_flops(partial(features, images, [*layers]))
    # The network: forward, and backward to weights and features. The feature network, whose
    # weights stay: forward for image and reconstruction, backward to the reconstruction.
    stages = tuple(
        Stage(each.iterations, each.batch_size, 3 * sum(flops[each.resolution]))
        for each in settings.growth.plan()
    )
    network_flops, feature_flops = flops[settings.growth.final_resolution]
    return stages, count_gradient_bytes(network), network_flops + 2 * feature_flops


def predict_training_s(stages: tuple[Stage, ...], gradient_bytes: int, gpus: int) -> float:
    """Seconds of a training on a number of GPUs."""
    exchange_s = predict_exchange(
        gpus, gradient_bytes, bytes_s=LINK_BYTES_S, latency_s=LINK_LATENCY_S
    )
    rate = CARD_FLOPS * CARD_SHARE
    return sum(s.steps * (s.batch * s.flops / rate / gpus + exchange_s) for s in stages)


def list_gpus(
    archive: Archive, stages: tuple[Stage, ...], gradient_bytes: int, score_flops: float
) -> Iterator[tuple[str, ...]]:
    """Rows of the table of GPUs: training of the preset, scoring of the whole archive."""
    for gpus in GPUS:
        train_s = predict_training_s(stages, gradient_bytes, gpus)
        busy = predict_training_s(stages, 0, 1) / gpus / train_s
        score_s = archive.tiles * score_flops / (CARD_FLOPS * CARD_SHARE * gpus)
        read_s = archive.tiles * TILE_BYTES / NETWORK_BYTES_S
        limit = "network" if read_s > score_s else "GPUs"
        hours = max(score_s, read_s) / 3600
        yield archive.name, str(gpus), f"{train_s / 3600:.2f}", f"{busy:.2f}", f"{hours:.2f}", limit


def write_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description="What a large archive costs, on paper.").parse_args()
    stages, gradient_bytes, score_flops = list_stages()
    ingest = [row for archive in ARCHIVES for row in list_ingest(archive)]
    heads = ("archive", "Dask workers of one core", "hours", "limit")
    print(write_table(heads, ingest), end="\n\n")
    requests = [(each.name, *(f"{n:,}" for n in count_requests(each))) for each in ARCHIVES]
    print(write_table(("archive", "ranges read", "objects written"), requests), end="\n\n")
    gpus = [
        row
        for archive in ARCHIVES
        for row in list_gpus(archive, stages, gradient_bytes, score_flops)
    ]
    columns = ("archive", "GPUs", "training, hours", "of that computing", "scoring, hours", "limit")
    print(write_table(columns, gpus))


if __name__ == "__main__":
    main()
