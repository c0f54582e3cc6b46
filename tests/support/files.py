"""Files for tests that look at names alone."""

from __future__ import annotations

from pathlib import Path


def touch(root: Path, *names: str) -> str:
    """Write files that hold their own names; return their folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(root)
