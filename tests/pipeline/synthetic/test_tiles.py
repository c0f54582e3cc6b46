"""Synthetic tiles: labelled, grouped by slide, the same for the same seed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.records import Label
from pipeline.sources.images import list_images
from pipeline.synthetic import __main__ as command
from pipeline.synthetic.tiles import write_tiles


def test_tiles_are_listed_with_label_and_group(tmp_path: Path) -> None:
    write_tiles(str(tmp_path), slides=3, tiles_per_slide=9, size_px=40)
    images = list_images(str(tmp_path)).images
    assert len(images) == 27
    assert {image.group_id for image in images} == {"slide_00", "slide_01", "slide_02"}
    tumour = {image.group_id for image in images if image.label == Label.ANOMALOUS}
    assert tumour == {"slide_02"}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiles(str(tmp_path / name), seed=seed, slides=1, tiles_per_slide=3)
    a, b, c = ((tmp_path / name / "tiles/slide_00_002.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_the_command_refuses_a_wrong_seed_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seed: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic", str(tmp_path), f"--seed={seed}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert f"{seed!r} is not a whole number" in capsys.readouterr().err


def test_the_command_writes_one_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic", str(tmp_path), "--only", "tiles"])
    command.main()
    assert [path.name for path in tmp_path.iterdir()] == ["tiles"]
    with (tmp_path / "tiles" / "labels.csv").open() as table:
        labels = [row["label"] for row in csv.DictReader(table)]
    assert len(labels) == 720
    assert 20 < labels.count("1") < 200
    assert str(tmp_path) in capsys.readouterr().out
