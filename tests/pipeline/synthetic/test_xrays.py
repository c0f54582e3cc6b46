"""Synthetic radiographs: the official layout, the same bytes by seed, findings one can see."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.images.plan import ImageSettings, plan_images
from pipeline.io import storage
from pipeline.records import ImageListing
from pipeline.sources.chestxray14.listing import list_chestxray14
from pipeline.splits import prove_disjoint
from pipeline.synthetic.xrays import write_xrays


def contents_of(root: str) -> dict[str, bytes]:
    return {
        info.url[len(root) :]: storage.read_bytes(info.url) for info in storage.list_objects(root)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("xrays"))
    write_xrays(url, seed=5, patients=60, size_px=128)
    return url


@pytest.fixture(scope="module")
def listing(folder: str) -> ImageListing:
    return list_chestxray14(folder)


def test_the_official_reader_takes_every_image(folder: str, listing: ImageListing) -> None:
    pngs = [info.url for info in storage.list_objects(folder) if info.url.endswith(".png")]
    assert len(listing.images) == len(pngs) > 100
    assert listing.rejected == ()
    assert {image.split for image in listing.images} == {"train", "test"}
    prove_disjoint(
        [image.group_id for image in listing.images], [image.split for image in listing.images]
    )
    labels = Counter((image.split, int(image.label)) for image in listing.images)
    assert min(labels["test", 0], labels["test", 1], labels["train", 0]) > 5
    assert {image.columns["view_position"] for image in listing.images} == {"PA", "AP"}
    assert max(Counter(image.group_id for image in listing.images).values()) > 2


def test_films_are_one_channel_of_many_shapes(listing: ImageListing) -> None:
    shapes = set()
    for image in listing.images[:20]:
        film = Image.open(BytesIO(storage.read_bytes(image.url)))
        assert film.mode == "L"
        shapes.add(film.size)
    assert len(shapes) > 10
    assert any(width != height for width, height in shapes)
    settings = ImageSettings(modality="radiograph")
    spec, _ = plan_images(listing.images, settings, source="chestxray14")
    assert spec.image_shape == (64, 64, 1)


def test_equal_seeds_give_equal_bytes_and_nothing_is_written_twice(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    write_xrays(url, seed=1, patients=3, size_px=64)
    write_xrays("memory://synthetic/again", seed=1, patients=3, size_px=64)
    assert contents_of(url) == contents_of("memory://synthetic/again")
    before = storage.list_objects(url)
    write_xrays(url, seed=1, patients=3, size_px=64)
    assert storage.list_objects(url) == before
    write_xrays("memory://synthetic/other", seed=2, patients=3, size_px=64)
    assert contents_of(url) != contents_of("memory://synthetic/other")


def test_findings_can_be_seen(listing: ImageListing) -> None:
    """A film with a finding lies further from its nearest normal training films than others."""

    def read(url: str) -> NDArray[np.float64]:
        film = Image.open(BytesIO(storage.read_bytes(url)))
        return np.asarray(film.resize((24, 24)), np.float64).ravel()

    films = np.stack([read(image.url) for image in listing.images])
    films = (films - films.mean(1, keepdims=True)) / films.std(1, keepdims=True)
    train = films[[i.split == "train" and i.label == 0 for i in listing.images]]
    held = [(row, i) for row, i in enumerate(listing.images) if i.split == "test"]
    distances = [float(np.sort(((train - films[row]) ** 2).sum(1))[:3].mean()) for row, _ in held]
    assert roc_auc_score([int(image.label) for _, image in held], distances) > 0.75
