"""The slides flow: on a cluster that is there already, with a picture of every slide."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from distributed import LocalCluster
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client

from flows.cli import launch
from flows.ingest_slides import ingest_slides
from flows.shared import events
from flows.shared.events import name_artifact
from pipeline.ingest.manifest import read_manifest
from pipeline.records import Label
from pipeline.runtime import engines
from pipeline.store.dataset import open_dataset
from pipeline.synthetic import write_slides
from tests.support.made.slides import ingest_made, list_slide, write_asap, write_slide

SHAPE_YX = (768, 1280)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two normal slides and a tumour, in the official layout."""
    folder = str(tmp_path_factory.mktemp("slides"))
    write_slides(folder, normal_count=2, tumor_count=1, test_count=0, shape_yx=SHAPE_YX)
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """A running cluster that is named in the settings; no other can be started."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as found:

        def refuse(**_: object) -> None:
            raise AssertionError("a cluster of its own, though one is named")

        monkeypatch.setattr(engines, "LocalCluster", refuse)
        monkeypatch.setenv("NORMSCOPE_DASK_ADDRESS", found.scheduler_address)
        yield found


def test_works_on_the_cluster_that_is_named(
    tmp_path: Path,
    slides: str,
    cluster: LocalCluster,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    dataset = str(tmp_path / "out")
    options = ["--tile-size-px", "32", "--stain", "macenko", "--max-tiles-per-slide", "20"]
    assert launch("ingest", "slides", slides, dataset, *options) == 0
    assert set(open_dataset(dataset).column("stain_state")) == {"normalised"}
    assert [entry.state for entry in read_manifest(f"{dataset}/manifest.json")] == ["done"] * 3
    assert cluster.scheduler is not None
    assert cluster.scheduler.transition_counter > 0


@pytest.mark.usefixtures("prefect_server")
def test_every_slide_has_its_picture_on_the_page(
    tmp_path: Path, slides: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    ingest_slides(slides, str(tmp_path / "out"), tile_size_px=32, max_tiles_per_slide=9)
    with get_client(sync_client=True) as client:
        found = {
            artifact.key: artifact
            for artifact in client.read_artifacts()
            if artifact.type == "image"
        }
    keys = [name_artifact(f"training/{name}/{name}_001.tif") for name in ("normal", "tumor")]
    assert set(keys) <= set(found)
    head, _, data = str(found[keys[1]].data).partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(BytesIO(b64decode(data))) as picture:
        assert picture.size == (512, round(512 * SHAPE_YX[0] / SHAPE_YX[1]))


@pytest.mark.usefixtures("prefect_server")
def test_of_many_slides_only_the_first_pictures_are_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events._PUBLISHED_REVIEWS == 50
    monkeypatch.setattr(events, "_PUBLISHED_REVIEWS", 2)
    names = ["many-1", "many-2", "many-3"]
    _, dataset = ingest_made(
        tmp_path / "out", [list_slide(write_slide(tmp_path, name)) for name in names]
    )
    flow(name="publish")(events.publish_reviews)(dataset.url)
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert [name for name in names if name_artifact(name) in keys] == names[:2]


def test_a_users_own_groups_stride_and_threshold(
    tmp_path: Path,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    write_slide(tmp_path, "a")
    # Tiles of 64 level-0 px stand 128 px apart: the half of the first, the whole of the next.
    outline = [(160.0, 128.0), (320.0, 128.0), (320.0, 192.0), (160.0, 192.0)]
    write_asap(tmp_path / "a.xml", [("malignant", outline)])
    command = ["ingest", "slides", str(tmp_path), str(tmp_path / "out"), "--tile-size-px", "32"]
    assert launch(*command) == 2
    assert "Name the lesions' group in `lesion_groups` of `ingest" in capsys.readouterr().err
    options = ["--lesion-groups", "malignant", "--lesion-threshold", "0.6", "--stride-px", "64"]
    assert launch(*command, *options, "--shard-images", "64") == 0
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.column("origin_yx") % 128 == 0).all()
    assert dataset.attributes["parameters"]["shard_images"] == 64
    shares, labels = dataset.column("lesion_fraction"), dataset.column("label")
    assert dict(zip(shares.tolist(), labels.tolist(), strict=True)) == {
        0.0: Label.NORMAL,
        0.5: Label.UNKNOWN,
        1.0: Label.ANOMALOUS,
    }


def test_keys_are_as_prefect_wants_them() -> None:
    assert name_artifact("normal-001") == "review-normal-001"
    ids = ["normal_001", "s-1", "S 1", "S-1", "S_1", "s-1-", "切片甲", "切片乙", "b_X 1.svs"]
    keys = [name_artifact(slide_id) for slide_id in ids]
    assert all(re.fullmatch("review(-[a-z0-9]+)+", key) for key in keys)
    assert len(set(keys)) == len(ids)
