"""The whole chain by its flows, on a real S3 server: scans -> dataset -> model -> worklist."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.ingest_xrays import ingest_xrays
from flows.promote import promote
from flows.score import score
from flows.train import train
from pipeline.ingest.run import IngestReport
from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from pipeline.synthetic import write_xrays
from training.evaluation.metrics import measure_auroc
from training.presets import TrainChanges

pytestmark = [pytest.mark.slow, pytest.mark.s3]

# A minute's work: two resolutions of a small network on a few hundred images.
CHANGES = TrainChanges(
    growth={"stabilize_iterations": [12], "fade_in_iterations": [6]},
    checkpoint_every=10,
    validate_every=12,
)


@pytest.mark.usefixtures("prefect_server")
def test_the_chain_on_s3(
    real_s3_url: str, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "2")
    scans, dataset = f"{real_s3_url}/scans", f"{real_s3_url}/lake/xrays"
    write_xrays(scans, seed=5, patients=60, size_px=96)
    ingested = ingest_xrays(scans, dataset, size_px=(32,))
    assert isinstance(ingested, IngestReport)
    assert not ingested.failures

    trained = train(
        dataset,
        preset="demo",
        model_name="xrays-on-s3",
        storage=f"{real_s3_url}/training",
        train=CHANGES,
    )
    assert trained.checkpoint_url.startswith(real_s3_url)
    assert storage.list_objects(trained.checkpoint_url)
    again = train(
        dataset,
        preset="demo",
        model_name="xrays-on-s3",
        storage=f"{real_s3_url}/training",
        train=CHANGES,
    )
    assert (again.version, again.run_id) == (trained.version, trained.run_id)

    promotion = promote("xrays-on-s3", dataset)
    assert promotion.decision.outcome == "promoted"

    output = f"{real_s3_url}/scores"
    report = score(dataset, output, model_name="xrays-on-s3", top_heatmaps=5)
    table = pq.read_table(BytesIO(storage.read_bytes(f"{output}/scores.parquet"))).to_pandas()
    opened = open_dataset(dataset)
    is_test = opened.column("split") == "test"
    assert sorted(table["image_id"]) == sorted(opened.column("image_id")[is_test])
    assert report.auroc is not None
    assert report.auroc.estimate == pytest.approx(
        measure_auroc(table["anomaly_score"].to_numpy(), table["label"].to_numpy())
    )
    assert set(table["model_version"]) == {trained.version}
    assert len(storage.list_objects(f"{output}/heatmaps")) == 5
    assert json.loads(storage.read_bytes(f"{output}/manifest.json"))["counts"] == {
        "done": int(np.count_nonzero(is_test))
    }
    assert b"xrays-on-s3" in storage.read_bytes(f"{output}/worklist.html")

    prefix = score(scans, f"{real_s3_url}/new", model_name="xrays-on-s3", top_heatmaps=0)
    assert prefix.scored_count == ingested.image_count
