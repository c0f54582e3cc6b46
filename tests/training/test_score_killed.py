"""Scoring on a real S3 server, killed at random: every image once, bytes as if undisturbed.

`NORMSCOPE_TEST_KILLS` says how many runs there are to kill at least, 6 by default.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest

from pipeline.io import storage
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from training.registry.versions import load_version
from training.score import score_dataset
from training.scoring import kept_scores as row_scores

pytestmark = [pytest.mark.slow, pytest.mark.s3]

RUNS = int(os.environ.get("NORMSCOPE_TEST_KILLS", "6"))
AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def score(environment: Mapping[str, str], tracking_uri: str, dataset: str, output: str) -> None:
    """What a process of its own does; the server that it is forked from may be older than a key."""
    os.environ.update(environment)
    mlflow.set_tracking_uri(tracking_uri)
    row_scores.PIECE_IMAGES = 12
    model = load_version(NAME, "challenger")
    score_dataset(dataset, model, output, scored_at=AT, batch_images=6, top_heatmaps=12)


def test_kills_lose_and_double_nothing(real_s3_url: str, tmp_path: Path) -> None:
    dataset = make_dataset(f"{real_s3_url}/dataset", normals=80)
    # A server that has imported all this already, and never made a request: its children may fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_score_killed"])
    with own_mlflow(tmp_path) as uri:
        register(dataset)
        given, seconds = (dict(os.environ), uri, dataset.url), []
        for output in ("warm-up", "undisturbed"):
            began = time.monotonic()
            done = context.Process(target=score, args=(*given, f"{real_s3_url}/{output}"))
            done.start()
            done.join()
            assert done.exitcode == 0
            seconds.append(time.monotonic() - began)
        output, draw = f"{real_s3_url}/killed", random.Random(5)  # noqa: S311 -- no secret
        number = kills = 0
        # Where the machine has become quicker since, many end before they are killed.
        while number < RUNS or kills <= RUNS // 3:
            if storage.exists(f"{output}/manifest.json"):
                output = f"{real_s3_url}/killed-{number}"  # it had ended: begin another
            run = context.Process(target=score, args=(*given, output))
            run.start()
            run.join(draw.uniform(0.3, 1.0) * seconds[1])
            kills += run.is_alive()
            run.kill()
            run.join()
            number += 1
        final = context.Process(target=score, args=(*given, output))
        final.start()
        final.join()
    assert final.exitcode == 0
    for name in ("scores.parquet", "scores.csv", "worklist.html", "manifest.json"):
        expected = storage.read_bytes(f"{real_s3_url}/undisturbed/{name}")
        assert storage.read_bytes(f"{output}/{name}") == expected, name
    images = pq.read_table(BytesIO(storage.read_bytes(f"{output}/scores.parquet")))["image_id"]
    assert sorted(images.to_pylist()) == sorted(
        dataset.column("image_id")[dataset.column("readable")].tolist()
    )
