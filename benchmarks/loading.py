"""How fast batches of 128 come to training: from a dataset on disk and on S3, and from JPEGs.

The reference's way is that of the paper's public code: a folder of JPEGs, shuffled by torch's
DataLoader with two workers, each of which decodes by Pillow and makes a float tensor. Its workers
are there beforehand. Ours is what a training uses, `training.data.batches`, by the preset
`camelyon16-paper`, which mirrors at random too: read as it comes, nothing held in memory; and with
all of it held. Both give the same 64 px images as float tensors, (128, 3, 64, 64) in [-1, 1].

The images are real tiles where they are at hand, painted ones otherwise. S3 is Ceph's gateway
where that is installed, else moto's server, in processes of their own on this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import boto3
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.harness import (
    Comparison,
    Method,
    Outcome,
    compare_by_clock_and_processor,
    run_benchmark,
)
from benchmarks.painted import paint_shard, read_centre
from benchmarks.scoring import JpegFolder
from flows.local.loopback import HOST, answers
from infra.s3 import server as s3_server
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.io.storage import describe
from pipeline.records import ImageListing, Label, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.runtime.malloc import set_freed_memory
from pipeline.runtime.ports import find_free_port
from pipeline.store.dataset import open_dataset
from training.data.batches import TrainingImages
from training.networks.inputs import to_tensor
from training.presets import load_preset

SIDE_PX, BATCH = 64, 128
REFERENCE = "folder of JPEGs, DataLoader"
DISK, S3, HELD = "dataset on disk", "dataset on S3", "dataset held in memory"
TILES = Path(__file__).parents[2] / "shared" / "data" / "pcam" / "train" / "normal"


class OurLoader:
    """Batches as a training takes them, on and on.

    Args:
        url: URL of the dataset.
        cache_bytes: Memory that cached images may take.
    """

    def __init__(self, url: str, *, cache_bytes: int) -> None:
        settings = load_preset("camelyon16-paper", {"cache_bytes": cache_bytes})
        self.images = TrainingImages(open_dataset(url), settings)
        self._sample = 0

    def load(self, batches: int) -> None:
        """Take so many batches, in a process that keeps its memory, as a training does."""
        set_freed_memory(is_kept=True)
        for _ in range(batches):
            images = self.images.read_batch(self._sample, BATCH)
            to_tensor(images, resolution=SIDE_PX)
            self._sample += BATCH


def load_epoch(loader: DataLoader[Tensor]) -> None:
    """Take every batch of the reference's loader once, in a process as it comes."""
    set_freed_memory(is_kept=False)
    for _ in loader:
        pass


def write_tiles(folder: Path, count: int) -> tuple[list[Path], str]:
    """Write JPEGs of 64 px, no two alike, and say what they show."""
    folder.mkdir()
    real = sorted(TILES.glob("*.jpg"))
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        turn, at = divmod(number, len(real) or len(paint_shard()))
        pixels = read_centre(real[at], SIDE_PX) if real else paint_shard()[at]
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turn))).save(path, quality=90)
    return paths, "PatchCamelyon's tiles" if real else "painted tiles"


def write_dataset(url: str, paths: list[Path]) -> None:
    """Ingest JPEGs, all as normals to train on."""
    images = tuple(
        SourceImage(
            path.stem, path.stem, str(path), describe(str(path)).version, Label.NORMAL, "train"
        )
        for path in paths
    )
    settings = ImageSettings(
        modality="histology", size_px=SIDE_PX, colour="rgb", validation_fraction=0, test_fraction=0
    )
    report = ingest_images(url, ImageListing(images), settings, map_serially, source="tiles")
    if report.failures:
        raise RuntimeError(f"{len(report.failures)} files failed: {report.failures[0].reason}")


@contextmanager
def running_s3(folder: Path) -> Iterator[tuple[str, str]]:
    """A server of its own; the URL of a bucket on it, and the server's name."""
    is_ceph = all(shutil.which(program) for program in s3_server.PROGRAMS)
    with _running_ceph(folder) if is_ceph else _running_moto() as variables:
        os.environ.update(variables)
        boto3.client("s3").create_bucket(Bucket="lake")
        yield "s3://lake", "Ceph's gateway" if is_ceph else "moto's server"


@contextmanager
def _running_ceph(folder: Path) -> Iterator[dict[str, str]]:
    try:
        yield s3_server.start(folder, 0)
    finally:
        s3_server.stop(folder)


@contextmanager
def _running_moto() -> Iterator[dict[str, str]]:
    port = find_free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603  # our own
    try:
        _wait_for(port)
        yield {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "moto",
            "AWS_SECRET_ACCESS_KEY": "moto",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    for _ in range(300):
        if answers(port, "/moto-api/") is not None:
            return
        time.sleep(0.2)
    raise RuntimeError("moto's server does not start")


def measure(quick: bool) -> Outcome:
    """All four in turns."""
    count, rounds = (4096, 3) if quick else (8192, 7)
    torch.set_num_threads(1)  # as DataLoader's workers do; other threads read meanwhile
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as name:
        root = Path(name)
        paths, shown = write_tiles(root / "jpegs", count)
        with running_s3(root / "server") as (bucket, server):
            for url in (str(root / "tiles"), f"{bucket}/tiles"):
                write_dataset(url, paths)
            speeds = _compare(paths, str(root / "tiles"), f"{bucket}/tiles", rounds)
    note = f"{count} of {shown}, 64 px in colour, JPEG quality 90; S3 is {server}, on this machine."
    return _conclude(*speeds, note)


def _compare(paths: list[Path], disk: str, s3: str, rounds: int) -> tuple[Comparison, Comparison]:
    """By the clock, and by the processor: a busy machine slows whoever hands much about."""
    batches = len(paths) // BATCH
    theirs = DataLoader(
        JpegFolder(paths[0].parent),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    methods = [Method(REFERENCE, partial(load_epoch, theirs), len(paths))]
    for name, url, cache_bytes in ((DISK, disk, 0), (S3, s3, 0), (HELD, disk, 2**32)):
        ours = OurLoader(url, cache_bytes=cache_bytes)
        # Ours is fast: several epochs, so that all take about as long.
        methods.append(Method(name, partial(ours.load, 4 * batches), 4 * len(paths)))
    return compare_by_clock_and_processor(
        "Batches of 128 for training", methods, unit="images/s", rounds=rounds
    )


def _conclude(by_clock: Comparison, by_processor: Comparison, note: str) -> Outcome:
    metrics = {
        "vs_reference": by_clock.ratio(DISK),
        "vs_reference_s3": by_clock.ratio(S3),
        "vs_reference_held": by_clock.ratio(HELD),
        "vs_reference_by_processor": by_processor.ratio(DISK),
        "vs_reference_s3_by_processor": by_processor.ratio(S3),
        "reference_images_per_s": by_clock.rate(REFERENCE),
        "disk_images_per_s": by_clock.rate(DISK),
        "s3_images_per_s": by_clock.rate(S3),
        "held_images_per_s": by_clock.rate(HELD),
    }
    return Outcome((by_clock, by_processor), metrics, (note,))


if __name__ == "__main__":
    run_benchmark("loading", measure)
