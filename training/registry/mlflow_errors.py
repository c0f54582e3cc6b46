"""MLflow's errors in one line: what its server refuses or lacks, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from typing import Final

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipeline.errors import RegistryError

_REFUSED: Final = {401, 403}
_ANSWER_S: Final = 10  # time limit of the question for the server's version


@contextmanager
def translated(item: str) -> Iterator[None]:
    """Turn MLflow's errors into one line with a remedy.

    Args:
        item: Name of the model, version or run in question, or the server's URL.

    Raises:
        RegistryError: The server refuses, lacks what was asked for, or does not answer.
    """
    try:
        yield
    except MlflowException as error:
        raise _explain(item, error) from error


def _explain(item: str, error: MlflowException) -> RegistryError:
    first = _show(str(error)).removeprefix("RESOURCE_DOES_NOT_EXIST: ").rstrip(".")
    uri = str(mlflow.get_tracking_uri())
    server = f"the MLflow server at {_show(uri)}"
    if error.get_http_status_code() in _REFUSED:  # type: ignore[no-untyped-call]  # MLflow's own
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to what it knows"
        return RegistryError(item, f"{server} refuses these credentials", remedy)
    if "CERTIFICATE_VERIFY_FAILED" in first:
        problem = f"no CA that this machine trusts has signed the certificate of {server}"
        remedy = "Set SSL_CERT_FILE to a file with that CA's certificate"
        return RegistryError(item, problem, remedy)
    other_version = _find_other_version(uri)
    if other_version is not None:
        return other_version
    if "not found" in first:
        return RegistryError(item, first, "Run `normscope train` first, or correct the name")
    remedy = "Check that MLFLOW_TRACKING_URI names the right server, and that it answers"
    return RegistryError(item, first, remedy)


def require_same_version(uri: str) -> None:
    """Refuse a server of another major version before hours of work are spent.

    Such a server takes metrics, and fails only when the version is registered.

    Args:
        uri: Tracking URI; one that names no server is taken.

    Raises:
        RegistryError: The server is of another major version.
    """
    other_version = _find_other_version(uri)
    if other_version is not None:
        raise other_version


def _find_other_version(uri: str) -> RegistryError | None:
    theirs, ours = _ask_version(uri), installed_version("mlflow")
    if theirs.partition(".")[0] in {"", ours.partition(".")[0]}:
        return None
    problem = f"this MLflow server is version {theirs}, but here is version {ours}"
    return RegistryError(_show(uri), problem, "Run the same major version of MLflow on both sides")


def _show(text: str) -> str:
    """Put a text on one line, without passwords that a URL in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", re.sub(r"\s+", " ", text))


def _ask_version(uri: str) -> str:
    """Ask a server for its version; empty where it does not say, or where there is no server."""
    if not uri.startswith("http"):
        return ""
    try:
        place = get_default_host_creds(uri)  # type: ignore[no-untyped-call]  # MLflow's own
        answer = http_request(  # type: ignore[no-untyped-call]  # MLflow's own
            place, "/version", "GET", max_retries=0, timeout=_ANSWER_S
        )
    except MlflowException:
        return ""
    text = str(answer.text).strip()
    return text if re.fullmatch(r"\d+(\.\w+)+", text) else ""
