"""The paper's experiments: the published counts from the published lists, and no shared patient."""

from __future__ import annotations

import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.records import Label
from pipeline.sources.chestxray14.experiments import Experiment, read_experiment
from pipeline.sources.chestxray14.listing import list_chestxray14
from pipeline.sources.tables import read_table
from pipeline.splits import prove_disjoint
from tests.support.made.chestxray14 import LISTS, write_lists


def test_archive_and_folder_say_the_same(tmp_path: Path) -> None:
    folder = write_lists(tmp_path / "lists")
    with tarfile.open(tmp_path / "folds.tar.gz", "w:gz") as archive:
        archive.add(folder, "dpa_folds")
    expected = {
        "a.png": (Label.NORMAL, "train"),
        "b.png": (Label.NORMAL, "train"),
        "c.png": (Label.NORMAL, "test"),
        "d.png": (Label.ANOMALOUS, "test"),
    }
    assert read_experiment(folder, "PA") == expected
    assert read_experiment(str(tmp_path / "folds.tar.gz"), "PA") == expected


def test_lists_that_are_missing_or_overlap_are_refused(tmp_path: Path) -> None:
    folder = write_lists(tmp_path / "a")
    with pytest.raises(SourceError, match="no list AP/normal/train"):
        read_experiment(folder, "AP")
    folder = write_lists(tmp_path / "b", {**LISTS, "anomaly/test": "b.png\n"})
    with pytest.raises(SourceError, match=r"'b\.png' is in two lists of PA"):
        read_experiment(folder, "PA")
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder, "x")
    (tmp_path / "cut.tar.gz").write_bytes(stream.getvalue()[:60])
    with pytest.raises(SourceError, match="not a whole tar archive"):
        read_experiment(str(tmp_path / "cut.tar.gz"), "PA")


def test_an_experiment_gives_labels_and_splits_and_leaves_the_rest_out(tmp_path: Path) -> None:
    head = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position\n"
    rows = "".join(f"{name}.png,No Finding,{name},50,F,PA\n" for name in "acde")
    (tmp_path / "Data_Entry_2017.csv").write_text(head + rows)
    for name in "acde":
        (tmp_path / f"{name}.png").write_bytes(b"listing reads no image")
    experiment = read_experiment(write_lists(tmp_path / "lists"), "PA")
    listing = list_chestxray14(str(tmp_path), experiment=experiment)
    assert [(i.image_id, int(i.label), i.split) for i in listing.images] == [
        ("a.png", 0, "train"),
        ("c.png", 0, "test"),
        ("d.png", 1, "test"),
    ]
    assert [entry.reason for entry in listing.rejected] == ["1 rows: not in the experiment's lists"]


@pytest.mark.parametrize(
    ("experiment", "counts"),
    [("subset", (4261, 677, 667)), ("PA", (34497, 4805, 6291)), ("AP", (16003, 5056, 9444))],
)
def test_the_published_counts_follow_from_the_published_lists(
    shared_data: Path, experiment: Experiment, counts: tuple[int, int, int]
) -> None:
    listed = read_experiment(str(shared_data / "nih" / "dpa_nih_folds.tar.gz"), experiment)
    found = Counter(listed.values())
    assert found == {
        (Label.NORMAL, "train"): counts[0],
        (Label.NORMAL, "test"): counts[1],
        (Label.ANOMALOUS, "test"): counts[2],
    }
    table = read_table(
        str(shared_data / "nih" / "Data_Entry_2017_v2020.csv.gz"),
        {"image": ("Image Index",), "patient": ("Patient ID",), "view": ("View Position",)},
        needed=("image", "patient", "view"),
        remedy="",
    )
    rows = [row for row in table.rows if row["image"] in listed]
    assert len(rows) == sum(counts)
    prove_disjoint([row["patient"] for row in rows], [listed[row["image"]][1] for row in rows])
    if experiment != "subset":
        assert {row["view"] for row in rows} == {experiment}
