"""Settings of a training as a form: typed, checked by Prefect's server and on the command line."""

from __future__ import annotations

from uuid import UUID

import pytest
from cyclopts import CycloptsError
from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError

from flows.cli import app, launch
from flows.shared.train_form import choose_settings
from flows.train import train
from training.presets import TrainChanges


def parse(line: str) -> TrainChanges:
    """Read the settings from the options of `normscope train`."""
    _, bound, _ = app.parse_args(f"train d {line}", exit_on_error=False, print_error=False)
    given = bound.arguments["train"]
    assert isinstance(given, TrainChanges)
    return given


def test_options_fill_the_form() -> None:
    given = parse(
        "--train.optimiser.learning-rate 1e-4 --train.growth.batch-sizes 64 32 16 "
        "--train.loss.layers relu1_2+0.5*relu2_1 --train.images.no-flips-at-random "
        "--train.precision bf16"
    )
    settings = choose_settings("quick", given, seed=7, vgg_weights="random")
    assert settings.optimiser.learning_rate == 1e-4
    assert settings.growth.batch_sizes == {16: 64, 32: 32, 64: 16}
    assert settings.loss.layers[64] == {"relu1_2": 1.0, "relu2_1": 0.5}
    assert not settings.images.flips_at_random
    assert (settings.precision, settings.seed) == ("bf16", 7)
    assert settings.loss.vgg_weights == "random"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--train.optimiser.learning-rate -1", ("optimiser.learning_rate: '-1'", "greater than 0")),
        ("--train.growth.batch-sizes 8 x", ("growth.batch_sizes: 'x'", "valid integer")),
        ("--train.loss.layers relu9_9", ("loss.layers: 'relu9_9'", "such as relu3_1")),
        ("--train.precision fp8", ("precision: 'fp8'", "'fp32', 'bf16_features' or 'bf16'")),
        ("--train.quality.max-pen-fraction 5", ("max_pen_fraction: '5'", "equal to 1")),
        ("--train.optimiser.rate 1", ("--train.optimiser.rate", "Did you mean")),
        ("--train.network foo", ("--train.network: it is a group", "--train.network.NAME")),
        ("--train.growth=foo", ("--train.growth: it is a group", "--help")),
        ("--train foo", ("--train: it is a group", "--train.NAME")),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    line: str, said: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((CycloptsError, IndexError)):
        parse(line)
    assert launch("train", "d", *line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("normscope: ")
    assert error.count("\n") == 1
    assert all(part in error for part in said)


@pytest.fixture(scope="module")
def deployed(prefect_server: str) -> UUID:
    assert prefect_server
    deployment = RunnerDeployment.from_flow(train, name="form").apply()
    assert isinstance(deployment, UUID)
    return deployment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimiser": {"learning_rate": -1}}, "train.optimiser.learning_rate"),
        ({"growth": {"batch_sizes": ["many"]}}, "train.growth.batch_sizes"),
        ({"precision": "fp8"}, "train.precision"),
        ({"optimiser": {"rate": 1}}, "'rate' was unexpected"),
    ],
)
def test_the_server_refuses_a_wrong_setting(
    deployed: UUID, changes: dict[str, object], said: str
) -> None:
    parameters = {"dataset": "d", "train": changes}
    with (
        get_client(sync_client=True) as client,
        pytest.raises(PrefectHTTPStatusError) as refused,
    ):
        client.create_flow_run_from_deployment(deployed, parameters=parameters)
    assert refused.value.response.status_code == 409
    assert said in refused.value.response.text


def test_the_server_takes_a_filled_form(deployed: UUID) -> None:
    changes = {"growth": {"batch_sizes": [8]}, "precision": "bf16", "quality": {}}
    parameters = {"dataset": "d", "train": changes}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployed, parameters=parameters)
    given = train.validate_parameters(run.parameters)["train"]
    assert choose_settings("demo", given, seed=0, vgg_weights=None).growth.batch_sizes == {
        16: 8,
        32: 8,
    }
