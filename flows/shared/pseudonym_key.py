"""The key of the pseudonyms, from the settings to whoever lists patients; never a parameter."""

from __future__ import annotations

from flows.shared.settings import Settings
from pipeline.privacy.key import PseudonymKey


def open_key(settings: Settings) -> PseudonymKey | None:
    """The key that NORMSCOPE_PSEUDONYM_KEY holds, or None.

    Raises:
        SettingsError: It is no key.
    """
    secret = settings.pseudonym_key
    return PseudonymKey.parse(secret.get_secret_value()) if secret else None
