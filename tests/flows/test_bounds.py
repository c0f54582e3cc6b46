"""Numbers out of range are refused in one line, before a flow runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, PositiveInt

from flows import cli
from flows.cli import app, launch


@pytest.mark.parametrize(
    "line",
    [
        "ingest images a b --crop-px 0",
        "ingest images a b --crop-px -4",
        "ingest images a b --seed -5",
        "ingest images a b --size-px 5000",
        "ingest xrays a b --crop-px 3",
        "ingest xrays a b --seed -5",
        "ingest xrays a b --scratch-gib inf",
        "ingest slides a b --scratch-gib 1e300",
        "ingest slides a b --scratch-gib nan",
        "ingest slides a b --mpp-um inf",
        "ingest slides a b --mpp-um nan",
        "ingest slides a b --mask-mpp-um 1e300",
        "ingest slides a b --mpp-override-um inf",
        "ingest slides a b --mpp-fallback-um 40000",
        "ingest slides a b --min-tissue-fraction nan",
        "ingest slides a b --min-tissue-area-um2 nan",
        "ingest slides a b --max-hole-area-um2 inf",
        "ingest slides a b --max-tiles-per-slide 0",
        "ingest slides a b --tile-size-px 100000",
        "ingest slides a b --stride-px 100000000000000000000",
        "ingest slides a b --shard-images 100000000000000000000",
        "ingest slides a b --seed -1",
        "score a b --model-name toys --top-heatmaps -1",
        "score a b --model-name toys --workers 0",
        "score a b --model-name toys --gpus-per-worker nan",
    ],
)
def test_a_number_out_of_range_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(*line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"normscope: {line.split()[-2]}: ")
    assert " is not allowed: Input should be " in said
    assert said.count("\n") == 1


class Workers(BaseModel):
    """Settings of which no flow says in words of its own what they refuse."""

    workers: PositiveInt = 1


def test_settings_that_a_flow_cannot_make_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run_flow", lambda *_: Workers(workers=0))
    command = ["promote", "toys-anomaly", "toys.zarr"]
    assert app.meta(command, result_action="return_value") == 2
    assert capsys.readouterr().err == (
        "normscope: workers: 0 is not allowed (Input should be greater than 0). "
        "Correct the setting\n"
    )


def test_an_environment_variable_out_of_range_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NORMSCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("NORMSCOPE_WORKERS", "0")
    monkeypatch.setattr(sys, "argv", ["normscope", "down"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("normscope: environment variables: workers: '0' is not allowed")
    assert said.count("\n") == 1
