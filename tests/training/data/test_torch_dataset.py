"""A dataset under PyTorch's own loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import SettingsError
from tests.support.toys import HEIGHT, WIDTH, make_dataset
from training.data.torch_dataset import TileDataset


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_chosen_images_and_labels(tmp_path: Path, workers: int) -> None:
    dataset = make_dataset(str(tmp_path / "a.zarr"), part_images=10)
    chosen = TileDataset(dataset, "split == 'validation' and readable")
    context = "forkserver" if workers else None
    loader = DataLoader(chosen, batch_size=5, num_workers=workers, multiprocessing_context=context)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    expected = dataset.images("split == 'validation' and readable")
    assert images.shape == (len(expected), 1, HEIGHT, WIDTH)
    assert np.array_equal(images.numpy().transpose(0, 2, 3, 1), expected[:])
    assert labels.tolist() == dataset.column("label")[expected.rows].tolist()


def test_unreadable_images_are_left_out_by_default(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "a.zarr"))
    assert len(TileDataset(dataset)) == dataset.image_count - dataset.parts[0].unreadable_count


def test_a_transform_sees_each_image(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "a.zarr"))
    plain = TileDataset(dataset)
    halved = TileDataset(dataset, transform=lambda image: image[:, : HEIGHT // 2])
    assert torch.equal(halved[3][0], plain[3][0][:, : HEIGHT // 2])


def test_a_path_will_do(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "a.zarr"))
    chosen = TileDataset(dataset.url, "label == 1")
    assert chosen.rows.tolist() == dataset.images("label == 1").rows.tolist()
    assert torch.equal(chosen[2][0], TileDataset(dataset, "label == 1")[2][0])


def test_a_choice_of_no_image_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "a.zarr"))
    with pytest.raises(SettingsError, match="'label == 7' holds for none of the 56 images"):
        TileDataset(dataset, "label == 7")
    with pytest.raises(SettingsError, match="the given mask holds for none"):
        TileDataset(dataset, np.zeros(56, np.bool_))
