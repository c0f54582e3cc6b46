"""Pseudonyms: names and numbers of persons, replaced by what only the user's key gives."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from uuid import UUID

from pipeline.errors import SettingsError

KEY_NAME: Final = "NORMSCOPE_PSEUDONYM_KEY"
_KEY_BYTES: Final = 32
_MAKE_KEY: Final = (
    "Make one with `openssl rand -hex 32`, keep it secret and apart from the data, and give the "
    "same one every time: the same patient then gets the same pseudonym"
)


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The secret from which pseudonyms are derived (HMAC-SHA256); its `repr` keeps it secret.

    Args:
        secret: At least 32 bytes.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str | None) -> PseudonymKey:
        """Take a key from a setting.

        Args:
            text: At least 64 hexadecimal digits.

        Raises:
            SettingsError: There is none, or it is none. The text is not quoted.
        """
        if not text or not text.strip():
            problem = "no key, and DICOM files carry patients' names and numbers"
            raise SettingsError(KEY_NAME, problem, _MAKE_KEY)
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            raise SettingsError(KEY_NAME, "not hexadecimal digits", _MAKE_KEY) from None
        if len(secret) < _KEY_BYTES:
            problem = f"{2 * len(secret)} hexadecimal digits, at least {2 * _KEY_BYTES} are needed"
            raise SettingsError(KEY_NAME, problem, _MAKE_KEY)
        return cls(secret)

    def pseudonym(self, kind: str, value: str) -> str:
        """A pseudonym: 32 hexadecimal digits that only this key gives.

        Args:
            kind: Kind of the name, e.g. `patient`; equal values of two kinds differ.
            value: The name or number; blanks around it do not matter.
        """
        return self._digest(kind, value).hex()[:32]

    def map_uid(self, uid: str) -> str:
        """The UID that stands for another, below the root for UUIDs (PS3.5 B.2)."""
        return f"2.25.{UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def _digest(self, kind: str, value: str) -> bytes:
        text = f"{kind}\0{value.strip().strip(chr(0))}"
        return hmac.digest(self.secret, text.encode("utf-8", "surrogateescape"), sha256)
