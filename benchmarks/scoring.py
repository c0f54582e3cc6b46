"""Images scored a second: our way, the reference's evaluation loop, and the bare forward pass.

The reference evaluates a folder of JPEG files through a DataLoader, in single precision, 32 at a
time. Ours reads the same pixels from a sealed dataset, through a registered version as loaded from
MLflow. The limit is the network and its loss on images in memory. All have the same weights, the
published sizes (64 px, VGG19 to relu4_2), and give the same scores; the feature weights are
random, which costs what trained ones cost.

Memory is that of a process of its own which scores 1,000 images, or 100,000, read from a real
dataset by a small network, as it is the scorer's memory that may grow and not the network's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.harness import (
    Comparison,
    Method,
    Outcome,
    compare_by_clock_and_processor,
    run_benchmark,
)
from benchmarks.painted import SHAPE, SHARD_IMAGES, paint_shard, write_painted
from benchmarks.peers import run_command
from flows.shared.settings import QUIET, adopt_environment
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.runtime.engines import map_serially
from pipeline.runtime.malloc import set_freed_memory
from pipeline.sources.images import list_images
from pipeline.store.dataset import Dataset, open_dataset
from training.evaluation.calibration import calibrate, choose_threshold
from training.learning.state import build_autoencoder
from training.networks.reconstruction import reconstruct
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset
from training.registry.versions import VersionInfo, load_version, log_and_register
from training.scoring.detector import Detector, DetectorDescription
from training.scoring.kept_scores import score_rows
from training.scoring.loaded_model import IngestRecord, ScoringModel
from training.settings import TrainSettings

NAME = "benchmark-anomaly"
REFERENCE_BATCH = 32
_TOLERANCE = 1e-5  # relative
_MEMORY = f"""
import resource, sys, mlflow
from training.registry.versions import load_version
from training.score import score_dataset
uri, version, dataset, output = sys.argv[1:]
mlflow.set_tracking_uri(uri)
score_dataset(dataset, load_version({NAME!r}, version), output)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


class JpegFolder(TorchDataset[torch.Tensor]):
    """Files as the reference reads them: (C, H, W) float32 in [-1, 1]."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        pixels = np.asarray(Image.open(self.paths[place]).convert("RGB"))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 127.5 - 1.0


def write_jpegs(folder: Path, count: int) -> None:
    """Painted images as JPEG files."""
    folder.mkdir()
    painted = paint_shard()
    for number in range(count):
        Image.fromarray(painted[number]).save(folder / f"image-{number:06d}.jpg", quality=90)


def make_detector(settings: TrainSettings) -> Detector:
    """An untrained detector of 64 px in colour, with random features."""
    features = load_vgg("random", layers=settings.loss.layer_names(), width=settings.loss.vgg_width)
    return Detector.make(
        DetectorDescription(image_shape=SHAPE, settings=settings),
        network=build_autoencoder(settings, image_channels=SHAPE[2]).state_dict(),
        features=features.state_dict(),
        device="cpu",
    )


def make_published() -> Detector:
    """One of the published sizes."""
    return make_detector(
        load_preset(
            "camelyon16-paper", {"loss": {"vgg_weights": "random"}, "images": {"crop_px": 0}}
        )
    )


def register(detector: Detector, dataset: Dataset, ledgers: Path) -> VersionInfo:
    """Register the detector, calibrated by a few images."""
    found = detector.detect(dataset.read_images(0, 32), heatmaps=True)
    assert found.heatmap is not None  # noqa: S101 -- they were asked for
    with mlflow.start_run() as run:
        return log_and_register(
            detector,
            name=NAME,
            run_id=run.info.run_id,
            ingest=IngestRecord.of(dataset),
            calibration=calibrate(found.anomaly_score, found.heatmap, found.embedding),
            threshold=choose_threshold(found.anomaly_score),
            ledgers_url=str(ledgers),
        )


class Reference:
    """The published evaluation loop."""

    def __init__(self, folder: Path, detector: Detector) -> None:
        self.detector = detector
        for module in (detector.autoencoder, detector.features):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # torch's own stub lacks it
        self.loader = DataLoader(
            JpegFolder(folder), batch_size=REFERENCE_BATCH, num_workers=1, persistent_workers=True
        )

    def score(self) -> NDArray[np.float32]:
        """All scores, in the order of the files' names, in a process as it comes."""
        set_freed_memory(is_kept=False)
        return np.concatenate([self._score_batch(batch) for batch in self.loader])

    @torch.no_grad()
    def _score_batch(self, images: torch.Tensor) -> NDArray[np.float32]:
        made = reconstruct(self.detector.autoencoder, images, self.detector.growth)
        return made.compare(self.detector.loss).reduce("none").numpy()


def measure(quick: bool) -> Outcome:
    """Speed against reference and limit, then memory."""
    adopt_environment(QUIET)
    # Short rounds and many: on a machine that others use too, they meet all methods alike.
    count, rounds = (64, 7) if quick else (256, 9)
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as name:
        folder = Path(name)
        write_jpegs(folder / "jpegs", count)
        dataset = _ingest(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("benchmark", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("benchmark")
        model = load_version(NAME, register(make_published(), dataset, folder / "ledgers").version)
        speeds, differences = _compare(folder, model, dataset, rounds)
        memory = {n: measure_memory(folder, n) for n in (1_000, 10_000 if quick else 100_000)}
    return _conclude(*speeds, differences, memory)


def _ingest(folder: Path) -> Dataset:
    url, listing = str(folder / "dataset"), list_images(str(folder / "jpegs"))
    settings = ImageSettings(size_px=64, colour="rgb", validation_fraction=0, test_fraction=0)
    ingest_images(url, listing, settings, map_serially, source="painted")
    return open_dataset(url)


def _compare(
    folder: Path, model: ScoringModel, dataset: Dataset, rounds: int
) -> tuple[tuple[Comparison, Comparison], tuple[float, float]]:
    """Speeds by the clock and by the processor; differences of scores, exact and reduced."""
    rows = np.arange(dataset.image_count)
    images = dataset.read_images(0, dataset.image_count)
    reference = Reference(folder / "jpegs", make_published())
    bare, reduced = make_published(), model.reduce_precision()
    expected = reference.score()
    exact, near = (
        float(np.max(np.abs(score_rows(it, dataset, rows).anomaly_score / expected - 1)))
        for it in (model, reduced)
    )
    if exact > _TOLERANCE:
        raise RuntimeError(f"scores differ by {exact:.2g} from the reference's: not compared")
    ways: dict[str, Callable[[], object]] = {
        "reference": reference.score,
        "ours": partial(score_rows, model, dataset, rows),
        "ours, reduced": partial(score_rows, reduced, dataset, rows),
        "bare forward pass": partial(bare.detect, images),
    }
    speeds = compare_by_clock_and_processor(
        f"Scoring {len(rows):,} images of 64 px, VGG19 to relu4_2, CPU",
        [Method(name, partial(_run, way), len(rows)) for name, way in ways.items()],
        unit="images/s",
        rounds=rounds,
    )
    return speeds, (exact, near)


def _conclude(
    by_clock: Comparison,
    by_processor: Comparison,
    differences: tuple[float, float],
    memory: Mapping[int, float],
) -> Outcome:
    exact, near = differences
    metrics = {
        f"{name}{suffix}": speed.ratio(method, reference)
        for suffix, speed in (("", by_clock), ("_by_processor", by_processor))
        for name, method, reference in (
            ("vs_reference", "ours", "reference"),
            ("vs_reference_reduced", "ours, reduced", "reference"),
            ("share_of_limit", "ours", "bare forward pass"),
        )
    }
    metrics |= {
        "relative_difference": exact,
        "relative_difference_reduced": near,
        "peak_memory_mib": memory[max(memory)],
        **{f"peak_memory_mib_{count}": peak for count, peak in memory.items()},
    }
    notes = (
        f"Scores equal the reference's to {exact:.1g} (relative); reduced, to {near:.1g}.",
        "Memory: a process that scores so many images by a small network and writes the results, "
        "its interpreter and libraries included.",
    )
    return Outcome((by_clock, by_processor), metrics, notes)


def _run(way: Callable[[], object]) -> None:
    """Do the work, whose result is no number of seconds."""
    way()


def measure_memory(folder: Path, count: int) -> float:
    """Peak of a process of its own that scores so many images, rounded up to shards, in MiB."""
    url = str(folder / f"dataset-{count}")
    dataset = write_painted(url, -(-count // SHARD_IMAGES))
    version = register(make_detector(load_preset("demo")), dataset, folder / "ledgers").version
    uri, output = mlflow.get_tracking_uri(), f"{url}-scores"
    command = [sys.executable, "-c", _MEMORY, uri, version, url, output]
    return float(run_command(command, "scoring failed"))


if __name__ == "__main__":
    run_benchmark("scoring", measure)
