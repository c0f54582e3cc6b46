"""The command line: what goes wrong is said in one line that names the thing and the remedy."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from inspect import BoundArguments
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import cli
from flows.cli import app, launch
from pipeline.ingest.manifest import read_manifest
from pipeline.store.dataset import open_dataset
from tests.support.made.slides import paint_tissue, write_pyramid

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def prefect_api(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")


def write_images(folder: Path, count: int = 12) -> Path:
    """Grey images, not square, with a label table."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = ["path,label,patient"]
    for number in range(count):
        name = f"image_{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 31), np.uint8)).save(folder / name)
        rows.append(f"{name},{int(number % 4 == 3)},{number // 2}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_images_become_a_sealed_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_images(tmp_path / "in")
    dataset = tmp_path / "out.zarr"
    assert launch("ingest", "images", str(source), str(dataset), "--size-px", "32") == 0
    assert "is sealed" in capsys.readouterr().out
    assert open_dataset(str(dataset)).image_shape == (32, 32, 1)


def test_one_bad_image_is_listed_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_images(tmp_path / "in")
    (source / "image_05.png").write_text("this is no picture")
    dataset = tmp_path / "out.zarr"
    assert launch("ingest", "images", str(source), str(dataset)) == 1
    said = capsys.readouterr()
    assert "1 items failed" in said.err
    assert "image_05.png" in said.out
    states = {Path(e.item).name: e.state for e in read_manifest(f"{dataset}/manifest.json")}
    assert states["image_05.png"] == "failed"
    assert list(states.values()).count("done") == 11
    assert np.count_nonzero(open_dataset(str(dataset)).column("readable")) == 11


def test_several_sizes_become_a_dataset_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_images(tmp_path / "in")
    (source / "image_05.png").write_text("this is no picture")
    dataset = f"{tmp_path}/out-{{size_px}}.zarr"
    command = ("ingest", "images", str(source), dataset, "--size-px", "32", "--size-px", "48")
    assert launch(*command) == 1
    said = capsys.readouterr()
    assert "1 items failed" in said.err
    for size in (32, 48):
        assert f"out-{size}.zarr` is sealed" in said.out
        assert open_dataset(f"{tmp_path}/out-{size}.zarr").image_shape == (size, size, 1)


def test_names_of_splits_are_given_as_words(tmp_path: Path) -> None:
    source, dataset = write_images(tmp_path / "in"), str(tmp_path / "out.zarr")
    header, *rows = (source / "manifest.csv").read_text().splitlines()
    named = [f"{row},{'a=b' if row.startswith('image_0') else 'rest'}" for row in rows]
    (source / "manifest.csv").write_text("\n".join([f"{header},split", *named]))
    command = ("ingest", "images", str(source), dataset, "--split-map", "a=b=train")
    assert launch(*command, "--split-map", "rest=validation") == 0
    splits = open_dataset(dataset).column("split")
    assert sorted(map(str, splits)) == ["train"] * 10 + ["validation"] * 2


def refuse(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """Run a command that must be refused; return the one line that it says."""
    assert launch(*tokens) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("normscope:")]
    assert len(lines) == 1
    return lines[0]


def test_a_table_without_the_needed_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_images(tmp_path / "in")
    (source / "manifest.csv").write_text("name_of_thing,colour\na,b\n")
    said = refuse(capsys, "ingest", "images", str(source), str(tmp_path / "out"))
    assert "manifest.csv" in said
    assert "name_of_thing" in said


def test_a_bucket_that_does_not_exist(
    tmp_path: Path, moto_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert moto_url
    source = str(write_images(tmp_path / "in"))
    said = refuse(capsys, "ingest", "images", source, "s3://no-such-bucket/x.zarr")
    assert "no-such-bucket" in said
    assert "Create the bucket" in said


def test_missing_credentials(
    tmp_path: Path,
    moto_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    source = str(write_images(tmp_path / "in"))
    said = refuse(capsys, "ingest", "images", source, f"{moto_url}/x.zarr")
    assert "Set AWS_ACCESS_KEY_ID" in said


def test_slides_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    pixels = paint_tissue((700, 500), [(40, 60, 640, 420)])
    write_pyramid(folder / "good.tif", pixels)
    shutil.copy(folder / "good.tif", folder / "truncated.tif")
    with (folder / "truncated.tif").open("r+b") as file:
        file.truncate((folder / "good.tif").stat().st_size // 3)
    write_pyramid(folder / "without_mpp.tif", pixels, mpp_yx=None)
    shutil.copy(folder / "good.tif", folder / "annotated.tif")
    (folder / "annotated.xml").write_text("<GPX><wpt/></GPX>")
    dataset = tmp_path / "out.zarr"
    assert launch("ingest", "slides", str(folder), str(dataset), "--tile-size-px", "32") == 1
    entries = {Path(e.item).name: e for e in read_manifest(f"{dataset}/manifest.json")}
    assert entries["good.tif"].state == "done"
    assert {name for name, entry in entries.items() if entry.state == "failed"} == {
        "truncated.tif",
        "without_mpp.tif",
        "annotated.tif",
    }
    assert "mpp_fallback_um" in entries["without_mpp.tif"].reason
    assert "annotated.xml" in entries["annotated.tif"].reason
    assert "3 items failed" in capsys.readouterr().err


def test_a_missing_weight_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dataset = str(write_images(tmp_path / "in", 60)), str(tmp_path / "out.zarr")
    assert launch("ingest", "images", source, dataset, "--size-px", "32") == 0
    said = refuse(capsys, "train", dataset, "--preset", "demo", "--vgg-weights", "/none/vgg19.pth")
    assert "/none/vgg19.pth" in said


def test_no_dataset_and_no_champion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no dataset here" in refuse(capsys, "train", str(tmp_path / "none.zarr"))
    source = str(write_images(tmp_path / "in"))
    said = refuse(capsys, "score", source, str(tmp_path / "out"), "--model-name", "never-trained")
    assert "never-trained" in said
    assert "normscope train" in said


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("nosuch", "nosuch"),
        ("ingest nosuch", "nosuch"),
        ("ingest slides", "--source"),
        ("ingest slides a b --nosuch 1", "--nosuch"),
        ("ingest slides a b --tile-size-px", "--tile-size-px"),
        ("ingest slides a b --tile-size-px 0", "--tile-size-px"),
        ("ingest slides a b --stain foo", "foo"),
        ("ingest images a b --split-map a=test --split-map b=tuning", "--split-map: 'b=tuning'"),
        ("up extra", "extra"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*line.split()) == 2
    said = capsys.readouterr()
    assert named in said.out + said.err


def test_an_answer_names_a_version_and_the_program_says_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[dict[str, str]] = []

    def keep(_flow: object, bound: BoundArguments, _settings: object) -> int:
        given.append(bound.kwargs)
        return 0

    monkeypatch.setattr(cli, "_run_flow", keep)
    line = "answer toys --verdict approve --name A --reason b --version 3"
    app.meta(line.split(), result_action="return_value")
    assert given == [{"verdict": "approve", "name": "A", "reason": "b", "version": "3"}]
    app.meta(["--version"], result_action="return_value")
    assert version("normscope") in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    [
        "demo",
        "ingest slides",
        "ingest xrays",
        "ingest images",
        "train",
        "search",
        "promote",
        "rollback",
        "ledger",
        "feedback",
        "lineage",
        "score",
        "inspect",
        "sheet",
        "up",
        "down",
        "deploy",
    ],
)
def test_every_command_teaches_by_example(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    app(f"{path} --help", exit_on_error=False, result_action="return_value")
    said = capsys.readouterr().out
    assert f"normscope {path}" in said.split("Example")[1]


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 130, "interrupted"),
        (
            ZeroDivisionError("of ours"),
            3,
            "ZeroDivisionError: of ours\nnormscope: this is a defect",
        ),
    ],
)
def test_other_ends_have_a_status_of_their_own(
    end: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> int:
        raise end

    monkeypatch.setattr("flows.cli._run_flow", stop)
    assert (
        app.meta(["promote", "toys-anomaly", "toys.zarr"], result_action="return_value") == status
    )
    assert said in capsys.readouterr().err
