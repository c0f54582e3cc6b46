"""Names that people and systems spell differently and mean alike. Pure."""

from __future__ import annotations

from unicodedata import normalize


def fold_name(name: str) -> str:
    """Fold a name: upper and lower case, and Unicode's composed and decomposed form, are alike.

    Windows and macOS take such names for one, and macOS has long decomposed the names of files.
    Caseless matching is that of The Unicode Standard, 3.13.

    Examples:
        >>> fold_name("Tumor_001")
        'tumor_001'
    """
    return normalize("NFC", normalize("NFD", name).casefold())
