"""Names of models, runs and searches: what a folder, a key and a filter of MLflow can hold."""

from __future__ import annotations

import re
import unicodedata
from hashlib import sha256
from typing import Final

from pipeline.errors import SettingsError

_NAME_LENGTH: Final = 200  # file systems end at 255 bytes, and a run's name is longer


def choose_model_name(source: str, name: str | None = None) -> str:
    """Choose the name of a model and of its experiment, before work is spent on it.

    Args:
        source: Source of the dataset, from which the default name is made: characters that names
            may not have become `-`.
        name: Name that the user has given; None for the default, `<source>-anomaly`.

    Raises:
        SettingsError: MLflow or one of its filters cannot hold the name.
    """
    if name is None:
        plain = unicodedata.normalize("NFKD", source).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
        plain = plain[: _NAME_LENGTH // 2] or f"source-{sha256(source.encode()).hexdigest()[:8]}"
        return f"{plain}-anomaly"
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9])?", name):
        problem = f"{name!r} cannot name a model"
        remedy = "Use letters, digits, blanks, `.`, `_` and `-`, a letter or digit first and last"
        raise SettingsError("model name", problem, remedy)
    _check_length("model name", name)
    return name


def check_run_name(name: str) -> None:
    """Refuse a name that cannot be a folder's and a key's everywhere.

    Raises:
        SettingsError: It is empty, too long, or has other characters than letters, digits, `.`,
            `_` and `-`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingsError(
            "run name", f"{name!r} cannot name a folder", "Use letters, digits, `.`, `_` and `-`"
        )
    _check_length("run name", name)


def _check_length(item: str, name: str) -> None:
    if len(name) > _NAME_LENGTH:
        problem = f"{name[:20]!r}... has {len(name)} characters, at most {_NAME_LENGTH} fit"
        raise SettingsError(item, problem, "Choose a shorter one")
