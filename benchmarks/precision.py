"""Whether the AUROC notices that a training computed in bfloat16.

The same short schedule, 16 to 32 px, from the same seed, on the normal tiles of PatchCamelyon and
the true VGG19 as far as relu3_1: once in single precision, once with everything in bfloat16. Both
score the validation tiles in single precision, as every registered version does; the difference
of the AUROCs has a paired bootstrap interval. The schedule is far too short for a good detector:
it asks for a difference, not for a level.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Comparison, Outcome, run_benchmark
from benchmarks.painted import read_centre
from training.evaluation.intervals import bootstrap_auroc_difference
from training.evaluation.metrics import measure_auroc
from training.learning.loop import train_step
from training.learning.speed import TargetCache
from training.learning.state import Recipe, TrainingState, begin_training, growth_at, make_recipe
from training.learning.validation import score_images
from training.networks.inputs import to_tensor
from training.networks.vgg import VggFeatures, measure_statistics
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset
from training.settings import TrainSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
TILES, WEIGHTS = DATA / "pcam", DATA / "weights" / "vgg19_relu3_1_torchvision_names.pth"
PRECISIONS = ("fp32", "bf16")
BATCH, CROP_PX = 64, 64
CPU = torch.device("cpu")

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        scores: float32 (n,), of the validation tiles.
        images_per_s: Trained in a second of the processor's time.
    """

    scores: NDArray[np.float32]
    images_per_s: float


def read_tiles(split: str, limit: int) -> tuple[Images, NDArray[np.int8]]:
    """The centres of a split's tiles, evenly spaced, and their labels (1 = tumour)."""
    with (TILES / "manifest.csv").open() as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["split"] == split]
    chosen = [rows[place] for place in np.linspace(0, len(rows) - 1, limit).astype(int)]
    images = [read_centre(TILES / row["path"], CROP_PX) for row in chosen]
    return np.stack(images), np.array([int(row["label"]) for row in chosen], np.int8)


def choose_settings(precision: str, *, quick: bool) -> TrainSettings:
    """A schedule of some hundred steps."""
    steps = 150 if quick else 400
    return load_preset(
        "quick",
        {
            "growth": {
                "final_resolution": 32,
                "fade_in_iterations": steps // 3,
                "stabilize_iterations": steps,
                "batch_sizes": BATCH,
            },
            "loss": {
                "layers": {16: {"relu2_2": 1.0}, 32: {"relu3_1": 1.0}},
                "vgg_weights": str(WEIGHTS),
            },
            "images": {"flips_at_random": False},
            "precision": precision,
        },
    )


def prepare_features(settings: TrainSettings, tiles: Images) -> VggFeatures:
    """VGG19, normalised by some of the training tiles."""
    features = load_vgg(settings.loss.vgg_weights, layers=settings.loss.layer_names())
    features.normalize_by(measure_statistics(features, [to_tensor(tiles[:256], resolution=32)]))
    return features


def train_tiles(recipe: Recipe, tiles: Images) -> tuple[TrainingState, float]:
    """Train to the end of the schedule; with the images a second of processor time."""
    state, targets = begin_training(recipe), TargetCache(recipe.settings, len(tiles))
    draw = np.random.default_rng(recipe.settings.seed)
    began = time.process_time()
    while state.step < recipe.total_steps:
        places = draw.integers(len(tiles), size=BATCH)
        images = to_tensor(tiles[places], resolution=32)
        train_step(recipe, state, images, places=places, targets=targets)
    return state, state.sample / (time.process_time() - began)


def measure(quick: bool) -> Outcome:
    """Both precisions, one after the other."""
    torch.set_num_threads(1)
    tiles, _ = read_tiles("train", 2_000 if quick else 4_000)
    shown, labels = read_tiles("valid", 1_500 if quick else 2_907)
    exact, reduced = (choose_settings(precision, quick=quick) for precision in PRECISIONS)
    features = prepare_features(exact, tiles)
    recipes = [
        make_recipe(settings, features, image_channels=3, device=CPU)
        for settings in (exact, reduced)
    ]
    found: dict[str, Trained] = {}
    for recipe in recipes:
        state, speed = train_tiles(recipe, tiles)
        growth = growth_at(recipe, recipe.total_steps)
        scores = score_images(recipes[0], state.autoencoder, shown, growth=growth)
        found[recipe.settings.precision] = Trained(scores, speed)
    return conclude(found, labels)


def conclude(found: Mapping[str, Trained], labels: NDArray[np.int8]) -> Outcome:
    """The difference and its interval."""
    exact, reduced = (found[precision] for precision in PRECISIONS)
    difference = bootstrap_auroc_difference(reduced.scores, exact.scores, labels)
    metrics = {
        **{f"auroc_{name}": measure_auroc(it.scores, labels) for name, it in found.items()},
        "auroc_difference": difference.estimate,
        "auroc_difference_low": difference.low,
        "auroc_difference_high": difference.high,
        "score_correlation": float(np.corrcoef(exact.scores, reduced.scores)[0, 1]),
    }
    speed = Comparison(
        "The whole training, one thread, by the processor's time",
        "images/s",
        {name: [trained.images_per_s] for name, trained in found.items()},
        "fp32",
    )
    return Outcome([speed], metrics, [f"AUROC in bf16 less that in fp32: {difference}"])


if __name__ == "__main__":
    run_benchmark("precision", measure)
