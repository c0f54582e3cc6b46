"""Groups of shards: how much waits in memory, and who can be made together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ingest.run import Target, ingest_together
from pipeline.runtime.engines import map_serially
from tests.support.made.datasets import MadeReader, plan_made, write_sources
from tests.support.peak_memory import run_measured

MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from pipeline.ingest.plan import SourceRead
from pipeline.ingest.preflight import _BASE_BYTES, measure_worker_bytes
from pipeline.store.dataset import write_documents
from pipeline.ingest.several_sizes import ShardWork, cut_groups, make_group
from pipeline.ingest.shards import cut_shards
from pipeline.io.storage import join, write_bytes
from tests.support.made.datasets import plan_made, write_sources
from tests.support.peak_memory import peak_bytes

class Noise:
    def __init__(self, side):
        self.side = side
    def read(self, source, rows):
        return self.prepare(self.decode(source))
    def decode(self, source):
        return np.random.default_rng(0)
    def prepare(self, decoded):
        image = decoded.integers(0, 256, (1, self.side, self.side, 3), np.uint8)
        return SourceRead(image, (None,), {}, "")

folder = sys.argv[1]
plan = plan_made(write_sources(Path(folder, "in"), {f"{n:03}": b"0" for n in range(128)}))
works, specs = [], []
for side, shard_images in ((256, 128), (512, 32)):
    url, reader = join(folder, str(side)), Noise(side)
    spec = replace(
        plan.spec, image_shape=(side, side, 3), shard_images=shard_images, chunk_images=16
    )
    for key, data in write_documents(spec, None).items():
        write_bytes(join(url, key), data)
    works += [ShardWork(url, reader, task) for task in cut_shards(replace(plan, spec=spec), reader)]
    specs.append(spec)
before = peak_bytes()
for group in cut_groups(works):
    make_group(group)
print(peak_bytes() - before, measure_worker_bytes(*specs) - _BASE_BYTES)
"""


def test_a_worker_stays_within_the_memory_that_is_stated(tmp_path: Path) -> None:
    used, stated = run_measured(MEMORY, tmp_path)
    assert 0.3 * stated < used < stated


def test_readers_that_cannot_share_are_refused(tmp_path: Path) -> None:
    plan = plan_made(write_sources(tmp_path / "in", {"a": b"0123"}))
    targets = [Target(str(tmp_path / name), plan, MadeReader()) for name in "xy"]
    with pytest.raises(TypeError, match=r"MadeReader.* cannot share what it decodes"):
        ingest_together(targets, map_serially)
