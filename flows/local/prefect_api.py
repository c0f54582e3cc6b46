"""The Prefect server in use: whether it answers, takes our password and is of our version."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from pipeline.errors import SettingsError


def require_prefect_server(url: str) -> None:
    """Refuse a Prefect server that a flow could not run against.

    Args:
        url: URL of the server's API, from `PREFECT_API_URL`.

    Raises:
        SettingsError: It does not answer, refuses the password, or is of another major version.
    """
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in {401, 403}:
            raise
        problem = f"the Prefect server at {url} asks for a password and does not take this one"
        remedy = "Set it to the server's own `user:password`"
        raise SettingsError("PREFECT_API_AUTH_STRING", problem, remedy) from error
    except RuntimeError as error:
        text = str(error)
        if "incompatible versions" in text:
            problem = text.partition(". Major")[0]
            remedy = "Run the same major version of Prefect on both sides"
            raise SettingsError(url, problem, remedy) from error
        problem = f"no Prefect server answers at {url} ({error.__cause__})"
        remedy = (
            "Set SSL_CERT_FILE to a file with the certificate of its CA"
            if "CERTIFICATE_VERIFY_FAILED" in problem
            else "Start it, correct the URL, or unset the variable to work without one"
        )
        raise SettingsError("PREFECT_API_URL", problem, remedy) from error
