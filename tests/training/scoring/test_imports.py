"""What serving a version imports."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["training.scoring.detector", "training.registry.scorer"])
def test_serving_a_version_reads_no_dataset_and_trains_nothing(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = set(loaded.stdout.split())
    assert module in names
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"zarr", "obstore", "ray", "sklearn"}
    packages = {".".join(name.split(".")[:2]) for name in names}
    assert not packages & {"training.data", "training.learning", "training.cluster"}
