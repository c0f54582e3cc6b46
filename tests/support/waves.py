"""Grey waves as PNG files, and a dataset of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.runtime.engines import map_serially
from pipeline.sources.images import list_images
from pipeline.store.dataset import Dataset, open_dataset

SETTINGS = ImageSettings(size_px=40, colour="grey")


def paint(path: Path, seed: int) -> None:
    """A grey wave with noise, as a PNG file."""
    y, x = np.mgrid[0:44, 0:40]
    draw = np.random.default_rng(seed)
    wave = 120 + 60 * np.sin(draw.uniform(0.1, 0.3) * y + draw.uniform(0.1, 0.3) * x)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((wave + draw.normal(0, 3, y.shape)).clip(0, 255).astype(np.uint8)).save(path)


def make_dataset(folder: Path) -> Dataset:
    """What the model learned from."""
    rows = ["path,label,split"]
    for number in range(16):
        paint(folder / "learned" / f"{number}.png", number)
        split = "train" if number < 4 else "validation"
        rows.append(f"{number}.png,0,{split}")
    (folder / "learned" / "labels.csv").write_text("\n".join(rows))
    listing = list_images(str(folder / "learned"))
    ingest_images(str(folder / "dataset"), listing, SETTINGS, map_serially, source="waves")
    return open_dataset(str(folder / "dataset"))
