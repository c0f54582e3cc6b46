"""Names, numbers and dates of persons go into the chain, and none of them comes out."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.logging.handlers import APILogHandler

from flows.cli import launch
from pipeline.ingest.manifest import read_manifest
from pipeline.privacy.key import PseudonymKey
from tests.conftest import HOME
from tests.support.hospital import (
    NUMBER,
    PLANTED,
    find_planted,
    read_folder,
    write_films,
    write_pngs,
)

# Ray warns of its own settings while it is imported.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # seven commands; many times longer where others share the machine
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

SECRET = "c3" * 32
KEY = PseudonymKey.parse(SECRET)
MODEL = "films-of-persons"
A_MOMENT = ("--train.growth.stabilize-iterations", "1", "--train.growth.fade-in-iterations", "1")


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray and its workers write; a short path, as sockets lie there."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def surroundings(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    monkeypatch.setenv("NORMSCOPE_PSEUDONYM_KEY", SECRET)


def run_chain(films: Path, pngs: Path, made: Path) -> list[int]:
    """The commands in turn, and their exit statuses."""
    table, dataset, size = str(films / "labels.csv"), str(made / "films.zarr"), ("--size-px", "32")
    grey = ("--modality", "radiograph", "--colour", "grey")
    model = ("--model-name", MODEL)
    commands = [
        ("ingest", "xrays", str(films), dataset, "--table", table, *size),
        ("train", dataset, "--preset", "demo", *model, *A_MOMENT),
        ("promote", MODEL, dataset),
        ("score", str(films), str(made / "scores"), *model, "--labels", table),
        ("ingest", "xrays", str(pngs), str(made / "pngs.zarr"), *size),
        ("ingest", "images", str(pngs), str(made / "images.zarr"), *grey, *size),
        ("score", str(pngs), str(made / "others"), *model),
    ]
    return [launch(*command) for command in commands]


@pytest.mark.usefixtures("surroundings")
def test_nothing_of_a_person_leaves_the_chain(
    tmp_path: Path,
    ray_folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    films, pngs = write_films(tmp_path / "films"), write_pngs(tmp_path / "pngs")
    assert find_planted(read_folder(films), read_folder(pngs)) == set(PLANTED)
    made = tmp_path / "made"
    assert run_chain(films, pngs, made) == [1, 0, 0, 1, 1, 1, 1]  # 1: the spoilt files
    APILogHandler().flush()
    said = capfd.readouterr()
    told = {
        **{place.name: read_folder(place) for place in (*sorted(made.iterdir()), HOME)},
        "ray": read_folder(ray_folder),
        "output": said.out,
        # Which stream Prefect's handler writes to depends on what has run before.
        "log": said.err + caplog.text,
    }
    states = Counter(entry.state for entry in read_manifest(f"{made}/films.zarr/manifest.json"))
    assert states == {"done": 14, "failed": 4, "skipped": 2}
    # Every place has been looked into: what tells nothing of a person is found there.
    patient = KEY.pseudonym("patient", f"{NUMBER}-0")
    public = {
        "films.zarr": [patient, "row-16", "file-1-"],
        "scores": [patient, "row-16", "anomaly_score", "heatmaps", ".dcm"],
        "pngs.zarr": [KEY.pseudonym("patient", f"{NUMBER}/0"), "No Finding"],
        "images.zarr": ["source-"],
        "others": ["source-", "worklist.html"],
        HOME.name: [
            "row-16",
            "ingest-xrays",
            f"{MODEL}-",
            "promoted",
            "settings.json",
            "items to visit",
        ],
        "ray": ["raylet"],
        "output": ["row-16", "file-1-"],
        "log": ["items failed"],
    }
    for place, text in told.items():
        assert [word for word in public[place] if word not in text] == [], place
        assert (place, find_planted(text)) == (place, set())
        assert SECRET not in text, place
