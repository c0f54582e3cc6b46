"""`normscope ingest images`: what its messages advise can be given on the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import launch
from pipeline.ingest.manifest import read_manifest
from pipeline.store.dataset import open_dataset

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def prefect_api(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")


def write_images(folder: Path) -> Path:
    """Images, not square, with a table whose columns and words are its own."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    rows = ["path,No Finding,Person No."]
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 31), np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'not so' if number % 4 == 3 else '1.0'},p{number // 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_what_a_refusal_advises_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dataset = write_images(tmp_path / "in"), str(tmp_path / "out.zarr")
    command = ["ingest", "images", str(source), dataset]
    assert launch(*command) == 2
    (option,) = set(re.findall(r"`(--columns\.label) NAME`", capsys.readouterr().err))
    command += [option, "No Finding", "--columns.group-id", "Person No.", "--label-map", "1=0"]
    assert launch(*command) == 1
    reasons = {entry.reason for entry in read_manifest(f"{dataset}/manifest.json")} - {""}
    (reason,) = reasons
    (advice,) = re.findall(r"give `ingest images` its meaning, (--label-map '.*'),", reason)
    assert launch(*command, *shlex.split(advice)) == 0
    made = open_dataset(dataset)
    labels = dict(zip(made.column("image_id"), made.column("label").tolist(), strict=True))
    assert labels == {f"{number}.png": int(number % 4 == 3) for number in range(9)}
    assert set(made.column("group_id")) == {"p0", "p1", "p2", "p3", "p4"}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--columns.lable x", "no such column of ours: lable"),
        ("--label-map benign=2", "--label-map: 'benign=2'"),
        ("--label-map benign", "--label-map: 'benign'"),
        ("--columns x", "--columns"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_images(tmp_path / "in")
    assert launch("ingest", "images", str(source), str(tmp_path / "out.zarr"), *line.split()) == 2
    assert named in capsys.readouterr().err
