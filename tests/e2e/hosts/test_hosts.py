"""The chain across hosts, by deployments: hosts are lost in mid-run, and nothing is lost by it.

The short form, `make test-hosts`. `python -m tests.e2e.hosts` is the long one, which disturbs each
step by each host.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from pipeline.synthetic import write_slides
from tests.e2e.hosts import network, servers
from tests.e2e.hosts.chain import Chain, reading_s3
from tests.e2e.hosts.findings import compare_weights, find_planted
from tests.e2e.hosts.network import Lan, running_lan, wait_until
from tests.e2e.hosts.servers import NAMES, RAY_NODES, Servers, answers

pytestmark = pytest.mark.slow
MODEL = "camelyon16-anomaly"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Hosts with their servers, the flows deployed and slides on S3."""
    missing = network.find_missing() or servers.find_missing_server()
    if missing:
        pytest.skip(missing)
    with running_lan(tmp_path_factory.mktemp("hosts"), {}) as lan:
        lan.add(*NAMES)
        started = Servers(lan)
        started.start()
        started.run_command("normscope", "deploy")
        with reading_s3(lan):
            write_slides("s3://lake/scans", seed=1, normal_count=4, tumor_count=2, test_count=2)
            yield Chain(lan, started)


@pytest.fixture(scope="module")
def dataset(chain: Chain) -> str:
    """The slides as a dataset, made by Dask on another host."""
    log = chain.run("ingest-slides/default", source="s3://lake/scans", dataset="s3://lake/slides")
    assert "2 workers" in log
    return "s3://lake/slides"


@pytest.fixture(scope="module")
def trained(chain: Chain, dataset: str) -> str:
    """Name of a training that nothing disturbed, on two hosts."""
    chain.run("train/default", dataset=dataset, preset="demo", workers=2, run_name="calm")
    return "calm"


def test_no_server_lets_strangers_in(chain: Chain) -> None:
    lan: Lan = chain.lan
    control, head = lan.hosts["control"], lan.hosts["ray-head"]
    wrong = "Basic d3Jvbmc6d3Jvbmc="
    for password in (None, wrong):
        assert answers(control, 4200, "/api/flows/count", password) in {401, 405}
        assert answers(control, 4200, "/api/admin/version", password) == 401
        assert answers(control, 5000, "/api/2.0/mlflow/users/current", password) == 401
    assert answers(head, 8265, "/api/jobs/") == 401
    assert answers(head, 8265, "/api/jobs/", "Bearer wrong") == 403
    assert answers(lan.hosts["s3"], 9000, "/lake/") == 403


def test_a_training_outlives_the_loss_of_a_host(chain: Chain, dataset: str, trained: str) -> None:
    lost = RAY_NODES[0]
    run = chain.trigger(
        "train/default", dataset=dataset, preset="demo", workers=2, run_name="disturbed"
    )
    chain.wait_for_log(run, "Steps: ")
    chain.lan.hosts[lost].kill()
    chain.servers.restart(lost)
    chain.finish(run, 600)
    assert "Resumed" in chain.read_log(run)
    assert compare_weights("s3://lake/state/training", trained, "disturbed") <= 1e-5


def test_a_worker_s_death_leaves_the_driver_and_one_driver_only(chain: Chain, dataset: str) -> None:
    run = chain.trigger("search/default", dataset=dataset, preset="demo", trials=2, run_name="s")
    chain.wait_for_log(run, "submitted to http://ray-head:8265")
    chain.lan.hosts["worker"].kill()
    chain.servers.restart("worker")
    again = chain.trigger("search/default", dataset=dataset, preset="demo", trials=2, run_name="s")
    chain.finish(again, 600)
    assert "does this already; following it" in chain.read_log(again)


def test_scores_come_once_though_s3_was_away(chain: Chain, dataset: str, trained: str) -> None:
    assert trained
    chain.run("promote/default", model_name=MODEL, dataset=dataset, wait_s=0)
    run = chain.trigger(
        "score/default",
        source=dataset,
        output="s3://lake/scores",
        model_name=MODEL,
        workers=2,
        top_heatmaps=4,
    )
    chain.wait_for_log(run, "submitted to http://ray-head:8265")
    s3 = chain.lan.hosts["s3"]
    s3.cut_off()
    wait_until(lambda: answers(s3, 9000, "/") is None, "S3 is away")
    s3.heal()
    chain.finish(run, 600)
    table = pq.read_table(BytesIO(storage.read_bytes("s3://lake/scores/scores.parquet")))
    names = table["image_id"].to_pylist()
    split = open_dataset(dataset).column("split").astype(str)
    assert len(names) == len(set(names)) == int(np.sum(split == "test"))


def test_no_secret_was_written_anywhere(chain: Chain, dataset: str, trained: str) -> None:
    assert dataset
    assert trained
    assert find_planted(chain.lan) == []


def test_a_secret_that_was_written_is_found(chain: Chain) -> None:
    leak = Path(chain.lan.hosts["worker"].disk, "leak.log")
    leak.write_text(f"password {servers.SECRETS['mlflow']}\n")
    try:
        assert find_planted(chain.lan) == ["worker/tmp/leak.log holds the secret `mlflow`"]
    finally:
        leak.unlink()
