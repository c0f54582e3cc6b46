"""Tells files that systems leave in folders from the user's own: one rule for every source. Pure.

A file is junk if its own name, or that of a folder between the source and it,

- begins with a dot: what Unix hides, Jupyter's `.ipynb_checkpoints`, and what macOS writes beside
  files on foreign disks (`._name`, `.DS_Store`); or
- is one that a system gives to files of its own, in any case of letters: `Thumbs.db`,
  `ehthumbs.db` and `desktop.ini` (Windows Explorer), `$RECYCLE.BIN` and `System Volume Information`
  (Windows), `__MACOSX` and `Icon` with a carriage return (macOS), `@eaDir`, `#recycle` and
  `#snapshot` (Synology), `@Recycle` and `@Recently-Snapshot` (QNAP), `lost+found` (ext4).

Folders above the source say nothing: a source may lie in a hidden folder. A file that is named
outright is taken whatever its name.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

_SYSTEM_NAMES: Final = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
    | {"__macosx", "icon\r", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}
    | {"lost+found"}
)


def is_junk(path: PurePosixPath) -> bool:
    """Tell by its name whether a file is a system's own and not the user's.

    Args:
        path: Path of the file below the source.

    Examples:
        >>> is_junk(PurePosixPath("slides/._tumor_001.tif"))
        True
        >>> is_junk(PurePosixPath("slides/tumor_001.tif"))
        False
    """
    return any(
        name.startswith(".") or name.lower() in _SYSTEM_NAMES
        for name in path.parts
        if name not in {"/", "..", "."}
    )
