"""Who may use the local servers: the address that they listen on, and the password they ask for.

Ray always asks for the token of the home folder, as it listens on every address of the machine.
Prefect and MLflow ask for a password as soon as others than this machine's users can reach them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from flows.local.loopback import HOST, ServiceError
from flows.shared.settings import Settings, create_token

Host: TypeAlias = Literal["127.0.0.1", "0.0.0.0"]  # noqa: S104  # with a password alone

USER: Final = "normscope"
"""The one user of the local Prefect and MLflow."""

# Passwords are checked by a slow hash; MLflow then remembers for a minute who has passed.
_MLFLOW_SETTINGS: Final = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/mlflow-users.db
admin_username = {user}
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the local servers listen, and whether Prefect and MLflow ask for a password.

    Args:
        host: `127.0.0.1` for this machine alone, `0.0.0.0` for every network that it is in.
        passwords: Whether both ask for the home folder's password; by default where other
            machines reach them.

    Raises:
        ServiceError: They would be open to other machines.
    """

    host: Host = HOST
    passwords: bool | None = None

    def __post_init__(self) -> None:
        """Refuse to be open."""
        if self.host != HOST and self.passwords is False:
            problem = "whoever reaches this machine could run flows on it without a password"
            raise ServiceError(f"host {self.host}", problem, "Let the servers ask for passwords")

    @property
    def asks_password(self) -> bool:
        """Whether Prefect and MLflow ask for a password."""
        return self.passwords or self.host != HOST


def read_password(settings: Settings) -> str | None:
    """Read the password of the local servers; None where none was ever made.

    Args:
        settings: Settings that name the home folder.
    """
    path = password_path(settings)
    return path.read_text() if path.exists() else None


def make_password(settings: Settings) -> str:
    """Make the password of the local servers, unless there is one, and read it.

    Args:
        settings: Settings that name the home folder; only its owner may read the file there.
    """
    path = password_path(settings)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_token(path)
    return path.read_text()


def write_mlflow_settings(settings: Settings) -> Path:
    """Write the file that makes MLflow ask for a password; the password itself is not in it.

    Args:
        settings: Settings that name the home folder. MLflow keeps its users there, beside the
            password: who deletes one deletes both.
    """
    folder = password_path(settings).parent
    path = folder / "mlflow.ini"
    path.write_text(_MLFLOW_SETTINGS.format(folder=folder, user=USER))
    return path


def password_path(settings: Settings) -> Path:
    """The file that holds the password of the local servers.

    Args:
        settings: Settings that name the home folder.
    """
    return settings.home / "access" / "password"
