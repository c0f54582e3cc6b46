"""Tar archives in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping


def pack(contents: Mapping[str, bytes], *, mode: str = "w:gz") -> bytes:
    """Pack files, and one folder entry, into an archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]  # of str
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()
