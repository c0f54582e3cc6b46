"""The score flow on a batch that has drifted: page, artifact and event say so."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from flows.feedback import feedback
from flows.registry.lineage import lineage
from flows.score import score
from pipeline.errors import SettingsError
from pipeline.io import storage
from pipeline.records import Label, Split
from pipeline.store.dataset import open_dataset
from tests.support.made.slides import (
    BOXES,
    SETTINGS,
    SHAPE,
    ingest_made,
    list_slide,
    paint_tissue,
    write_pyramid,
    write_slide,
)
from tests.support.registered import NAME, own_mlflow, register
from tests.support.toys import make_dataset
from tests.support.waves import make_dataset as make_waves
from tests.support.waves import paint
from training.registry.ledger import read_entries
from training.registry.versions import load_version, set_alias

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def count_events(name: str) -> int:
    with get_client(sync_client=True) as client:
        wanted = {"filter": {"event": {"name": [name]}}, "limit": 10}
        return int(client.request("POST", "/events/filter", json=wanted).json()["total"])


def test_a_shifted_batch_raises_the_alarm_and_moves_no_threshold(tmp_path: Path) -> None:
    known = make_dataset(str(tmp_path / "known"), validation=40)
    shifted = make_dataset(str(tmp_path / "shifted"), validation=40, contrast=0.4)
    output = str(tmp_path / "scores")
    # Other tests share the server.
    began, before = datetime.now(UTC), count_events("normscope.scores.drifted")
    with own_mlflow(tmp_path):
        set_alias(NAME, "champion", register(known).version)
        threshold = load_version(NAME, "champion").threshold.value
        place = str(tmp_path / "ledgers")
        report = score(shifted.url, output, model_name=NAME, splits=["train"], ledgers=place)
        again = score(shifted.url, output, model_name=NAME, splits=["train"], ledgers=place)
        traced = lineage(output, "5")
    assert [entry.kind for entry in traced.entries] == ["registered", "scored"]
    assert traced.scored_dataset["fingerprint"] == shifted.fingerprint
    assert (again.new_count, again.results) == (0, report.results)
    assert report.drift.whole.state == "shifted"
    page = storage.read_bytes(f"{output}/worklist.html").decode()
    assert "all images have shifted" in page
    assert "The threshold is still that of the validation split" in page
    table = pq.read_table(BytesIO(storage.read_bytes(f"{output}/scores.parquet")))
    assert set(table["threshold"].to_pylist()) == {threshold}
    with get_client(sync_client=True) as client:
        only = ArtifactFilter.model_validate({"key": {"any_": ["drift"]}})
        (artifact,) = (
            found
            for found in client.read_artifacts(artifact_filter=only)
            if found.created is not None and found.created > began
        )
    assert "all images have shifted" in str(artifact.data)
    deadline = time.monotonic() + 30  # events travel by a queue
    while count_events("normscope.scores.drifted") == before and time.monotonic() < deadline:
        time.sleep(0.2)
    # Nothing new was scored the second time, so nothing was said again.
    assert count_events("normscope.scores.drifted") == before + 1


def test_a_range_of_dates_is_scored_alone_and_again_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inbox, output, place = Path("inbox"), "january", str(tmp_path / "ledgers")
    for day in (1, 15, 31, 32):  # of January: the last is in February
        paint(inbox / f"{day}.png", day)
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=day - 1)
        os.utime(inbox / f"{day}.png", (noon.timestamp(), noon.timestamp()))
    since, until = datetime(2026, 1, 1, 18), datetime(2026, 2, 1)
    with own_mlflow(tmp_path):
        known = make_waves(tmp_path)
        set_alias(NAME, "champion", register(known).version)
        where: dict[str, Any] = {"model_name": NAME, "ledgers": place}
        report = score(str(inbox), output, since=since, until=until, **where)
        again = score(str(inbox), output, since=since, until=until, **where)
        whole = score(str(inbox), output, **where)
        (_, first, last) = read_entries(f"{place}/{NAME}")
        with pytest.raises(SettingsError, match="does not keep when scans were modified"):
            score(known.url, output, since=since, **where)
    states = [(entry.item, entry.state) for entry in report.manifest]
    assert states == [("15.png", "done"), ("31.png", "done"), ("period", "skipped")]
    assert report.manifest[-1].reason.startswith("2 left out")
    assert "since 2026-01-01T18:00:00Z and before 2026-02-01;" in report.notes[-1]
    assert (report.new_count, again.new_count, again.results) == (2, 0, report.results)
    # A schedule that writes to the same output scores only what the range has not.
    assert (whole.scored_count, whole.new_count) == (4, 2)
    assert first.content["output_url"] == str(tmp_path / "january")
    assert first.content["since"] == "2026-01-01T18:00:00+00:00"
    assert first.content["until"] == "2026-02-01T00:00:00+00:00"
    assert "since" not in last.content


def test_slides_that_do_not_say_their_mpp_are_scored_with_a_table(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tile_size_px": 40})
    splits: tuple[Split, ...] = ("train", "validation")
    learned = [
        list_slide(write_slide(tmp_path, split), label=Label.NORMAL, split=split)
        for split in splits
    ]
    known, output = str(tmp_path / "known"), str(tmp_path / "out")
    ingest_made(known, learned, settings)
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "silent.tif", paint_tissue(SHAPE, BOXES), mpp_yx=None)
    (tmp_path / "mpp.csv").write_text("slide,mpp_um\nsilent,0.5\n")
    where: dict[str, Any] = {"model_name": NAME, "ledgers": str(tmp_path / "ledgers")}
    with own_mlflow(tmp_path):
        set_alias(NAME, "champion", register(open_dataset(known)).version)
        mpp_table = str(tmp_path / "mpp.csv")
        report = score(str(tmp_path / "in"), output, mpp_table=mpp_table, **where)
        with pytest.raises(SettingsError, match="whose tiles are cut already"):
            score(known, output, mpp_table=mpp_table, **where)
    made = open_dataset(f"{output}/dataset")
    assert set(made.column("mpp_source").tolist()) == {"user table"}
    assert {part.facts["mpp_y_um"] for part in made.parts} == {0.5}
    assert {part.facts["mpp_x_um"] for part in made.parts} == {0.5}
    assert report.scored_count == made.image_count > 0


def write_sloping(path: Path) -> Path:
    """A slide without um/px whose every tile differs, at every scale."""
    pixels = paint_tissue(SHAPE, BOXES)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    pixels[..., 1] -= (40 * (np.sin(y / 21) * np.cos(x / 34) + 1)).astype(np.uint8)
    return write_pyramid(path, pixels, mpp_yx=None)


def read_scores(output: str) -> dict[str, tuple[str, float]]:
    """The digest of the pixels and the score of each image of a scoring."""
    table = pq.read_table(Path(output, "scores.parquet")).to_pydict()
    pairs = zip(table["pixel_digest"], table["anomaly_score"], strict=True)
    return dict(zip(table["image_id"], pairs, strict=True))


def expect_no_score_of_other_pixels(before: str, output: str, fresh: str) -> None:
    """The second scoring into an output equals one into a fresh place, and not the first."""
    wrong, right, alone = map(read_scores, (before, output, fresh))
    assert right == alone
    renewed = wrong.keys() & right.keys()
    assert renewed  # tiles of one name, of other pixels: the name alone would recall their scores
    assert all(wrong[name][0] != right[name][0] for name in renewed)
    assert any(wrong[name][1] != right[name][1] for name in renewed)


def test_a_corrected_um_per_px_table_leaves_no_score_of_the_wrong_pixels(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tile_size_px": 40})
    splits: tuple[Split, ...] = ("train", "validation")
    learned = [
        list_slide(write_slide(tmp_path, split), label=Label.NORMAL, split=split)
        for split in splits
    ]
    _, known = ingest_made(tmp_path / "known", learned, settings)
    (tmp_path / "in").mkdir()
    write_sloping(tmp_path / "in" / "silent.tif")
    table, output, fresh = tmp_path / "mpp.csv", str(tmp_path / "out"), str(tmp_path / "fresh")
    where: dict[str, Any] = {"model_name": NAME, "ledgers": str(tmp_path / "ledgers")}
    with own_mlflow(tmp_path):
        set_alias(NAME, "champion", register(known).version)
        table.write_text("slide,mpp_um\nsilent,0.25\n")
        score(str(tmp_path / "in"), output, mpp_table=str(table), **where)
        shutil.copytree(output, tmp_path / "before")
        table.write_text("slide,mpp_um\nsilent,0.5\n")
        again = score(str(tmp_path / "in"), output, mpp_table=str(table), **where)
        score(str(tmp_path / "in"), fresh, mpp_table=str(table), **where)
    assert again.new_count == again.scored_count
    expect_no_score_of_other_pixels(str(tmp_path / "before"), output, fresh)


def test_a_dataset_made_again_by_another_setting_is_scored_again(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tile_size_px": 40, "mpp_fallback_um": 0.25})
    learned = list_slide(write_slide(tmp_path, "known"), label=Label.NORMAL, split="validation")
    silent = list_slide(write_sloping(tmp_path / "silent.tif"), split="test")
    _, known = ingest_made(tmp_path / "data", [learned, silent], settings)
    output, fresh = str(tmp_path / "out"), str(tmp_path / "fresh")
    where: dict[str, Any] = {"model_name": NAME, "ledgers": str(tmp_path / "ledgers")}
    with own_mlflow(tmp_path):
        set_alias(NAME, "champion", register(known).version)
        score(known.url, output, **where)
        shutil.copytree(output, tmp_path / "before")
        other = settings.model_copy(update={"mpp_fallback_um": 0.5})
        _, made = ingest_made(tmp_path / "data", [learned, silent], other)
        score(made.url, output, **where)
        score(made.url, fresh, **where)
    expect_no_score_of_other_pixels(str(tmp_path / "before"), output, fresh)


def test_verdicts_become_labels(tmp_path: Path) -> None:
    said = {
        "image_id": "5",
        "group_id": "g5",
        "verdict": "abnormal",
        "anomaly_score": 2.5,
        "decided_at": "2026-05-04T03:02:01Z",
        "percentile": 99.0,
    }
    whole = {
        "normscope_verdicts": 1,
        "model_name": NAME,
        "model_version": "1",
        "run_id": "r",
        "source": "toys",
        "dataset_fingerprint": "f",
        "exported_at": "2026-05-04T03:02:02Z",
        "verdicts": [said],
    }
    (tmp_path / "verdicts.json").write_text(json.dumps(whole))
    table = tmp_path / "labels.csv"
    report = feedback([str(tmp_path / "verdicts.json")], table=str(table))
    assert report.counts == {"normal": 0, "abnormal": 1, "artefact": 0}
    assert table.read_text().splitlines()[1].startswith("5,1,g5,abnormal")
