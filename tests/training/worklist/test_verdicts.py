"""Verdicts of a worklist become labels that the ingest of images reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.records import Label
from pipeline.sources.images import list_images
from training.worklist.verdicts import import_verdicts


def write_export(path: Path, *said: tuple[str, str, str], **changes: Any) -> str:
    verdicts = [
        {
            "image_id": image_id,
            "group_id": f"of {image_id}",
            "verdict": verdict,
            "decided_at": at,
            "anomaly_score": 0.5,
            "percentile": 99.0,
        }
        for image_id, verdict, at in said
    ]
    whole = {
        "normscope_verdicts": 1,
        "model_name": "m-anomaly",
        "model_version": "3",
        "run_id": "r",
        "source": "s",
        "dataset_fingerprint": "f",
        "exported_at": "2026-05-04T10:00:00.000Z",
        "verdicts": verdicts,
        **changes,
    }
    path.write_text(json.dumps(whole))
    return str(path)


def test_the_latest_verdict_counts_and_the_ingest_reads_the_table(tmp_path: Path) -> None:
    one = write_export(
        tmp_path / "one.json",
        ("sub/a,b.png", "abnormal", "2026-05-04T09:00"),
        ("c.png", "artefact", "2026-05-04T09:01"),
        ("d.png", "normal", "2026-05-04T09:02"),
    )
    two = write_export(
        tmp_path / "two.json",
        ("d.png", "abnormal", "2026-05-05T09:00"),
        ("c.png", "normal", "2026-05-03T09:00"),  # older: does not count
    )
    table = tmp_path / "images" / "verdicts.csv"
    report = import_verdicts([one, two], str(table))
    assert (report.imported, report.revised) == (5, ("d.png",))
    assert report.counts == {"normal": 0, "abnormal": 2, "artefact": 1}
    written = table.read_bytes()
    import_verdicts([two, one], str(table))
    assert table.read_bytes() == written
    for name in ("sub/a,b.png", "c.png", "d.png", "unread.png"):
        (table.parent / name).parent.mkdir(exist_ok=True)
        (table.parent / name).write_bytes(b"x")
    images = list_images(str(table.parent), labels_url=str(table)).images
    assert {image.image_id: image.label for image in images} == {
        "sub/a,b.png": Label.ANOMALOUS,
        "c.png": Label.UNKNOWN,
        "d.png": Label.ANOMALOUS,
    }
    assert {image.group_id for image in images} == {
        "of sub/a,b.png",
        "of c.png",
        "of d.png",
    }


@pytest.mark.parametrize("changes", [{"normscope_verdicts": 2}, {"verdicts": [{"image_id": "a"}]}])
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="not a file of verdicts"):
        import_verdicts([write_export(tmp_path / "x.json", **changes)], str(tmp_path / "t.csv"))
    assert not (tmp_path / "t.csv").exists()


def test_a_table_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na.png,1\n")
    export = write_export(tmp_path / "x.json", ("a.png", "normal", "1"))
    with pytest.raises(SourceError, match="has the columns"):
        import_verdicts([export], str(tmp_path / "labels.csv"))
