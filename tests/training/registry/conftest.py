"""What the tests of the registry share."""

from __future__ import annotations

import pytest

from pipeline.store.dataset import Dataset
from tests.support.toys import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Toys with eight normal images to calibrate by."""
    return make_dataset(str(tmp_path_factory.mktemp("dataset")), normals=8)
