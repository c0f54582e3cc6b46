"""Files below a source that none of its readers takes: junk, and kinds that are not read. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from pipeline.io.junk import is_junk
from pipeline.io.storage import name_of
from pipeline.records import ManifestEntry

__all__ = ["count_unread", "is_junk"]

# A longer ending, or one of other characters, is more likely part of a name than a kind of file.
_SUFFIX: Final = re.compile(r".(\.[a-z0-9]{1,10})((?:\.(?:gz|bz2|xz|zst))?)$")


def count_unread(urls: Iterable[str], reason: str = "not read") -> tuple[ManifestEntry, ...]:
    """Count files of kinds that are not read, in one entry of the manifest for each suffix.

    No entry quotes a file's name, which may be a person's.

    Args:
        urls: URLs or paths of the files, without junk.
        reason: What became of the files, after their number and suffix.
    """
    counts: dict[str, int] = defaultdict(int)
    for url in urls:
        found = _SUFFIX.search(name_of(url).lower())
        counts[f"{found[1]}{found[2]}" if found else ""] += 1
    return tuple(_describe(suffix, count, reason) for suffix, count in sorted(counts.items()))


def _describe(suffix: str, count: int, reason: str) -> ManifestEntry:
    files = f"{count} file{'' if count == 1 else 's'}"
    if not suffix:
        return ManifestEntry("files without a suffix", "skipped", f"{files}: {reason}")
    return ManifestEntry(f"*{suffix}", "skipped", f"{files} {suffix}: {reason}")
