from __future__ import annotations

import pickle

import pytest
from pydicom.uid import UID

from pipeline.errors import SettingsError
from pipeline.privacy.key import PseudonymKey

KEY = PseudonymKey(bytes(range(32)))
OTHER_KEY = PseudonymKey(bytes(range(1, 33)))


def test_pseudonyms_are_keyed_and_told_apart_by_kind() -> None:
    pseudonym = KEY.pseudonym("patient", "P1")
    assert pseudonym == KEY.pseudonym("patient", " P1\0")
    assert (
        len(
            {
                pseudonym,
                KEY.pseudonym("study", "P1"),
                KEY.pseudonym("patient", "P2"),
                OTHER_KEY.pseudonym("patient", "P1"),
            }
        )
        == 4
    )
    assert len(pseudonym) == 32
    assert UID(KEY.map_uid("1.2.3")).is_valid


def test_a_key_never_shows() -> None:
    key = PseudonymKey.parse(" " + "0a" * 32 + "\n")
    assert key.secret == b"\n" * 32
    assert "0a0a" not in repr(key)
    assert "\\n" not in repr(key)
    assert pickle.loads(pickle.dumps(key)) == key  # noqa: S301 - its own bytes


@pytest.mark.parametrize("text", [None, "", "  ", "secret word", "0a" * 31])
def test_a_missing_or_weak_key_is_refused_with_a_remedy(text: str | None) -> None:
    with pytest.raises(SettingsError, match="openssl rand -hex 32") as caught:
        PseudonymKey.parse(text)
    assert not text or not text.strip() or text not in str(caught.value)
