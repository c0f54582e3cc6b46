"""Settings: what the surroundings decide, and what the libraries are told."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies_environment

import pytest
from pydantic import SecretStr, ValidationError

from flows.shared.settings import (
    QUIET,
    Settings,
    adopt_environment,
    child_environment,
    job_environment,
    library_environment,
    prepare_environment,
    short_temporary_folder,
)
from pipeline.errors import SettingsError


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    """No variable of ours is set; whatever a test sets goes again."""
    kept = dict(os.environ)
    for name in kept:
        if name.startswith(("NORMSCOPE_", "RAY_", "MLFLOW_", "_MLFLOW_", "PREFECT_", "AWS_")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(kept)


def test_without_variables_all_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    home = tmp_path / ".normscope"
    assert settings.home == home
    assert settings.mlflow_tracking_uri == f"sqlite:///{home}/mlflow/mlflow.db"
    assert settings.mlflow_artifact_root == home / "mlflow" / "artifacts"
    assert settings.prefect_api_url is settings.ray_address is settings.dask_address is None
    assert 1 <= settings.workers <= 4


def test_variables_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NORMSCOPE_HOME": "/somewhere",
        "NORMSCOPE_WORKERS": "7",
        "NORMSCOPE_DASK_ADDRESS": "tcp://scheduler:8786",
        "PREFECT_API_URL": "http://prefect/api",
        "MLFLOW_TRACKING_URI": "http://mlflow",
        "RAY_ADDRESS": "head:6379",
        "AWS_ENDPOINT_URL": "http://s3",
        "NORMSCOPE_PSEUDONYM_KEY": "0a" * 32,
        "NORMSCOPE_STATE": "s3://lake/state",
        "RAY_API_SERVER_ADDRESS": "http://head:8265",
        "NORMSCOPE_RAY_WORKING_DIR": "/checkout",
        "NORMSCOPE_RAY_WAIT_S": "30",
        "NORMSCOPE_LOG_FORMAT": "json",
        "NORMSCOPE_NOTIFY_URL": "https://notify",
        "NORMSCOPE_GPUS": "8",
        "NORMSCOPE_METRICS_TOKEN": "token",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.model_dump() == {
        "home": Path("/somewhere"),
        "workers": 7,
        "dask_address": "tcp://scheduler:8786",
        "prefect_api_url": "http://prefect/api",
        "mlflow_tracking_uri": "http://mlflow",
        "ray_address": "head:6379",
        "aws_endpoint_url": "http://s3",
        "pseudonym_key": SecretStr("0a" * 32),
        "state": "s3://lake/state",
        "ray_api_server_address": "http://head:8265",
        "ray_working_dir": "/checkout",
        "ray_wait_s": 30.0,
        "log_format": "json",
        "notify_url": SecretStr("https://notify"),
        "gpus": 8,
        "metrics_token": SecretStr("token"),
    }
    assert "0a0a" not in repr(settings)
    assert settings.mlflow_artifact_root is None


def test_the_state_lies_in_the_home_folder_or_where_it_is_told_to(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).place("training") == f"{tmp_path}/training"
    assert Settings(home=tmp_path).place("training", "given") == "given"
    shared = Settings(home=tmp_path, state="s3://lake/state", ray_address="head:6379")
    assert shared.place("ledgers") == "s3://lake/state/ledgers"
    assert Settings(state="relative").state_url == str(Path("relative").absolute())


@pytest.mark.parametrize(
    "engine",
    [
        {"ray_address": "ray-head:6379"},
        {"ray_address": "localhost.example:6379"},
        {"ray_address": "[fd00::1]:6379"},
        {"prefect_api_url": "http://prefect:4200/api"},
        {"mlflow_tracking_uri": "https://user:secret@mlflow.example"},
        {"mlflow_tracking_uri": "postgresql://database/mlflow"},
    ],
)
def test_state_on_this_disk_is_refused_beside_an_engine_elsewhere(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    settings = Settings(home=tmp_path, **engine)  # type: ignore[arg-type]  # one of its fields
    [(name, address)] = engine.items()
    variable = str(Settings.model_fields[name].validation_alias)
    with pytest.raises(SettingsError) as caught:
        settings.place("ledgers")
    said = str(caught.value)
    assert said.startswith(f"NORMSCOPE_STATE: {tmp_path}/ledgers is on this machine's disk, but ")
    assert f"{variable}=" in said
    assert address.rpartition("@")[2] in said
    assert "secret" not in said
    assert "\n" not in said
    assert settings.place("ledgers", "s3://lake/ledgers") == "s3://lake/ledgers"
    assert settings.place("ledgers", "file:///mnt/shared") == "file:///mnt/shared"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:6379", "localhost:6379", "ray://127.0.0.1:10001", "auto", "[::1]:6379", "local"],
)
def test_an_engine_on_this_machine_finds_its_state(tmp_path: Path, address: str) -> None:
    settings = Settings(
        home=tmp_path,
        ray_address=address,
        prefect_api_url="http://127.0.0.1:4200/api",
        mlflow_tracking_uri="http://user:password@localhost:5000",
    )
    assert settings.place("search") == f"{tmp_path}/search"


def test_a_job_gets_no_secret_and_no_place_of_this_machine(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        state="s3://lake/state",
        ray_address="head:6379",
        mlflow_tracking_uri="http://mlflow:5000",
        aws_endpoint_url="http://s3:9000",
        pseudonym_key=SecretStr("0a" * 32),
    )
    variables = job_environment(settings)
    assert variables["NORMSCOPE_STATE"] == "s3://lake/state"
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert variables["AWS_ENDPOINT_URL"] == variables["MLFLOW_S3_ENDPOINT_URL"] == "http://s3:9000"
    assert variables["RAY_TRAIN_V2_ENABLED"] == "1"
    assert not [
        name for name, value in variables.items() if str(tmp_path) in value or "0a0a" in value
    ]
    assert not [name for name in variables if "KEY" in name or "TOKEN" in name or "AUTH" in name]


def test_arguments_win_and_empty_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("PREFECT_API_URL", "")
    settings = Settings(ray_address="other:1")
    assert settings.ray_address == "other:1"
    assert settings.prefect_api_url is None


def test_the_user_s_home_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    assert Settings().home == tmp_path / ".normscope"
    assert Settings(home=Path("~/scans")).home == Path("/home/somebody/scans")


def test_no_workers_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Settings(workers=0)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().workers = 3  # type: ignore[misc]  # the very thing that must fail


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_names_its_variable(name: str) -> None:
    field = Settings.model_fields[name]
    variable = str(field.validation_alias or f"NORMSCOPE_{name.upper()}")
    assert (field.description or "").startswith(f"{variable}: ")


def test_libraries_are_quiet_unless_told_otherwise(tmp_path: Path) -> None:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "false"
    prepare_environment(Settings(home=tmp_path))
    for name, value in QUIET.items():
        assert os.environ[name] == ("false" if name == "MLFLOW_DISABLE_TELEMETRY" else value)


def test_ray_gets_a_token_that_only_its_user_may_read(tmp_path: Path) -> None:
    prepare_environment(Settings(home=tmp_path))
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 64
    prepare_environment(Settings(home=tmp_path))
    assert path.read_text() == token


def test_a_cluster_elsewhere_keeps_its_own_token(tmp_path: Path) -> None:
    variables = library_environment(Settings(home=tmp_path, ray_address="head.example:6379"))
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} & variables.keys()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    prepare_environment(Settings(home=tmp_path))
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert not (tmp_path / "ray" / "token").exists()


def test_an_s3_endpoint_reaches_every_client(tmp_path: Path) -> None:
    os.environ["AWS_DEFAULT_REGION"] = "eu-north-1"
    plain = library_environment(Settings(home=tmp_path, aws_endpoint_url="http://s3:9000"))
    assert plain["MLFLOW_S3_ENDPOINT_URL"] == "http://s3:9000"
    assert plain["AWS_REGION"] == "eu-north-1"
    assert plain["AWS_ALLOW_HTTP"] == "true"
    secure = library_environment(Settings(home=tmp_path, aws_endpoint_url="https://s3"))
    assert "AWS_ALLOW_HTTP" not in secure
    assert "AWS_EC2_METADATA_DISABLED" not in library_environment(Settings(home=tmp_path))


def test_what_is_set_wins_over_what_is_adopted_and_loses_to_what_is_given(tmp_path: Path) -> None:
    os.environ["RAY_ADDRESS"] = "mine"
    adopt_environment({"RAY_ADDRESS": "theirs", "PREFECT_API_URL": "http://new"})
    assert (os.environ["RAY_ADDRESS"], os.environ["PREFECT_API_URL"]) == ("mine", "http://new")
    child = child_environment(Settings(home=tmp_path), RAY_ADDRESS="given")
    assert child["RAY_ADDRESS"] == "given"
    assert child["PREFECT_API_URL"] == "http://new"
    assert child["DO_NOT_TRACK"] == "1"


def test_no_proxy_stands_before_the_servers_of_this_machine(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert "NO_PROXY" not in child_environment(settings)
    os.environ["https_proxy"] = "http://proxy.example:3128"
    os.environ["NO_PROXY"] = "example.org, localhost"
    child = child_environment(settings)
    assert child["NO_PROXY"] == child["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    prepare_environment(settings)
    assert getproxies_environment()["no"] == "example.org,localhost,127.0.0.1,::1"


def test_sockets_of_ray_fit_however_long_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, used in (("/scratch/a", "/scratch/a"), ("/scratch/" + "a" * 60, "/tmp")):  # noqa: S108 -- compared
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert short_temporary_folder() == used
        found = library_environment(Settings(home=tmp_path)).get("RAY_TMPDIR")
        assert found == (None if used == folder else used)


def test_a_user_whom_the_system_does_not_know_gets_a_home_and_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999)
    for name in ("HOME", "LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)
    prepare_environment(Settings(home=tmp_path))
    assert Path.home() == tmp_path
    assert getpass.getuser() == "uid-3999999"
